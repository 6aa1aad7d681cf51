"""
Motifs that recur where attributions are high, and their export in MEME format.

1. Seqlets: in each sequence the windows of 15 bp whose summed attribution is a local maximum and lies two standard
   deviations above the mean window of all sequences, with 5 bp on either side; they do not overlap.
2. Seed: the 6-mer, on either strand, that is most over-represented in the seqlets against all sequences.
3. The seqlets are aligned at the seed, then at the best match of the growing weight matrix, until nothing changes; a
   seqlet counts as a site while it matches better than 95 % of the seqlets do with their letters shuffled.
4. Weak ends are cut off, the sites are taken away, and the rest is searched again.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.logo import information
from inference.reading import reverse_complement
from tokenization.tokenizer_files import write_text_atomically

WINDOW, FLANK, SEED, WIDTH = 15, 5, 6, 18  # bp
DEVIATIONS = 2.0
FEWEST_SITES = 10
WEAK = 0.25  # bits; positions at the ends below this are cut off
PSEUDOCOUNT = 1.0
ROUNDS = 20
_CODES = np.full(256, 4, np.int64)
_CODES[np.frombuffer(b"ACGT", np.uint8)] = range(4)


@dataclass
class Motif:
    """Letter probabilities (positions, 4) in the order A, C, G, T, and how many sites they come from."""

    name: str
    probabilities: np.ndarray
    sites: int

    @property
    def consensus(self) -> str:
        """The likeliest base at each position."""
        return "".join("ACGT"[base] for base in self.probabilities.argmax(1))


def find_motifs(sequences: list[bytes], attributions: list[np.ndarray], most: int = 5, seed: int = 0) -> list[Motif]:
    """
    Up to `most` motifs, the strongest first; fewer, or none, when fewer than 10 sites agree.

    Args:
        sequences: letters ACGTN. attributions: (bp,) each.
        seed: of the shuffling.
    """
    background = base_frequencies(sequences)
    seqlets = _seqlets(sequences, attributions)
    random = np.random.default_rng(seed)
    expected = _count_kmers(sequences)
    motifs: list[Motif] = []
    while len(motifs) < most and len(seqlets) >= FEWEST_SITES:
        start = _seed(seqlets, expected)
        if start is None:
            break
        matrix, sites = _grow(seqlets, start, background, random)
        if len(sites) < FEWEST_SITES:
            break
        trimmed = _without_weak_ends(matrix)
        if len(trimmed) >= SEED - 2:
            motifs.append(Motif(f"motif_{len(motifs) + 1}_{_consensus(trimmed)}", trimmed, len(sites)))
        taken = set(sites)
        seqlets = [seqlet for index, seqlet in enumerate(seqlets) if index not in taken]
    return motifs


def base_frequencies(sequences: list[bytes]) -> np.ndarray:
    """Shares of A, C, G, T on both strands together: float64 (4,)."""
    counts = np.full(4, PSEUDOCOUNT)
    for sequence in sequences:
        counts += np.bincount(_codes(sequence), minlength=5)[:4]
    return (counts + counts[::-1]) / (2 * counts.sum())


def _codes(sequence: bytes) -> np.ndarray:
    return _CODES[np.frombuffer(sequence, np.uint8)]


def _consensus(matrix: np.ndarray) -> str:
    return "".join("ACGT"[base] for base in matrix.argmax(1))


def _seqlets(sequences: list[bytes], attributions: list[np.ndarray]) -> list[bytes]:
    """Stretches of high attribution, not overlapping within a sequence, highest first."""
    sums = [np.convolve(values, np.ones(WINDOW), "valid") if len(values) >= WINDOW else np.empty(0)
            for values in attributions]  # fmt: skip
    every = np.concatenate(sums) if sums else np.empty(0)
    if not len(every):
        return []
    threshold = every.mean() + DEVIATIONS * every.std()
    found = []
    for sequence, windows in zip(sequences, sums, strict=True):
        beside = np.pad(windows, 1, constant_values=-np.inf)
        peaks = np.flatnonzero((windows > threshold) & (windows >= beside[:-2]) & (windows >= beside[2:])).tolist()
        taken: list[int] = []
        for peak in sorted(peaks, key=lambda place: -windows[place]):
            if all(abs(peak - other) >= WINDOW + 2 * FLANK for other in taken):
                taken.append(peak)
                found.append((windows[peak], sequence[max(0, peak - FLANK) : peak + WINDOW + FLANK]))
    return [seqlet for _, seqlet in sorted(found, key=lambda pair: -pair[0])]


def _count_kmers(sequences: list[bytes]) -> Counter:
    """How often each 6-mer occurs, read on both strands."""
    counts: Counter = Counter()
    for sequence in sequences:
        for strand in (sequence, reverse_complement(sequence)):
            counts.update(strand[i : i + SEED] for i in range(len(strand) - SEED + 1))
    return counts


def _seed(seqlets: list[bytes], everywhere: Counter) -> bytes | None:
    """The 6-mer with the largest observed * log(observed / expected) in the seqlets."""
    found = _count_kmers(seqlets)
    share = found.total() / max(1, everywhere.total())
    scores = {kmer: count * np.log(count / (share * everywhere[kmer]))
              for kmer, count in found.items() if b"N" not in kmer and everywhere[kmer]}  # fmt: skip
    best = max(sorted(scores), key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] > 0 else None


def _grow(seqlets: list[bytes], seed: bytes, background: np.ndarray, random) -> tuple[np.ndarray, list[int]]:
    """Letter probabilities (WIDTH, 4) around a seed, and the indices of the seqlets that have a site."""
    before = (WIDTH - SEED) // 2
    padded = [b"N" * WIDTH + seqlet + b"N" * WIDTH for seqlet in seqlets]
    strands = [(_codes(s), _codes(reverse_complement(s))) for s in padded]
    shuffled = [tuple(_codes(s) for s in (text, reverse_complement(text)))
                for text in (b"N" * WIDTH + bytes(random.permutation(list(s)).astype(np.uint8)) + b"N" * WIDTH
                             for s in seqlets)]  # fmt: skip
    matrix = np.tile(background, (WIDTH, 1))
    matrix[before : before + SEED] = 0.1 * background
    matrix[np.arange(before, before + SEED), _codes(seed)] += 0.9
    sites: list[int] = []
    for _ in range(ROUNDS):
        weights = np.column_stack([np.log(matrix / background), np.zeros(WIDTH)])
        threshold = np.quantile([_best_site(pair, weights)[0] for pair in shuffled], 0.95)
        best = [_best_site(pair, weights) for pair in strands]
        chosen = [index for index, (score, _) in enumerate(best) if score > max(threshold, 0)]
        if not chosen:
            return matrix, []
        letters = np.stack([best[index][1] for index in chosen])
        counts = np.stack([(letters == base).sum(0) for base in range(4)], axis=1)
        updated = (counts + PSEUDOCOUNT * background) / (counts.sum(1, keepdims=True) + PSEUDOCOUNT)
        if chosen == sites and np.allclose(updated, matrix):
            break
        matrix, sites = updated, chosen
    return matrix, sites


def _best_site(strands: tuple[np.ndarray, np.ndarray], weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and letter codes (WIDTH,) of the best match on either strand; N counts nothing."""
    results = []
    for codes in strands:
        windows = np.lib.stride_tricks.sliding_window_view(codes, WIDTH)
        scores = weights[np.arange(WIDTH), windows].sum(1)
        results.append((float(scores.max()), windows[scores.argmax()]))
    return max(results, key=lambda result: result[0])


def _without_weak_ends(matrix: np.ndarray) -> np.ndarray:
    strong = np.flatnonzero(information(matrix).sum(1) >= WEAK)
    return matrix[strong[0] : strong[-1] + 1] if len(strong) else matrix[:0]


def write_meme(path: str | Path, motifs: list[Motif], sequences: list[bytes]):
    """
    Write motifs in MEME's minimal format, version 4, which Tomtom, FIMO and Biopython read.

    No E-value is written: the motifs come from attributions, not from a test. sequences give the background.
    """
    lines = ["MEME version 4", "", "ALPHABET= ACGT", "", "strands: + -", "", "Background letter frequencies"]
    frequencies = zip("ACGT", base_frequencies(sequences), strict=True)
    lines += [" ".join(f"{base} {frequency:.5f}" for base, frequency in frequencies), ""]
    for motif in motifs:
        lines.append(f"MOTIF {motif.name}")
        lines.append(f"letter-probability matrix: alength= 4 w= {len(motif.probabilities)} nsites= {motif.sites}")
        lines += [" ".join(f"{probability:.6f}" for probability in row) for row in motif.probabilities]
        lines.append("")
    write_text_atomically(path, "\n".join(lines))
