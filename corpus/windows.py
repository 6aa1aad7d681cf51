"""Where the sequences of a contig begin and end: the windows of DNABERT-2 and the segments of dnaGrinder."""

import hashlib

import numpy as np


def random_stream(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and on names (species, file, contig, purpose), not on who asks when."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


def fixed_windows(runs: np.ndarray, window: int, shortest: int) -> np.ndarray:
    """
    Cut runs of ACGT into windows that lie end to end (DNABERT-2, section 4.1: sequences with N are excluded).

    The last window of a run may be shorter; it is dropped when it is below `shortest` bp.

    Returns:
        int64 (windows, 2), half-open, ascending.
    """
    counts = np.maximum(0, (runs[:, 1] - runs[:, 0] + window - shortest) // window)
    run = np.repeat(np.arange(len(runs)), counts)
    number = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the window in its run
    starts = runs[run, 0] + number * window
    return np.stack([starts, np.minimum(starts + window, runs[run, 1])], axis=1)


def overlapping_segments(length: int, segment: int, overlap: int, shortest: int) -> np.ndarray:
    """
    Segments of a contig that share `overlap` bp with the one before and the one after (dnaGrinder, section 2.1.2).

    The last one is moved left so that it ends with the contig. A contig between `shortest` and `segment` bp is one
    segment; a shorter one has none.

    Returns:
        int64 (segments, 2), half-open, ascending.
    """
    if length < shortest:
        return np.empty((0, 2), np.int64)
    starts = np.arange(0, max(length - overlap, 1), segment - overlap)
    starts = np.minimum(starts, max(0, length - segment))
    return np.stack([starts, np.minimum(starts + segment, length)], axis=1)


def random_cuts(segments: np.ndarray, cut: int, random: np.random.Generator) -> np.ndarray:
    """Cut `cut` bp out of each segment at a random start: within the first 200 bp of 12,200 for a cut of 12,000."""
    room = segments[:, 1] - segments[:, 0] - cut
    starts = segments[:, 0] + random.integers(0, np.maximum(room, 1))
    return np.stack([starts, starts + cut], axis=1)


def within_runs(intervals: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Boolean (count,): whether an interval lies within one of the ascending runs."""
    if not len(runs):
        return np.zeros(len(intervals), bool)
    run = np.searchsorted(runs[:, 0], intervals[:, 0], side="right") - 1
    return (run >= 0) & (intervals[:, 1] <= runs[run, 1])
