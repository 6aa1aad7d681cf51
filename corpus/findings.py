"""What is found out about a genome while its sequences are made."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from corpus.contigs import Contig


@dataclass
class Findings:
    """
    Numbers for the manifest.

    counts: contigs, their bp by kind, and sequences that were not made, by reason. variants: alleles applied and
    skipped, by kind and reason. repeats: one row per contig that was filtered. notes: lines for the user.
    """

    counts: Counter = field(default_factory=Counter)
    variants: Counter = field(default_factory=Counter)
    repeats: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count_contig(self, contig: Contig):
        self.counts["contigs"] += 1
        self.counts["contig_bases"] += len(contig)
        self.counts["acgt_bases"] += int(np.diff(contig.acgt).sum())
        self.counts["soft_masked_bases"] += int(np.diff(contig.soft_masked).sum())
