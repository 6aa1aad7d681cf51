"""
Sequences for pre-training from FASTA, text, CSV, TSV or Parquet, and the held-out split between them.

Everything downstream sees (name, sequence in the letters ACGTN) and runs of ACGT: ambiguous bases are dropped.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from corpus.fasta import GZIP_MAGIC, read_fasta
from tokenization.alphabet import normalize

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".frn", ".fas")
TEXT_SUFFIXES = (".txt", ".text", ".seq")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
GENOME_COLUMN = "species"  # of Parquet files: what tells genomes apart
COMPRESSED_SUFFIXES = (".gz", ".bgz")
SPLIT_SEED = 0  # the held-out part does not depend on --seed, so that seeds can be compared


class SequenceFileError(ValueError):
    """A file of sequences that cannot be used; the message names the file and, where there is one, the line."""


def read_sequences(path: str | Path, sequence_column: str = "sequence") -> Iterator[tuple[str, bytes]]:
    """
    Read (name, sequence) pairs; the format is told by the file's suffix, .gz and .bgz before it are allowed.

    FASTA: one pair per record. Text: one sequence per line. CSV, TSV, Parquet: one per row, from `sequence_column`.
    Sequences come back in the letters ACGTN (`tokenization.alphabet.normalize`); empty ones are left out.

    Raises:
        SequenceFileError, corpus.fasta.FastaError: missing, damaged or unknown file, absent column, a character
            that is no nucleotide, white space within a sequence; names file, line and value.
    """
    for name, sequence, _ in read_genomes(path, sequence_column):
        yield name, sequence


def read_genomes(path: str | Path, sequence_column: str = "sequence") -> Iterator[tuple[str, bytes, str]]:
    """
    As `read_sequences`, with the name of the genome: the `species` column of a Parquet file, else the file's path.
    """
    path = Path(path)
    try:
        for name, letters, *species in _read_rows(path, sequence_column):
            try:
                sequence = normalize(letters)
            except ValueError as error:
                raise SequenceFileError(f"{path}, {name}: {error}") from None
            if len(sequence) < len(letters.strip()):
                raise SequenceFileError(
                    f"{path}, {name}: white space within the sequence; give the letters in one piece, not as k-mers"
                )
            if sequence:
                yield name, sequence, species[0] if species else str(path)
    except OSError as error:
        raise SequenceFileError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_rows(path: Path, sequence_column: str) -> Iterator[tuple]:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED_SUFFIXES]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in FASTA_SUFFIXES:
        return ((record.name, record.sequence) for record in read_fasta(path))
    if not path.is_file():
        raise SequenceFileError(f"{path}: no such file")
    if suffix in TEXT_SUFFIXES:
        return _read_text(path)
    if suffix in DELIMITERS:
        return _read_delimited(path, DELIMITERS[suffix], sequence_column)
    if suffix == ".parquet":
        if path.suffix.lower() != suffix:
            raise SequenceFileError(f"{path}: Parquet is compressed inside; unpack the file to .parquet first")
        return _read_parquet(path, sequence_column)
    known = ", ".join([*FASTA_SUFFIXES, *TEXT_SUFFIXES, *DELIMITERS])
    raise SequenceFileError(f"{path}: unknown kind of file {suffix!r}; known are .parquet, {known} (also with .gz)")


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    opened = gzip.open(path, "rb") if compressed else open(path, "rb")
    with opened as binary:
        try:
            yield from io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SequenceFileError(f"{path}: damaged gzip file ({error}); download or copy it again") from None


def _read_text(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path), 1):
        if number == 1 and line.startswith(">"):
            raise SequenceFileError(f"{path}, line 1: this is FASTA; give the file a FASTA suffix such as .fa")
        yield f"line {number}", line


def csv_reader(lines: Iterable[str], delimiter: str = ","):
    """A strict `csv.reader` whose fields may hold a chromosome."""
    csv.field_size_limit(2**31 - 1)  # the most that Windows takes
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _read_delimited(path: Path, delimiter: str, column: str) -> Iterator[tuple[str, str]]:
    reader = csv_reader(_lines(path), delimiter)
    try:
        header = next(reader, [])
        if column not in header:
            raise _absent_column(path, column, header)
        index = header.index(column)
        for row in reader:
            if row and len(row) <= index:
                raise SequenceFileError(f"{path}, line {reader.line_num}: {len(row)} fields; {column!r} is missing")
            if row:
                yield f"line {reader.line_num}", row[index]
    except csv.Error as error:
        raise SequenceFileError(f"{path}, line {reader.line_num}: {error}") from None


def _read_parquet(path: Path, column: str) -> Iterator[tuple]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _absent_column(path, column, file.schema_arrow.names)
            columns = [column, *({GENOME_COLUMN} & set(file.schema_arrow.names))]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for value, *species in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    number += 1
                    if not isinstance(value, str | bytes):
                        raise SequenceFileError(f"{path}, row {number}: column {column!r} holds {value!r}, no sequence")
                    yield f"row {number}", value, *map(str, species)
    except pyarrow.ArrowException as error:
        raise SequenceFileError(f"{path}: not a readable Parquet file ({error})") from None


def _absent_column(path: Path, column: str, header: list[str]) -> SequenceFileError:
    return SequenceFileError(
        f"{path}, line 1: no column {column!r}; the columns are {', '.join(header) or '(none)'}. "
        "Name the one with --sequence_column"
    )


def heldout_bases(bases: np.ndarray, percentage: float) -> np.ndarray:
    """
    Plan which part of a file is held out for evaluation.

    Whole sequences (contigs) that fit into the percentage are held out, in an order that depends on nothing but
    their number. When less than half of it is reached so (one chromosome, or a few large ones), the rest is the end
    of the longest sequence that is left. No place of a file is in both parts; a sequence that several rows or files
    hold may be, which `training.data.prepare_data` counts.

    Args:
        bases: (num_sequences,) usable bp of each sequence.
        percentage: share of the bp to hold out, 0 to 100.

    Returns:
        (num_sequences,) bp held out from the end of each sequence: 0, a part, or all of it.
    """
    heldout = np.zeros_like(bases)
    target = bases.sum() * percentage / 100
    total = 0
    for index in np.random.default_rng(SPLIT_SEED).permutation(len(bases)):
        if total + bases[index] <= target:
            heldout[index] = bases[index]
            total += bases[index]
    if total < target / 2:
        heldout[np.argmax(bases - heldout)] += round(target - total)
    return heldout


def split_runs(runs: list[tuple[int, int]], heldout: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Split runs (half-open, ascending, in bp) into the first ones and the last `heldout` bp; a run may be cut."""
    position = len(runs)
    while position and heldout >= runs[position - 1][1] - runs[position - 1][0]:
        position -= 1
        heldout -= runs[position][1] - runs[position][0]
    if not position or not heldout:
        return runs[:position], runs[position:]
    start, end = runs[position - 1]
    return [*runs[: position - 1], (start, end - heldout)], [(end - heldout, end), *runs[position:]]
