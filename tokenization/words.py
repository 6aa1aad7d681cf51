"""From files to training words: maximal ACGT runs, cut every `word_length` bases."""

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus.fasta import read_fasta
from tokenization.alphabet import acgt_runs, normalize

SEPARATOR = 255  # between words, in arrays of letter codes A 0, C 1, G 2, T 3
CODES = np.full(256, SEPARATOR, dtype=np.uint8)
CODES[np.frombuffer(b"ACGT", dtype=np.uint8)] = np.arange(4, dtype=np.uint8)
BLOCK_BASES = 1 << 20  # at most so many bases (or one longer word) are copied at a time
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
                yield f"{path}, line {number}", line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file after line {number}: {error}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "sequence" not in file.schema_arrow.names:
                raise ValueError(f"{path}: no column `sequence`; it has {', '.join(file.schema_arrow.names)}")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=["sequence"]):
                for sequence in batch.column(0).to_pylist():
                    row += 1
                    if not isinstance(sequence, str | bytes):
                        raise ValueError(f"{path}, row {row}: column 'sequence' holds {sequence!r}, no sequence")
                    yield f"{path}, row {row}", sequence.encode() if isinstance(sequence, str) else sequence
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


@dataclass
class Counts:
    """What was read: sequences, bases (ACGT, forward strand only) and dropped letters (N and IUPAC)."""

    sequences: int = 0
    bases: int = 0
    dropped: int = 0


def read_codes(
    paths: Iterable[str | Path], word_length: int, both_strands: bool = False, counts: Counts | None = None
) -> Iterator[np.ndarray]:
    """Yield the words of all files as blocks of letter codes (uint8), a SEPARATOR in front of each word.

    With `both_strands` the words of the reverse complement of each run follow those of the run. `counts` is kept up
    to date. Raises as `read_sequences`, and ValueError naming file, line, position and character when a character is
    no nucleotide.
    """
    if word_length < 2:
        raise ValueError(f"word_length must be at least 2 bases, got {word_length}")
    counts = Counts() if counts is None else counts
    for path in paths:
        for where, sequence in read_sequences(path):
            try:
                sequence = normalize(sequence)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            letters = np.frombuffer(sequence, dtype=np.uint8)
            counts.sequences += 1
            counts.dropped += len(letters)
            for start, end in acgt_runs(sequence):
                counts.bases += end - start
                counts.dropped -= end - start
                yield from cut_words(letters[start:end], word_length, reverse=False)
                if both_strands:
                    yield from cut_words(letters[start:end], word_length, reverse=True)


def cut_words(run: np.ndarray, word_length: int, reverse: bool) -> Iterator[np.ndarray]:
    """Codes of one ACGT run (or of its reverse complement) cut every `word_length` bases, in blocks of whole words."""
    step = max(1, BLOCK_BASES // word_length) * word_length
    for start in range(0, len(run), step):
        if reverse:
            codes = 3 - CODES[run[max(0, len(run) - start - step) : len(run) - start]][::-1]
        else:
            codes = CODES[run[start : start + step]]
        whole = len(codes) // word_length
        block = np.full((whole, word_length + 1), SEPARATOR, dtype=np.uint8)
        block[:, 1:] = codes[: whole * word_length].reshape(whole, word_length)
        rest = codes[whole * word_length :]
        yield block.ravel() if len(rest) == 0 else np.concatenate([block.ravel(), [np.uint8(SEPARATOR)], rest])


def load_codes(blocks: Iterable[np.ndarray], limit: int) -> tuple[np.ndarray, bool]:
    """Join blocks into one array closed by a SEPARATOR, in place; stops once it holds `limit` codes.

    Returns (codes, whether all blocks were read). The array grows by reallocation, so that no second copy is needed.
    """
    codes = np.empty(0, dtype=np.uint8)
    used = 0
    for block in blocks:
        if used + len(block) + 1 > len(codes):
            codes.resize(used + len(block) + 1 + max(1 << 20, used >> 4), refcheck=False)
        codes[used : used + len(block)] = block
        used += len(block)
        if used >= limit:
            break
    else:
        codes.resize(used + 1, refcheck=False)
        codes[used] = SEPARATOR
        return codes, True
    codes.resize(used + 1, refcheck=False)
    codes[used] = SEPARATOR
    return codes, False


def split_codes(codes: np.ndarray) -> Iterator[np.ndarray]:
    """Undo `load_codes`: blocks of whole words."""
    start, last = 0, len(codes) - 1
    while start < last:
        end = min(start + BLOCK_BASES, last)
        while codes[end] != SEPARATOR:
            end += 1
        yield codes[start:end]
        start = end
