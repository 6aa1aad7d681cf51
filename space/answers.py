"""
What the demo answers, as plain numbers and text: the pages and the API show nothing else.

Each function takes a loaded model and records (letters ACGTN) and returns a dictionary that fits into JSON; its `about`
says model, backend, device, dtype, bp, tokens and seconds. Long work is a generator: it yields the share that is done
(0 .. 1), or the number of steps where their total is not known, and at last the answer, so that it can be shown and
stopped.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow
import torch

from corpus.variants import ref_problem
from inference.attribution import attribution_steps
from inference.embed import Embedder
from inference.jobs import blocks
from inference.masked_scores import BASES, Query, log_probabilities, mask
from inference.mutagenesis import mutagenesis
from inference.reading import SequenceRecord, reverse_complement
from inference.score_variants import VariantScorer
from inference.variant_windows import allele_problem, variant_windows
from modeling.embedding import embed_token_ids
from modeling.nucleotides import token_spans
from space.inputs import InputError, place_of
from space.models import Loaded
from training.classification_batches import TooLongError

PREDICTIONS = 10  # tokens shown for a masked place
NEIGHBOURS = 3
BLOCK_BASES = 10_000  # bp embedded between two signs of progress
FLANK = 100  # bp on either side of a changed base: enough for the models at hand, and quick on a CPU
ROWS_AT_ONCE = 2  # bases mutated between two signs of progress


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def tokens(loaded: Loaded, record: SequenceRecord) -> dict:
    """The tokens of a sequence: text, half-open interval in bp from 0, and id of each."""
    watch = Stopwatch()
    ids, spans = _encode(loaded, record)
    letters = record.sequence.decode()
    found = [
        {"text": letters[a:b], "start": a, "end": b, "id": i} for i, (a, b) in zip(ids.tolist(), spans, strict=True)
    ]
    found = found[1:-1]  # without [CLS] and [SEP]
    about = loaded.about(len(letters), len(found), len(ids), watch.seconds())
    return {"name": record.name, "sequence": letters, "tokens": found, "about": about}


def fill_mask(loaded: Loaded, record: SequenceRecord, index: int) -> dict:
    """
    What the model expects where the token that covers a base is masked.

    index: of the base in the sequence, from 0.

    Returns: `token` and its half-open interval `start`, `end` in the sequence, from 0; `predictions`, tokens with
    probabilities, the likeliest first; `given_rest` and `given_context`, (bases of the token, 4) as
    `inference.masked_scores` explains.

    Raises:
        InputError: no such base.
    """
    if not 0 <= index < len(record.sequence):
        first = place_of(record)[1]
        last = first + len(record.sequence) - 1
        raise InputError(f"Position {first + index} does not exist; the sequence has positions {first} to {last}.")
    watch = Stopwatch()
    ids, spans = _encode(loaded, record)
    place = next(p for p, (start, end) in enumerate(spans) if start <= index < end)
    query = Query(mask(ids, place, loaded.model.config.mask_token_id), place)
    row = next(log_probabilities(loaded.model, [query]))[0]
    start, end = spans[place]
    text = record.sequence[start:end].decode()
    rest, context = loaded.bases.of_token(text, row)
    values, best = row.softmax(0).topk(PREDICTIONS)
    names = loaded.encoder.tokenizer.convert_ids_to_tokens(best.tolist())
    return {
        "token": text,
        "start": start,
        "end": end,
        "probability": float(row[ids[place]].exp()),
        "predictions": [{"token": t, "probability": p} for t, p in zip(names, values.tolist(), strict=True)],
        "given_rest": rest.tolist(),
        "given_context": context.tolist(),
        "about": loaded.about(len(record.sequence), len(ids) - 2, len(ids), watch.seconds()),
    }


def base_probabilities(loaded: Loaded, record: SequenceRecord) -> Iterator[float | dict]:
    """Every token masked in turn: `given_rest` and `given_context`, (bp, 4), as `inference.masked_scores` has them."""
    watch = Stopwatch()
    rest, context = np.zeros((2, len(record.sequence), 4))
    count = 0
    for start, end, *probabilities in loaded.bases.each_token(record.sequence):
        rest[start:end], context[start:end] = probabilities
        count += 1
        yield end / len(record.sequence)
    about = loaded.about(len(record.sequence), count, count + 2, watch.seconds())
    yield {"given_rest": rest.tolist(), "given_context": context.tolist(), "about": about}


def embed(loaded: Loaded, records: list[SequenceRecord]) -> Iterator[float | dict]:
    """
    Vectors of sequences and what they say of their likeness.

    Returns: `table`, a pyarrow table as `inference.embed` writes it; `map` (sequences, 2), principal components, and
    `explained`, their shares of the variance; `neighbours`, for each sequence the indices and cosines of the nearest
    others; `similarity` (sequences, sequences), cosines; `strands` (sequences,), the cosine of each sequence with its
    own reverse complement.
    """
    watch = Stopwatch()
    embedder = Embedder(loaded.model, loaded.encoder)
    tables, backward = [], []
    first = done = 0
    total = sum(len(record.sequence) for record in records)
    for block in blocks(iter(records), BLOCK_BASES):
        tables.extend(embedder(first, block))
        others = [replace(record, sequence=reverse_complement(record.sequence)) for record in block]
        backward.extend(embedder(first, others))
        first, done = first + len(block), done + sum(len(record.sequence) for record in block)
        yield done / total
    table = pyarrow.concat_tables(tables)
    vectors, others = _matrix(table), _matrix(pyarrow.concat_tables(backward))
    similarity = _unit(vectors) @ _unit(vectors).T
    nearest = min(NEIGHBOURS, len(records) - 1)
    order = np.argsort(2 * np.eye(len(records)) - similarity, axis=1, kind="stable")[:, :nearest]
    places, explained = principal_components(vectors)
    lengths = [len(ids) for ids in loaded.encoder([record.sequence for record in records])]
    about = loaded.about(total, sum(lengths) - 2 * len(lengths), max(lengths), watch.seconds())
    yield {
        "table": table,
        "map": places.tolist(),
        "explained": explained.tolist(),
        "neighbours": [[(int(j), float(similarity[i, j])) for j in row] for i, row in enumerate(order)],
        "similarity": similarity.tolist(),
        "strands": (_unit(vectors) * _unit(others)).sum(1).tolist(),
        "about": about,
    }


def compare(loaded: Loaded, first: SequenceRecord, second: SequenceRecord) -> dict:
    """Cosines of the vectors of two sequences (`similarity`), and of their strands."""
    watch = Stopwatch()
    sequences = [s for record in (first, second) for s in (record.sequence, reverse_complement(record.sequence))]
    ids = loaded.encoder(sequences)
    one, one_back, other, other_back = _unit(np.stack([row.numpy() for row in embed_token_ids(loaded.model, ids)]))
    about = loaded.about(
        len(first.sequence) + len(second.sequence), len(ids[0]) + len(ids[2]) - 4, max(map(len, ids)), watch.seconds()
    )
    return {
        "similarity": float(one @ other),
        "similarity_other_strand": float(one @ other_back),
        "first_strands": float(one @ one_back),
        "second_strands": float(other @ other_back),
        "about": about,
    }


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components (rows, 2) and their shares of the variance (2,); zeros where there are fewer."""
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places, variance = np.zeros((len(vectors), 2)), np.zeros(2)
    count = min(2, len(sizes))
    signs = np.where(left[np.abs(left).argmax(0), np.arange(left.shape[1])] < 0, -1, 1)
    places[:, :count] = (left * sizes * signs)[:, :count]
    variance[:count] = (sizes**2)[:count] / max(float((sizes**2).sum()), 1e-30)
    return places, variance


