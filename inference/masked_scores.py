"""
What a masked language model says about tokens and about bases.

    python -m inference.masked_scores genes.fa --model my_model --output bases.parquet

writes for each base of each sequence the probabilities of A, C, G and T, in two readings of the same pass, in which the
token that covers the base is masked and everything else is seen. Let the token have k letters.

- `given_rest` (columns A C G T): only tokens of k letters that agree with the covering token at its k - 1 other letters
  are compared, so each base is judged given all other bases. A base for which the vocabulary holds no such token gets
  0: it could only be spelled with other token borders. `inference.mutagenesis` compares all four by tokenising anew.
- `given_context` (A_context ...): all tokens of k letters are compared and those with the same letter at this place are
  added up, so the other letters of the token are not given; four positive numbers nearly everywhere.

Both are exact for the model, each sums to 1, and both take the token borders of the sequence as known. With
--reverse-complement average both strands are averaged; their borders differ. The base under an N is predicted as a
token of one letter. docs/variants.md has the formulas.
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow
import torch
from torch import Tensor

from inference.jobs import check_files, processes, run, said_in_one_line
from inference.loading import SequenceEncoder, fingerprint, load_masked_lm
from inference.reading import SequenceRecord, add_input_arguments, read_records, reverse_complement
from modeling.embedding import BATCH_TOKENS, STRANDS
from modeling.memory import must_fit
from modeling.nucleotides import token_lengths, token_spans
from training.classification_model import ModelError

BASES = "ACGT"
BLOCK_BASES = 1 << 13  # bp; a token costs a reading of its sequence
_CODES = {base: code for code, base in enumerate(BASES)}


class Query(NamedTuple):
    """A row of token ids, some of them [MASK], and the position whose prediction is asked for."""

    input_ids: Tensor
    position: int


def mask(input_ids: Tensor, positions, mask_token_id: int) -> Tensor:
    """A copy of (tokens,) with [MASK] at positions: an index, a slice or several indices."""
    masked = input_ids.clone()
    masked[positions] = mask_token_id
    return masked


@torch.no_grad()
def log_probabilities(model, queries: Iterable[Query], batch_tokens: int | None = None) -> Iterator[Tensor]:
    """
    Log-probabilities (rows, vocabulary) in nats of queries in their order, batch by batch; float32, on the CPU.

    The head runs on the asked positions only. The rows of a batch lie end to end, so none depends on the others.
    """
    batch, tokens = [], 0
    limit = batch_tokens or BATCH_TOKENS.get(model.device.type, 65536)
    for query in queries:
        if batch and tokens + len(query.input_ids) > limit:
            yield _log_probabilities(model, batch)
            batch, tokens = [], 0
        batch.append(query)
        tokens += len(query.input_ids)
    if batch:
        yield _log_probabilities(model, batch)


def _log_probabilities(model, batch: list[Query]) -> Tensor:
    lengths = [len(query.input_ids) for query in batch]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    places = cu_seqlens[:-1].long() + torch.tensor([query.position for query in batch])
    advice = "cut it into pieces, or lower the flank"
    with must_fit(model, max(lengths), sum(lengths), bases_per_token=5.0, advice=advice):
        encoded = model.bert(
            input_ids=torch.cat([query.input_ids for query in batch])[None].to(model.device),
            cu_seqlens=cu_seqlens.to(model.device),
            max_seqlen=max(lengths),
            output_attentions=False,
            output_hidden_states=False,
            unpadded_output=True,
            return_dict=True,
        )
        logits = model.cls(encoded.last_hidden_state[places.to(model.device)])
    return logits.float().log_softmax(-1).cpu()


def token_log_probabilities(model, queries: Iterable[tuple[Query, int]], batch_tokens: int | None = None) -> np.ndarray:
    """Log-probability in nats of a token id at each query's position: float64 (queries,)."""
    targets = []

    def remembering():
        for query, target in queries:
            targets.append(target)
            yield query

    values = []
    done = 0
    for rows in log_probabilities(model, remembering(), batch_tokens):
        wanted = torch.tensor(targets[done : done + len(rows)])
        values.append(rows.gather(1, wanted[:, None])[:, 0].double().numpy())
        done += len(rows)
    return np.concatenate(values) if values else np.empty(0)


def pseudo_log_likelihood(
    model, encoder: SequenceEncoder, sequences: list[bytes], batch_tokens: int | None = None
) -> np.ndarray:
    """
    Sum over a sequence's tokens of the log-probability of each when it alone is masked: float64 (sequences,), nats.

    Salazar et al. 2020, equation 1. [UNK], which stands for N, is seen but not summed. One row per token: the cost
    grows with the square of the length.
    """
    unknown = model.config.unk_token_id
    rows = encoder(sequences)
    places = [[p for p in range(1, len(ids) - 1) if ids[p] != unknown] for ids in rows]
    queries = (
        (Query(mask(ids, p, model.config.mask_token_id), p), int(ids[p]))
        for ids, positions in zip(rows, places, strict=True)
        for p in positions
    )
    values = token_log_probabilities(model, queries, batch_tokens)
    ends = np.cumsum([0, *map(len, places)])
    return np.array([values[a:b].sum() for a, b in zip(ends[:-1], ends[1:], strict=True)])


