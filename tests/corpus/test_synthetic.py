"""Synthetic genomes: two species, valid FASTA, reproducible, with the structure that their docstring promises."""

from collections import Counter

import numpy as np
import pytest

from corpus.fasta import read_fasta
from corpus.synthetic import COMPLEMENT, PROMOTERS, SPECIES, make_species, synthetic_genome, write_synthetic_genomes


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    """Name -> sequence (one string of all contigs) of both species, 200,000 bp each."""
    paths = write_synthetic_genomes(tmp_path_factory.mktemp("genomes"), 200_000)
    assert [path.name for path in paths] == [f"{name}.fa.gz" for name in SPECIES]
    return {path.name.split(".")[0]: b"".join(r.sequence for r in read_fasta(path)) for path in paths}


def share(sequence, letters):
    return sum(sequence.count(bytes([letter])) for letter in letters) / len(sequence)


def test_each_species_has_the_size_that_was_asked_for(genomes):
    assert [len(sequence) for sequence in genomes.values()] == [200_000, 200_000]


def test_species_differ_in_base_composition(genomes):
    assert share(genomes["borealis"].upper(), b"GC") < 0.45 < 0.52 < share(genomes["australis"].upper(), b"GC")


def test_repeats_are_soft_masked_and_recur(genomes):
    for sequence in genomes.values():
        assert 0.3 < share(sequence, b"acgt") < 0.7
        masked = Counter(sequence[i : i + 25] for i in range(len(sequence) - 25) if sequence[i : i + 25].islower())
        assert masked.most_common(1)[0][1] > 20


def test_genes_are_planted_on_both_strands(genomes):
    for sequence in genomes.values():
        for strand in (sequence, sequence.translate(COMPLEMENT)[::-1]):
            boxes = [i for i in range(len(strand)) if strand.startswith(PROMOTERS[0], i)]
            assert sum(strand.startswith(PROMOTERS[1], i + len(PROMOTERS[0]) + 17) for i in boxes) > 10


def test_every_contig_has_a_gap(genomes):
    assert all(b"N" * 200 in sequence for sequence in genomes.values())


def test_coding_sequence_never_holds_a_stop_codon():
    species = make_species(np.random.default_rng(0), "x", 0.5)
    assert len(species.codons) == 61 and not {b"TAA", b"TAG", b"TGA"} & set(species.codons)
    assert species.codon_frequencies.sum() == pytest.approx(1)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic_genomes(tmp_path / folder, 20_000, seed)
    first, again, other = ((tmp_path / folder / "borealis.fa.gz").read_bytes() for folder in "abc")
    assert first == again != other


def test_a_genome_too_small_for_structure_raises():
    with pytest.raises(ValueError, match="10,000 bp are needed"):
        next(synthetic_genome("borealis", 0.4, 500))
