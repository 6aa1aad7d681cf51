"""From files to training words: maximal ACGT runs, cut every `word_length` bases."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from corpus.fasta import read_fasta
from tokenization.alphabet import acgt_runs, normalize

SEPARATOR = 255  # between words, in arrays of letter codes A 0, C 1, G 2, T 3
CODES = np.full(256, SEPARATOR, dtype=np.uint8)
CODES[np.frombuffer(b"ACGT", dtype=np.uint8)] = np.arange(4, dtype=np.uint8)
DEFAULT_WORD_LENGTH = 1000  # bp; DNABERT-2 trained on 1,000 bp lines


def read_sequences(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield (where, sequence) of one file; `where` names file and line or row for error messages.

    .parquet: column `sequence`. .txt, .txt.gz: one sequence per line. Anything else: FASTA, plain, .gz or .bgz.
    Raises FileNotFoundError, corpus.fasta.FastaError, ValueError.
    """
    path = Path(path)
    suffixes = path.suffixes[-2:]
    if suffixes[-1:] == [".parquet"]:
        yield from _read_parquet(path)
    elif suffixes[-1:] == [".txt"] or suffixes == [".txt", ".gz"]:
        yield from _read_text(path)
    else:
        for record in read_fasta(path):
            yield f"{path}, line {record.line} ({record.name})", record.sequence


def _read_text(path: Path) -> Iterator[tuple[str, bytes]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield f"{path}, line {number}", line
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file after line {number}: {error}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    if "sequence" not in file.schema_arrow.names:
        raise ValueError(f"{path}: no column `sequence`; it has {', '.join(file.schema_arrow.names)}")
    row = 0
    for batch in file.iter_batches(batch_size=1024, columns=["sequence"]):
        for sequence in batch.column(0).to_pylist():
            if sequence is None:
                raise ValueError(f"{path}, row {row}: the sequence is missing")
            yield f"{path}, row {row}", sequence.encode() if isinstance(sequence, str) else sequence
            row += 1


def read_codes(path: str | Path, word_length: int, both_strands: bool = False) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (codes, dropped) for each sequence of a file.

    codes: uint8, every word of the sequence with a SEPARATOR in front (and, with `both_strands`, the words of its
    reverse complement after them); dropped: letters that are not ACGT (N, IUPAC). Raises as `read_sequences`, and
    ValueError naming file, line, position and character when a character is no nucleotide.
    """
    for where, raw in read_sequences(path):
        try:
            sequence = normalize(raw)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        runs = acgt_runs(sequence)
        letters = CODES[np.frombuffer(sequence, dtype=np.uint8)]
        words = cut_words(letters, runs, word_length)
        if both_strands:
            reverse_runs = [(len(letters) - end, len(letters) - start) for start, end in reversed(runs)]
            complement = np.where(letters == SEPARATOR, letters, 3 - letters)[::-1]
            words = np.concatenate([words, cut_words(complement, reverse_runs, word_length)])
        yield words, len(sequence) - sum(end - start for start, end in runs)


def cut_words(letters: np.ndarray, runs: list[tuple[int, int]], word_length: int) -> np.ndarray:
    """Words of letter codes: each run cut every `word_length` bases from its start, SEPARATOR before each word."""
    if word_length < 2:
        raise ValueError(f"word_length must be at least 2 bases, got {word_length}")
    pieces = []
    for start, end in runs:
        run = letters[start:end]
        whole = len(run) // word_length * word_length
        block = np.full((whole // word_length, word_length + 1), SEPARATOR, dtype=np.uint8)
        block[:, 1:] = run[:whole].reshape(-1, word_length)
        pieces.append(block.ravel())
        if whole < len(run):
            pieces += [np.array([SEPARATOR], dtype=np.uint8), run[whole:]]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint8)