class BaseProbabilities:
    """
    Probabilities of A, C, G, T at each base: (given_rest, given_context), float64 (bp, 4) each; see the module's text.

    Args:
        both_strands: average with what the reverse complement gives.
    """

    def __init__(self, model, encoder: SequenceEncoder, both_strands: bool = False, batch_tokens: int | None = None):
        self.model, self.encoder, self.both_strands, self.batch_tokens = model, encoder, both_strands, batch_tokens
        self.lengths = token_lengths(encoder.tokenizer)
        self.ids = {t: i for t, i in encoder.tokenizer.get_vocab().items() if set(t) <= set(BASES)}
        self.by_length = {}  # letters: (ids (n,), codes of their letters (n, letters))
        for k in {len(token) for token in self.ids}:
            tokens = [token for token in self.ids if len(token) == k]
            codes = np.array([[_CODES[letter] for letter in token] for token in tokens])
            self.by_length[k] = torch.tensor([self.ids[token] for token in tokens]), codes

    def __call__(self, sequence: bytes) -> tuple[np.ndarray, np.ndarray]:
        rest, context = self._one_strand(sequence)
        if self.both_strands:
            other_rest, other_context = self._one_strand(reverse_complement(sequence))
            rest, context = (rest + other_rest[::-1, ::-1]) / 2, (context + other_context[::-1, ::-1]) / 2
        return rest, context

    def _one_strand(self, sequence: bytes) -> tuple[np.ndarray, np.ndarray]:
        rest, context = np.zeros((2, len(sequence), 4))
        for start, end, *probabilities in self.each_token(sequence):
            rest[start:end], context[start:end] = probabilities
        return rest, context

    def each_token(self, sequence: bytes) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """
        (start, end, given_rest, given_context) of the tokens of one strand, from left to right, when computed.

        Raises:
            ModelError: the tokens do not lie end to end, as when letters N in a row become one token.
        """
        (ids,) = self.encoder([sequence])
        if (bases := int(self.lengths[ids].sum())) != len(sequence):
            raise ModelError(
                f"the tokens hold {bases:,} bases, the sequence {len(sequence):,}: masked scores need a tokenizer "
                "whose tokens lie end to end, each N one token"
            )
        spans = iter(token_spans(ids, self.lengths).tolist()[1:-1])
        queries = (Query(mask(ids, p, self.model.config.mask_token_id), p) for p in range(1, len(ids) - 1))
        for rows in log_probabilities(self.model, queries, self.batch_tokens):
            for row, (start, end) in zip(rows, spans, strict=False):
                yield start, end, *self.of_token(sequence[start:end].decode(), row)

    def of_token(self, letters: str, row: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Both probabilities (letters, 4) of the bases under one token; row: log-probabilities (vocabulary,) there."""
        ids, codes = self.by_length[len(letters)]
        weights = row[ids].double().softmax(0).numpy()
        context = np.stack([np.bincount(column, weights, minlength=4) for column in codes.T])
        rest = np.full((len(letters), 4), -np.inf)
        for place, base in np.ndindex(rest.shape):
            spelled = self.ids.get(letters[:place] + BASES[base] + letters[place + 1 :])
            if spelled is not None:
                rest[place, base] = row[spelled]
        return torch.from_numpy(rest).softmax(1).numpy(), context

    def tables(self, first: int, records: list[SequenceRecord]) -> Iterator[pyarrow.Table]:
        """A table per record, a row per base; for `inference.jobs.run`."""
        for number, record in enumerate(records, first):
            rest, context = self(record.sequence)
            yield pyarrow.table({
                "name": [record.name] * len(rest),
                "record": np.full(len(rest), number),
                "position": np.arange(len(rest)),
                "base": [chr(letter) for letter in record.sequence],
                **{base: rest[:, code].astype(np.float32) for code, base in enumerate(BASES)},
                **{f"{base}_context": context[:, code].astype(np.float32) for code, base in enumerate(BASES)},
            })  # fmt: skip


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m inference.masked_scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input_arguments(parser)
    parser.add_argument("--model", required=True, help="StrandBERT folder or Hub name, with its language-model head")
    parser.add_argument("--output", required=True, help="file to write: .parquet, .csv or .tsv; position counts from 0")
    parser.add_argument("--reverse-complement", default="average", choices=STRANDS, help="average both strands, or not")
    parser.add_argument("--batch-tokens", type=int, help="tokens per pass (default: 4096 on a CPU, 65536 on a GPU)")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(arguments)
    if not options.output.endswith((".parquet", ".csv", ".tsv")):
        parser.error(f"--output {options.output} must end in .parquet, .csv or .tsv")
    with said_in_one_line():
        check_files(options.output, [], (options.input, options.genome), options.overwrite)
        state = processes(options.cpu or not torch.cuda.is_available())
        model = load_masked_lm(options.model).to(state.device)
        encoder = SequenceEncoder(options.model, model.config)
        both = options.reverse_complement == "average"
        compute = BaseProbabilities(model, encoder, both, options.batch_tokens)
        digest = fingerprint(model, encoder.tokenizer)
        settings = {"model": digest, "device": state.device.type, "both_strands": both}

        def read():
            return read_records(options.input, options.genome, options.sequence_column, options.name_column)

        found = run(options.output, settings, read, compute.tables, state, options.overwrite, BLOCK_BASES)
        if state.is_main_process:
            print(f"{found.sequences:,} sequences, {found.bases:,} bp -> {options.output}")


if __name__ == "__main__":
    main()
