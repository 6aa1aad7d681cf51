"""The dnaGrinder corpus (sections 2.1.2 and 3.3): overlapping segments or repeat filtering, random cuts, variants."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from corpus.contigs import UPPER_CASE, Contig, read_contigs
from corpus.findings import Findings
from corpus.haplotypes import haplotype_sequence
from corpus.recipe import DnagrinderRecipe, Genome
from corpus.repeats import filter_repeats, paper_retained
from corpus.sequences import Sequences, groups, join, reference_sequences
from corpus.variants import PhasedVariants, VariantError
from corpus.windows import overlapping_segments, random_cuts, random_stream, within_runs


def make_sequences(recipe: DnagrinderRecipe, genome: Genome, findings: Findings) -> Iterator[tuple[Contig, Sequences]]:
    """
    The cuts of each contig, round after round; with a VCF both haplotypes of a random individual for each cut.

    Raises:
        VariantError: what `corpus.variants` refuses; no contig of the genome has variants.
    """
    variants = _Individuals(genome) if genome.vcf else None
    try:
        for contig in read_contigs(genome.path):
            findings.count_contig(contig)
            segments = _segments(recipe, genome, contig, findings)
            file = variants.open(contig) if variants and len(segments) else None
            for number in range(recipe.rounds):
                random = random_stream(recipe.seed, genome.species, genome.source, contig.name, f"round {number}")
                cuts = random_cuts(segments, recipe.cut, random)
                complete = within_runs(cuts, contig.acgt)
                findings.counts["dropped_with_gap"] += int((~complete).sum())
                if file is None:
                    made = reference_sequences(contig, cuts[complete])
                else:
                    made = _haplotypes(contig, cuts[complete], file, random, findings)
                for sequences in made:
                    yield contig, sequences
        if variants:
            variants.check(findings)
        if genome.repeats == "filter" and findings.counts["soft_masked_bases"] in (0, findings.counts["acgt_bases"]):
            findings.notes.append("repeats = filter, but its letters are of one case: it is not soft-masked")
    finally:
        if variants:
            variants.close()


def _segments(recipe: DnagrinderRecipe, genome: Genome, contig: Contig, findings: Findings) -> np.ndarray:
    if genome.repeats == "keep":
        segments = overlapping_segments(len(contig), recipe.segment, recipe.overlap, recipe.cut)
        findings.counts["contigs_too_short"] += not len(segments)
        return segments
    filtered = filter_repeats(contig, recipe.segment, recipe.threshold, recipe.retained)
    findings.repeats.append(
        {
            "contig": contig.name,
            "bases": len(contig),
            "threshold": filtered.threshold,
            "non_repetitive": round(filtered.non_repetitive, 4),
            "retained": round(filtered.retained, 4),
            "retained_paper": paper_retained(genome.species, contig.name),
            "segments": len(filtered.segments),
            "stretches_in_short_runs": filtered.too_short,
            "bases_in_short_runs": filtered.too_short_bases,
        }
    )
    return filtered.segments


class _Individuals:
    """The VCF of a genome, or one per contig where its name has {contig}; one is open at a time."""

    def __init__(self, genome: Genome):
        self.genome = genome
        self.file: PhasedVariants | None = None
        self.seen: list[str] = []
        self.without: list[str] = []

    def open(self, contig: Contig) -> tuple[PhasedVariants, str] | None:
        """The file and its name of a contig, after comparing it with the reference; None when it has no variants."""
        self.seen.append(contig.name)
        path = Path(self.genome.vcf.replace("{contig}", contig.name))
        if self.file is None or self.file.path != path:
            self.close()
            self.file = PhasedVariants(path) if path.is_file() or path == Path(self.genome.vcf) else None
        name = self.file.contig_for(contig.name, len(contig)) if self.file else None
        if name is None:
            self.without.append(contig.name)
            return None
        self.file.check_reference(name, contig.letters)
        return self.file, name

    def check(self, findings: Findings):
        if self.seen and len(self.without) == len(self.seen):
            names = f"contigs there: {', '.join(self.file.contigs[:5])}; " if self.file else ""
            raise VariantError(
                f"{self.genome.vcf}: no contig of {self.genome.path} has variants; {names}in the genome: "
                f"{', '.join(self.seen[:5])}; rename with `bcftools annotate --rename-chrs` or give the other file"
            )

        if self.without:
            findings.counts["contigs_without_variants"] = len(self.without)
            more = ", ..." if len(self.without) > 5 else ""
            findings.notes.append(
                f"{len(self.without)} of {len(self.seen)} contigs have no variants: {', '.join(self.without[:5])}{more}"
            )

    def close(self):
        if self.file:
            self.file.close()
        self.file = None


def _haplotypes(
    contig: Contig, cuts: np.ndarray, file: tuple[PhasedVariants, str], random: np.random.Generator, findings: Findings
) -> Iterator[Sequences]:
    """Each cut twice, as the two haplotypes of a random individual, longer or shorter by what it carries."""
    variants, name = file
    for part in groups(cuts):
        parts, rows, samples, haplotypes = [], [], [], []
        for row, (start, end) in enumerate(part.tolist()):
            sample = variants.samples[random.integers(len(variants.samples))]
            for number, alleles in enumerate(variants.read(name, start, end, sample), 1):
                if alleles.absent:
                    findings.counts["dropped_haploid"] += 1
                    continue
                try:
                    haplotype = haplotype_sequence(contig.letters, alleles.variants, start, end)
                except VariantError as error:
                    where = f"contig {name!r}, sample {sample!r}, {start:,} to {end:,}"
                    raise VariantError(f"{variants.path}: {where}: {error}") from None
                findings.variants.update({f"applied {kind}": n for kind, n in haplotype.applied.items()})
                findings.variants.update(
                    {f"skipped {why}": n for why, n in (haplotype.skipped + alleles.skipped).items()}
                )
                findings.variants["reference"] += alleles.reference
                findings.variants["unphased"] += alleles.unphased
                sequence = haplotype.sequence.translate(UPPER_CASE)
                if reason := _unusable(sequence, end - start):
                    findings.counts[reason] += 1
                    continue
                parts.append(sequence)
                rows.append(row)
                samples.append(sample)
                haplotypes.append(number)
        letters, offsets = join(parts)
        start, end = part[rows].T
        share = contig.soft_masked_bases(start, end) / (end - start)
        yield Sequences(
            letters, offsets, start, end, np.zeros(len(rows), bool), share, samples, np.array(haplotypes, np.int8)
        )


def _unusable(sequence: bytes, cut: int) -> str | None:
    """Why a haplotype's sequence is not taken: a variant brought N, deleted everything, or inserted very much."""
    if not sequence:
        return "dropped_deleted"
    if len(sequence) > 2 * cut:
        return "dropped_over_twice_the_cut"
    return "dropped_with_gap" if sequence.translate(None, b"ACGT") else None
