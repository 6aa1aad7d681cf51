"""Motifs from attributions: found on both strands, not where there are none, and written as MEME reads them."""

import random

import numpy as np
import pytest

from inference.logo import information, of_sequence
from inference.motifs import Motif, _seqlets, base_frequencies, find_motifs, write_meme
from inference.reading import reverse_complement

from .planted import random_dna, with_motif

FIRST, SECOND = b"TGACTCATCC", b"CCGGAAGTGA"


def attributed(source, motif, weight):
    """A sequence with a motif on either strand, and attributions that are high there."""
    place = source.randrange(10, 80)
    sequence = with_motif(source, 100, motif, place)
    values = np.array([source.gauss(0, 0.1) for _ in sequence])
    values[place : place + len(motif)] += weight
    return (sequence, values) if source.random() < 0.5 else (reverse_complement(sequence), values[::-1])


def agree(motif, expected):
    return any(s.decode() in motif.consensus for s in (expected[1:-1], reverse_complement(expected[1:-1])))


def test_two_motifs_on_both_strands_are_found():
    source = random.Random(0)
    pairs = [attributed(source, FIRST, 1.0) for _ in range(60)] + [attributed(source, SECOND, 0.8) for _ in range(40)]
    motifs = find_motifs(*map(list, zip(*pairs, strict=True)))
    assert agree(motifs[0], FIRST) and agree(motifs[1], SECOND)
    assert 45 <= motifs[0].sites <= 75 and 30 <= motifs[1].sites <= 55


def test_noise_gives_no_motif_that_a_third_of_the_sequences_share():
    source = random.Random(1)
    sequences = [random_dna(source, 100) for _ in range(60)]
    values = [np.array([source.gauss(0, 1) for _ in s]) for s in sequences]
    assert all(motif.sites < 20 for motif in find_motifs(sequences, values))


def test_seqlets_are_peaks_not_their_shoulders_and_do_not_overlap():
    sequence = random_dna(random.Random(2), 2000)

    def triangle(middle, half):
        return np.clip(1 - np.abs(np.arange(2000) - middle) / half, 0, None)

    values = triangle(100, 40) + triangle(1500, 8) + 0.9 * triangle(1520, 8)
    values[1000:1010] = 1
    assert _seqlets([sequence], [values]) == [sequence[88:113], sequence[990:1015], sequence[1488:1513]]


@pytest.mark.parametrize("sequences", [[], [b"ACGT"], [b"N" * 50] * 20])
def test_nothing_to_find_gives_no_motif(sequences):
    assert find_motifs(sequences, [np.ones(len(s)) for s in sequences]) == []


def test_meme_file_holds_the_matrix_and_the_background(tmp_path):
    matrix = np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    write_meme(tmp_path / "m.meme", [Motif("motif_1_AC", matrix, 12)], [b"AACGT"])
    lines = (tmp_path / "m.meme").read_text().splitlines()
    assert lines[0] == "MEME version 4" and "ALPHABET= ACGT" in lines
    start = lines.index("letter-probability matrix: alength= 4 w= 2 nsites= 12")
    rows = np.array([[float(value) for value in line.split()] for line in lines[start + 1 : start + 3]])
    np.testing.assert_allclose(rows, matrix)
    background = lines[lines.index("Background letter frequencies") + 1].split()
    assert background[::2] == list("ACGT") and sum(map(float, background[1::2])) == pytest.approx(1, abs=1e-4)


def test_background_counts_both_strands():
    np.testing.assert_allclose(base_frequencies([b"A" * 1000]), [0.5, 0, 0, 0.5], atol=2e-3)


def test_letters_are_as_high_as_values_or_information():
    np.testing.assert_allclose(of_sequence(b"GN", np.array([2.0, 3.0])), [[0, 0, 2, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(information(np.array([[1.0, 0, 0, 0], [0.25] * 4])).sum(1), [2, 0], atol=1e-9)