def classify(loaded: Loaded, records: list[SequenceRecord]) -> dict:
    """
    Rows of `inference.predict` for records, as a list of dictionaries.

    Raises:
        InputError: a sequence that is too long for a model with learned positions.
    """
    watch = Stopwatch()
    try:
        (table,) = loaded.predictor(0, records)
    except TooLongError as error:
        raise InputError(f"{str(error).rpartition(';')[0]}; shorten it.") from None  # the rest names a flag
    lengths = [len(ids) for ids in loaded.encoder([r.sequence for r in records])] if loaded.encoder else []
    tokens = sum(lengths) - 2 * len(lengths) if loaded.encoder else None
    bases = sum(len(record.sequence) for record in records)
    about = loaded.about(bases, tokens, max(lengths, default=0), watch.seconds())
    return {"labels": loaded.predictor.names, "rows": table.to_pylist(), "about": about}


def attribution(loaded: Loaded, record: SequenceRecord) -> Iterator[int | dict]:
    """
    What each base adds to the logit of the predicted class: `bases` (bp,), which add up to `score - baseline`.

    How many passes it takes follows from the sequence; until then their number is yielded.

    Raises:
        InputError: a model of another architecture.
    """
    if loaded.encoder is None:
        raise InputError("Attribution needs a StrandBERT classifier; this model is of another kind.")
    watch = Stopwatch()
    for passes, found in enumerate(attribution_steps(loaded.model, loaded.encoder, record.sequence), 1):
        if found is None:
            yield passes
    (ids,) = loaded.encoder([record.sequence])
    yield {
        "label": loaded.model.config.id2label[found.target],
        "bases": found.bases.tolist(),
        "score": found.score,
        "baseline": found.baseline,
        "gap": found.gap,
        "about": loaded.about(len(record.sequence), len(ids) - 2, len(ids), watch.seconds()),
    }


