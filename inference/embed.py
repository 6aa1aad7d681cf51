"""
Vectors for every sequence of a file.

    python -m inference.embed genes.fa --model my_model --output genes.parquet
    python -m inference.embed peaks.bed --genome genome.fa.gz --model my_model --output peaks.npy
    python -m inference.embed chromosome.fa --model my_model --output bases.npy --resolution nucleotide
    accelerate launch --num_processes 4 -m inference.embed reads.fq.gz --model my_model --output reads.parquet
    torchrun --nproc_per_node 4 -m inference.embed reads.fq.gz --model my_model --output reads.parquet --cpu

Input: FASTA, FASTQ, CSV, TSV, Parquet, text (one sequence per line), or BED with --genome. All of it is checked before
the first computation. Output: .parquet (name and vector in each row), .npy or .safetensors (a float32 matrix, and
OUTPUT.index.tsv with the names). An interrupted job goes on when the same command is given again.

A sequence of any length is read in one piece unless --window is given; memory grows in proportion to its length.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import torch
import transformers

from inference.jobs import MATRIX_SUFFIXES, JobError, check_files, processes, run, said_in_one_line
from inference.loading import SequenceEncoder, fingerprint, load_encoder
from inference.reading import SequenceRecord, add_input_arguments, read_records, reverse_complement
from modeling.embedding import POOLINGS, RESOLUTIONS, STRANDS, check_options, depth_of, embed_token_ids
from modeling.nucleotides import token_lengths, token_of_nucleotide, token_spans

SUFFIXES = (".parquet", *MATRIX_SUFFIXES)
ROWS_AT_ONCE = 1 << 16  # rows of nucleotides in memory


class Embedder:
    """Tables of vectors for blocks of records; options as in `modeling.embedding.embed`."""

    def __init__(self, model, encoder: SequenceEncoder, pooling="mean", layer=-1, resolution="sequence",
                 reverse_complement="none", batch_tokens=None, window=None, overlap=0):  # fmt: skip
        self.model, self.encoder = model, encoder
        self.resolution, self.both_strands = resolution, reverse_complement == "average"
        self.options = (pooling if resolution == "sequence" else "none", layer, batch_tokens, window, overlap)
        self.lengths = token_lengths(encoder.tokenizer)

    def __call__(self, first: int, records: list[SequenceRecord]) -> Iterator[pyarrow.Table]:
        """Tables of a block whose first record has the number `first`: a row per sequence, token or nucleotide."""
        sequences = [record.sequence for record in records]
        strands = sequences + [reverse_complement(s) for s in sequences if self.both_strands]
        input_ids = self.encoder(strands)
        bases_per_token = sum(map(len, strands)) / sum(map(len, input_ids))
        rows = embed_token_ids(self.model, input_ids, *self.options, bases_per_token)
        forward, backward = rows[: len(records)], rows[len(records) :]
        if self.resolution == "sequence":
            vectors = torch.stack(forward)
            if backward:
                vectors = (vectors + torch.stack(backward)) / 2
            yield pyarrow.table({
                "name": [record.name for record in records],
                "record": np.arange(first, first + len(records)),
                "length": np.array([len(record.sequence) for record in records]),
                "embedding": _vectors(vectors),
            })  # fmt: skip
            return
        for i, record in enumerate(records):
            ids = input_ids[i][1:-1]
            if self.resolution == "token":
                self._places(ids, record)  # raises where the spans below would be wrong
                start, end = token_spans(ids, self.lengths).numpy().T
                yield _table(record, first + i, {"start": start, "end": end}, forward[i])
                continue
            places = self._places(ids, record)
            if backward:
                other_places = self._places(input_ids[len(records) + i][1:-1], record).flip(0)
            for low in range(0, len(record.sequence), ROWS_AT_ONCE):
                part = slice(low, low + ROWS_AT_ONCE)
                vectors = forward[i][places[part]]
                if backward:
                    vectors = (vectors + backward[i][other_places[part]]) / 2
                yield _table(record, first + i, {"position": np.arange(low, low + len(vectors))}, vectors)

    def _places(self, ids: torch.Tensor, record: SequenceRecord) -> torch.Tensor:
        try:
            return token_of_nucleotide(ids, self.lengths, len(record.sequence))
        except ValueError as error:
            raise JobError(f"--resolution {self.resolution}: {record.place()}: {error}") from None


def _table(record: SequenceRecord, number: int, columns: dict, vectors: torch.Tensor) -> pyarrow.Table:
    names, numbers = pyarrow.repeat(record.name, len(vectors)), np.full(len(vectors), number)
    return pyarrow.table({"name": names, "record": numbers, **columns, "embedding": _vectors(vectors)})


def _vectors(rows: torch.Tensor) -> pyarrow.Array:
    return pyarrow.FixedSizeListArray.from_arrays(rows.numpy().ravel(), rows.shape[1])


def check_output(output: str, resolution: str):
    """Raise JobError for an output of an unknown kind."""
    if Path(output).suffix not in SUFFIXES:
        raise JobError(f"--output {output} must end in one of {', '.join(SUFFIXES)}")
    if resolution == "token" and Path(output).suffix != ".parquet":
        raise JobError("--resolution token needs a .parquet output: each row says which bases its token covers")


def report(records) -> str:
    """What was read, and a word about letters N."""
    text = f"{records.sequences:,} sequences, {records.bases:,} bp"
    if records.ambiguous:
        text += f"; {records.ambiguous:,} letters ({records.ambiguous / records.bases:.2%}) are none of A, C, G, T"
    return text


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m inference.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_arguments(parser)
    parser.add_argument("--model", required=True, help="StrandBERT folder, Hub name, or LoRA adapter folder")
    parser.add_argument("--output", required=True, help=f"file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("--pooling", default="mean", choices=[p for p in POOLINGS if p != "none"],
                        help="one vector of a sequence's tokens (default: mean, no special tokens)")  # fmt: skip
    parser.add_argument("--resolution", default="sequence", choices=RESOLUTIONS, help="what gets a vector of its own")
    parser.add_argument("--layer", type=int, default=-1, help="0 embeddings, 1 first layer, ... -1 last (default)")
    parser.add_argument("--reverse-complement", default="none", choices=STRANDS, help="average both strands, or not")
    parser.add_argument("--window", type=int, help="tokens; read longer sequences in windows (default: in one piece)")
    parser.add_argument("--overlap", type=int, default=0, help="tokens that neighbouring windows share (default: 0)")
    parser.add_argument("--batch-tokens", type=int, help="tokens per pass (default: 4096 on a CPU, 65536 on a GPU)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
                        help="arithmetic of the model; vectors are written in float32")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    with said_in_one_line():
        if (found := embed_file(options)) is not None:
            print(report(found), f"-> {options.output}")


def embed_file(options: argparse.Namespace):
    """The command with its options; returns what was read, in the main process."""
    check_output(options.output, options.resolution)
    index = [Path(options.output + ".index.tsv")] if options.output.endswith(MATRIX_SUFFIXES) else []
    check_files(options.output, index, (options.input, options.genome), options.overwrite)
    state = processes(options.cpu or not torch.cuda.is_available())
    model = load_encoder(options.model, getattr(torch, options.dtype)).to(state.device)
    choice = {name: getattr(options, name) for name in (
        "pooling", "layer", "resolution", "reverse_complement", "window", "overlap"
    )}  # fmt: skip
    try:
        depth_of(model.config, options.layer)
        check_options(*(choice[name] for name in ("pooling", "resolution", "reverse_complement", "window", "overlap")))
    except ValueError as error:
        raise JobError(str(error)) from None
    encoder = SequenceEncoder(options.model, model.config)
    embedder = Embedder(model, encoder, batch_tokens=options.batch_tokens, **choice)
    digest = fingerprint(model, encoder.tokenizer)
    settings = {"model": digest, "dtype": options.dtype, "device": state.device.type, **choice}

    def read():
        return read_records(options.input, options.genome, options.sequence_column, options.name_column)

    found = run(options.output, settings, read, embedder, state, options.overwrite, also=index)
    return found if state.is_main_process else None


if __name__ == "__main__":
    main()
