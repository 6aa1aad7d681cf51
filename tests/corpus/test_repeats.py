"""Repeat filtering against a slow, obvious implementation, and on real soft-masked genomes."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.contigs import Contig, find_intervals, read_contigs
from corpus.repeats import filter_repeats, paper_retained

stretch = st.tuples(st.sampled_from(["A", "a", "N", "A", "a"]), st.integers(1, 30)).map(lambda s: s[0] * s[1])
genomes = st.lists(stretch, min_size=1, max_size=25).map(lambda parts: "".join(parts).encode())


def contig_of(sequence: bytes) -> Contig:
    return Contig("c", sequence, *find_intervals(sequence))


def kept_bases(sequence: bytes, segment: int, threshold: int) -> list[bool]:
    """Bases of stretches that have the threshold's length and lie in a run of ACGT that can hold a segment."""
    kept = [False] * len(sequence)
    for run in re.finditer(rb"[ACGTacgt]+", sequence):
        for stretch in re.finditer(rb"[ACGT]+", run.group()):
            if len(run.group()) >= segment and len(stretch.group()) >= threshold:
                for index in range(*stretch.span()):
                    kept[run.start() + index] = True
    return kept


def slow_filter(sequence: bytes, segment: int, threshold: int) -> list[list[int]]:
    """Base by base: at a kept base not yet covered go right until the segment is long enough or N, then left."""
    kept = kept_bases(sequence, segment, threshold)
    covered = [False] * len(sequence)
    segments = []
    for position in range(len(sequence)):
        if not kept[position] or covered[position]:
            continue
        start = end = position
        while end - start < segment and end < len(sequence) and sequence[end : end + 1] != b"N":
            end += 1
        while end - start < segment:
            start -= 1
        segments.append([start, end])
        for index in range(start, end):
            covered[index] = True
    return segments


@settings(deadline=None)
@given(genomes, st.integers(1, 40), st.integers(1, 30))
def test_segments_equal_those_found_base_by_base(sequence, segment, threshold):
    found = filter_repeats(contig_of(sequence), segment, threshold).segments
    assert found.tolist() == slow_filter(sequence, segment, threshold)


@settings(deadline=None)
@given(genomes, st.integers(1, 40), st.integers(1, 30))
def test_segments_have_full_length_no_n_and_cover_every_kept_stretch(sequence, segment, threshold):
    found = filter_repeats(contig_of(sequence), segment, threshold).segments
    covered = np.zeros(len(sequence), bool)
    for start, end in found.tolist():
        assert end - start == segment and b"N" not in sequence[start:end]
        covered[start:end] = True
    assert covered[kept_bases(sequence, segment, threshold)].all()


@settings(deadline=None)
@given(genomes, st.integers(1, 40), st.floats(0.05, 1))
def test_the_chosen_threshold_is_the_smallest_that_retains_at_most_the_share_in_whole_segments(
    sequence, segment, share
):
    contig = contig_of(sequence)
    chosen = filter_repeats(contig, segment, share=share)
    smallest = next(
        t
        for t in range(1, len(sequence) + 2)
        if len(slow_filter(sequence, segment, t)) <= math.ceil(share * len(sequence) / segment)
    )
    assert chosen.segments.tolist() == slow_filter(sequence, segment, smallest)
    assert chosen.retained < share + segment / len(sequence) + 1e-9


def test_without_a_share_it_is_that_of_the_non_repetitive_bases():
    contig = contig_of(b"A" * 60 + b"a" * 40)
    chosen = filter_repeats(contig, 20)
    assert chosen.non_repetitive == 0.6 and chosen.retained == 0.6


def test_a_contig_without_repeats_is_kept_whole():
    assert filter_repeats(contig_of(b"A" * 25), 10).segments.tolist() == [[0, 10], [10, 20], [15, 25]]


def test_a_gap_turns_the_extension_to_the_left():
    assert filter_repeats(contig_of(b"aaaaaaAAaaNNNN"), 8, 2).segments.tolist() == [[2, 10]]


def test_the_next_segment_begins_at_the_first_stretch_not_yet_covered():
    assert filter_repeats(contig_of(b"AAaaAAaaaaaaAAaaaaaaaaaa"), 8, 2).segments.tolist() == [[0, 8], [12, 20]]


def test_a_long_stretch_is_split():
    assert filter_repeats(contig_of(b"A" * 20 + b"a" * 20), 8, 2).segments.tolist() == [[0, 8], [8, 16], [16, 24]]


def test_stretches_where_no_segment_fits_are_counted():
    filtered = filter_repeats(contig_of(b"AAAaN" + b"a" * 10), 8, 2)
    assert (len(filtered.segments), filtered.too_short, filtered.too_short_bases) == (0, 1, 3)


def test_the_papers_share_is_found_for_human_chromosomes_only():
    assert paper_retained("Homo sapiens", "chr1") == paper_retained("Human", "1") == 0.50
    assert paper_retained("Homo sapiens", "chr22_100_200") == 0.57
    assert paper_retained("Mus musculus", "chr1") is None
    assert paper_retained("Homo sapiens", "chr1_KI270706v1_random") is None


@pytest.mark.shared
def test_human_chromosome_1_retains_what_the_paper_prints(shared_data):
    path = shared_data("data/genomes/vertebrates_softmasked/hg38.cgp12way.fa.gz")
    retained = bases = masked = 0
    for contig in read_contigs(path):
        segments = filter_repeats(contig, 12_200).segments
        retained += len(segments) * 12_200
        bases += len(contig)
        masked += int(contig.soft_masked_bases(*segments.T).sum())
    assert retained / bases == pytest.approx(paper_retained("Homo sapiens", "chr1"), abs=0.02)
    assert 1 - masked / retained > 0.6  # of the output is not repetitive; of the input, 0.51
