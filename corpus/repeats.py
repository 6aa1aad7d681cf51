"""Repeat filtering of soft-masked genomes: segments that cover what is not repetitive (dnaGrinder, section 3.3.1).

Non-repetitive stretches below a threshold are ignored. From the first stretch that is not yet covered a segment
extends to the right to its full length; what it takes in on the way is covered too. A longer stretch is split. Where
a gap of N, or the end of the contig, stops the way, the segment ends there and extends to the left instead.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from numba import njit

from corpus.contigs import Contig

# Retained shares that the paper prints for GRCh38, chromosomes 1 to 22 and X.
PAPER_RETAINED = dict(
    zip(
        [*map(str, range(1, 23)), "X"],
        [0.50, 0.50, 0.55, 0.53, 0.52, 0.51, 0.54, 0.56, 0.47, 0.56, 0.53, 0.54]
        + [0.46, 0.44, 0.44, 0.49, 0.52, 0.51, 0.55, 0.56, 0.50, 0.57, 0.50],
        strict=True,
    )
)


@dataclass(frozen=True)
class Filtered:
    """
    What repeat filtering keeps of a contig.

    Shares are of the contig's length, gaps included. `too_short` counts kept stretches, and `too_short_bases` their
    bp, in runs of ACGT shorter than a segment; no segment can cover them.
    """

    segments: np.ndarray  # int64 (count, 2), all of one length
    threshold: int  # bp
    non_repetitive: float
    retained: float
    too_short: int
    too_short_bases: int


def filter_repeats(contig: Contig, segment: int, threshold: int | None = None, share: float | None = None) -> Filtered:
    """
    Segments of `segment` bp that cover every non-repetitive stretch of at least `threshold` bp.

    Without a threshold the smallest one is taken that retains at most `share` of the contig, rounded up to whole
    segments; without a share, the contig's own share of non-repetitive bases, which is what the paper's chromosomes
    come to.
    """
    stretches = contig.non_repetitive
    lengths = stretches[:, 1] - stretches[:, 0]
    non_repetitive = int(lengths.sum()) / len(contig)
    run_of = np.searchsorted(contig.acgt[:, 0], stretches[:, 0], side="right") - 1
    runs = contig.acgt[run_of]
    long_enough = runs[:, 1] - runs[:, 0] >= segment

    def segments_for(threshold: int) -> np.ndarray:
        kept = long_enough & (lengths >= threshold)
        return _cover(stretches[kept], runs[kept], segment)

    if threshold is None:
        most = math.ceil((non_repetitive if share is None else share) * len(contig) / segment)
        threshold = _smallest(np.unique(lengths[long_enough]), lambda t: len(segments_for(t)) <= most)
    segments = segments_for(threshold)
    lost = ~long_enough & (lengths >= threshold)
    retained = len(segments) * segment / len(contig)
    return Filtered(segments, threshold, non_repetitive, retained, int(lost.sum()), int(lengths[lost].sum()))


def _smallest(lengths: np.ndarray, fits) -> int:
    """The smallest threshold that fits, by bisection over the lengths that occur; behind them all none is kept."""
    low, high = 0, len(lengths)
    while low < high:
        middle = (low + high) // 2
        if fits(int(lengths[middle])):
            high = middle
        else:
            low = middle + 1
    return int(lengths[low]) if low < len(lengths) else int(lengths[-1]) + 1 if len(lengths) else 1


@njit(cache=True)
def _cover(stretches, runs, segment):
    """Segments that cover ascending stretches, each within its run of ACGT; runs are as long as a segment or longer."""
    starts = []
    covered = 0
    for index in range(len(stretches)):
        start, end = stretches[index]
        start = max(start, covered)
        while start < end:
            covered = min(start + segment, runs[index, 1])
            starts.append(covered - segment)
            start = covered
    out = np.empty((len(starts), 2), np.int64)
    for index in range(len(starts)):
        out[index, 0] = starts[index]
        out[index, 1] = starts[index] + segment
    return out


def paper_retained(species: str, contig: str) -> float | None:
    """The share that the paper prints for a human chromosome or a piece of it (chr1, 1, chr1_28640_687812)."""
    match = re.fullmatch(r"(?:chr)?(\d+|X)(?:_\d+_\d+)?", contig)
    return PAPER_RETAINED.get(match[1]) if match and species in ("Homo sapiens", "Human") else None