def mutate(loaded: Loaded, record: SequenceRecord, start: int, end: int) -> Iterator[float | dict]:
    """
    Every single-base change in [start, end), bp from 0: `llr` (end - start, 4), the log-likelihood ratio in nats that
    `inference.mutagenesis` computes with flanks of 100 bp; negative: the model finds the change less likely.

    Raises:
        InputError: no such interval.
    """
    if not 0 <= start < end <= len(record.sequence):
        contig, first = place_of(record)
        last = first + len(record.sequence) - 1
        raise InputError(f"Choose positions between {first} and {last} of {contig[:60]}, the first not after the last.")
    watch = Stopwatch()
    scorer = VariantScorer(loaded.model, loaded.encoder, scores=("llr",))  # the others are not shown here
    rows = []
    for low in range(start, end, ROWS_AT_ONCE):
        high = min(low + ROWS_AT_ONCE, end)
        rows.extend(mutagenesis(scorer, record.sequence, low, high, FLANK).tolist())
        yield (high - start) / (end - start)
    (ids,) = loaded.encoder([record.sequence[max(0, start - FLANK) : end + FLANK]])
    about = loaded.about(end - start, len(ids) - 2, len(ids), watch.seconds())
    yield {"llr": [[None if np.isnan(x) else x for x in row] for row in rows], "about": about}


def score_variant(loaded: Loaded, record: SequenceRecord, index: int, ref: str, alt: str) -> dict:
    """
    Scores of one variant as `inference.score_variants` gives them: `llr`, `pll` (nats) and `distance`.

    Raises:
        InputError: REF is not what stands there, or an allele that has no score.
    """
    problem = ref_problem(record.sequence, index, ref) or allele_problem(ref, alt)
    if problem == "REF mismatch":
        there = record.sequence[index : index + min(len(ref), 20)].decode()
        raise InputError(f"REF is {ref[:20]}, but the sequence has {there} there. Is it another assembly or strand?")
    if problem:
        raise InputError(f"This variant cannot be scored: {problem}.")
    watch = Stopwatch()
    windows = variant_windows(record.sequence, index, ref.encode(), alt.encode(), FLANK)
    if windows is None:
        raise InputError(
            f"This variant cannot be scored: all places where it could be written span more than {FLANK} bp."
        )
    scores = VariantScorer(loaded.model, loaded.encoder)([windows])
    contig, first = place_of(record)
    (ids,) = loaded.encoder([windows[0]])
    return {
        "variant": f"{contig}:{first + index} {ref}>{alt}",
        "llr": float(scores.llr[0]),
        "pll": float(scores.pll[0]),
        "distance": float(scores.distance[0]),
        "ref_tokens": int(scores.ref_tokens[0]),
        "alt_tokens": int(scores.alt_tokens[0]),
        "about": loaded.about(len(windows[0]), len(ids) - 2, len(ids), watch.seconds()),
    }


def probability_table(record: SequenceRecord, given_rest: list, given_context: list) -> str:
    """Probabilities of `base_probabilities` as tab-separated text, a row for each base."""
    contig, first = place_of(record)
    lines = ["\t".join(["contig", "position", "base", *BASES, *(f"{base}_context" for base in BASES)])]
    for i, (rest, context) in enumerate(zip(given_rest, given_context, strict=True)):
        values = [f"{value:.6g}" for value in (*rest, *context)]
        lines.append("\t".join([contig, str(first + i), chr(record.sequence[i]), *values]))
    return "\n".join(lines) + "\n"


def _matrix(table: pyarrow.Table) -> np.ndarray:
    """Vectors of a table of `inference.embed`: float64 (sequences, hidden)."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1).astype(np.float64)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-30)


def _encode(loaded: Loaded, record: SequenceRecord) -> tuple[torch.Tensor, list[list[int]]]:
    """Token ids (tokens,) with [CLS] and [SEP], and the interval in bp of each."""
    (ids,) = loaded.encoder([record.sequence])
    return ids, token_spans(ids, loaded.bases.lengths).tolist()
