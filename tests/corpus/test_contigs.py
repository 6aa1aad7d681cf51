"""Contigs: soft-masking and gaps as intervals."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import contigs
from corpus.contigs import Contig, covered_bases, find_intervals, read_contigs
from corpus.fasta import FastaError
from corpus.sequences import reference_sequences

letters = st.text("ACGTUacgtuNnRy", min_size=1, max_size=200).map(str.encode)


def runs_of(pattern: bytes, sequence: bytes) -> list[list[int]]:
    return [list(match.span()) for match in re.finditer(pattern, sequence)]


@settings(deadline=None)
@given(letters, st.integers(1, 50))
def test_intervals_are_the_maximal_runs_whatever_the_block(sequence, block):
    before = contigs.BLOCK
    contigs.BLOCK = block
    try:
        acgt, soft_masked, non_repetitive = find_intervals(sequence)
    finally:
        contigs.BLOCK = before
    assert acgt.tolist() == runs_of(rb"[ACGTUacgtu]+", sequence)
    assert soft_masked.tolist() == runs_of(rb"[acgtu]+", sequence)
    assert non_repetitive.tolist() == runs_of(rb"[ACGTU]+", sequence)


@settings(deadline=None)
@given(letters, st.data())
def test_soft_masked_bases_of_an_interval_are_its_lower_case_bases(sequence, data):
    start = data.draw(st.integers(0, len(sequence)))
    end = data.draw(st.integers(start, len(sequence)))
    contig = Contig("c", sequence, *find_intervals(sequence))
    counted = contig.soft_masked_bases(np.array([start]), np.array([end]))
    assert counted.tolist() == [len(re.findall(rb"[acgtu]", sequence[start:end]))]


def test_no_intervals_cover_no_bases():
    assert covered_bases(np.empty((0, 2), np.int64), np.array([0, 5])).tolist() == [0, 0]


def test_sequences_of_a_contig_are_upper_case_with_u_read_as_t():
    contig = Contig("c", b"NNacgUu", *find_intervals(b"NNacgUu"))
    (sequences,) = reference_sequences(contig, np.array([[2, 5], [3, 7]]))
    assert sequences.split() == [b"ACG", b"CGTT"]
    assert sequences.soft_masked.tolist() == [1.0, 0.75]


def test_two_contigs_of_one_name_are_refused_with_both_lines(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(">chr1\nACGT\n>chr2\nACGT\n>chr1 again\nACGT\n")
    with pytest.raises(FastaError, match=r"line 5: contig 'chr1' was already at line 1"):
        list(read_contigs(path))
