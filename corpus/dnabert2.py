"""The DNABERT-2 corpus (section 4.1, table 7): windows without N, a target number of bases from each species."""

from collections.abc import Iterator

import numpy as np

from corpus.contigs import Contig, read_contigs
from corpus.findings import Findings
from corpus.recipe import Dnabert2Recipe, Genome
from corpus.sequences import Sequences, reference_sequences
from corpus.windows import fixed_windows, random_stream


def make_sequences(recipe: Dnabert2Recipe, genome: Genome, findings: Findings) -> Iterator[tuple[Contig, Sequences]]:
    """The windows of each contig of a genome, in the order of the file."""
    chosen = _sample(recipe, genome, findings) if genome.bases else None
    first = 0
    for contig in read_contigs(genome.path):
        findings.count_contig(contig)
        windows = _windows(recipe, contig)
        if chosen is not None:
            first, last = first + len(windows), first
            windows = windows[chosen[last:first]]
        for sequences in reference_sequences(contig, windows):
            yield contig, sequences


def _windows(recipe: Dnabert2Recipe, contig: Contig) -> np.ndarray:
    return fixed_windows(contig.acgt, recipe.window, recipe.shortest or recipe.window)


def _sample(recipe: Dnabert2Recipe, genome: Genome, findings: Findings) -> np.ndarray:
    """Which windows of a genome to take so that they hold `genome.bases` bp: boolean, in the order of the file."""
    lengths = [np.diff(_windows(recipe, contig))[:, 0] for contig in read_contigs(genome.path)]
    lengths = np.concatenate(lengths)
    order = random_stream(recipe.seed, genome.species, genome.source, "sample").permutation(len(lengths))
    enough = int(np.searchsorted(np.cumsum(lengths[order]), genome.bases)) + 1
    if enough > len(lengths):
        findings.notes.append(f"{genome.bases:,} bp were asked for, its windows hold {lengths.sum():,}")
    chosen = np.zeros(len(lengths), bool)
    chosen[order[:enough]] = True
    return chosen
