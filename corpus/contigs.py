"""Contigs with their soft-masking and their gaps as intervals, one contig in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus.fasta import FastaError, read_fasta

BLOCK = 1 << 24  # bp looked at together: bounds the memory of the search for intervals
GAP, BASE, MASKED_BASE = 0, 1, 2  # what a letter is
UPPER_CASE = bytes.maketrans(b"acgtuU", b"ACGTTT")


def _kinds() -> bytes:
    table = bytearray(256)
    for letters, kind in ((b"ACGTU", BASE), (b"acgtu", MASKED_BASE)):
        for letter in letters:
            table[letter] = kind
    return bytes(table)


_KINDS = _kinds()


@dataclass(frozen=True)
class Contig:
    """
    One contig; `letters` are those of the file, case kept.

    Intervals are half-open, in bp, ascending: int64 (count, 2). Every letter but A, C, G, T and U is a gap.
    """

    name: str
    letters: bytes
    acgt: np.ndarray  # maximal runs without a gap
    soft_masked: np.ndarray  # maximal runs of lower-case bases
    non_repetitive: np.ndarray  # maximal runs of upper-case bases

    def __len__(self) -> int:
        return len(self.letters)

    def soft_masked_bases(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Number of soft-masked bp in each interval [starts, ends)."""
        return covered_bases(self.soft_masked, ends) - covered_bases(self.soft_masked, starts)


def covered_bases(intervals: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Number of bp that ascending intervals (count, 2) cover before each position."""
    if not len(intervals):
        return np.zeros(len(positions), np.int64)
    before = np.concatenate(([0], np.cumsum(intervals[:, 1] - intervals[:, 0])))
    index = np.searchsorted(intervals[:, 0], positions, side="right") - 1
    inside = np.minimum(positions, intervals[index, 1]) - intervals[index, 0]
    return np.where(index >= 0, before[index] + inside, 0)


def find_intervals(letters: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intervals (acgt, soft_masked, non_repetitive) of a sequence; see `Contig`."""
    starts, kinds, last = [], [], -1
    for offset in range(0, len(letters), BLOCK):
        block = np.frombuffer(letters[offset : offset + BLOCK].translate(_KINDS), np.uint8)
        change = np.flatnonzero(block[1:] != block[:-1]) + 1
        if block[0] != last:
            change = np.concatenate(([0], change))
        starts.append(change + offset)
        kinds.append(block[change])
        last = block[-1]
    start = np.concatenate([np.empty(0, np.int64), *starts])
    kind = np.concatenate([np.empty(0, np.uint8), *kinds])
    end = np.append(start[1:], len(letters))
    runs = np.stack([start, end], axis=1)
    base = kind != GAP
    before = np.concatenate(([False], base[:-1])) if len(base) else base
    after = np.concatenate((base[1:], [False])) if len(base) else base
    acgt = np.stack([start[base & ~before], end[base & ~after]], axis=1)
    return acgt, runs[kind == MASKED_BASE], runs[kind == BASE]


def read_contigs(path: str | Path) -> Iterator[Contig]:
    """
    Read a genome, plain, gzip or bgzip.

    Raises:
        FastaError: what `corpus.fasta.read_fasta` refuses, and two contigs of one name.
    """
    lines: dict[str, int] = {}
    for record in read_fasta(path):
        if record.name in lines:
            raise FastaError(
                f"{path}, line {record.line}: contig {record.name!r} was already at line {lines[record.name]}; "
                "coordinates would be ambiguous, rename or remove one"
            )
        lines[record.name] = record.line
        yield Contig(record.name, record.sequence, *find_intervals(record.sequence))
