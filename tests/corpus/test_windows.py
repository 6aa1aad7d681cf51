"""Windows and segments: where sequences begin and end."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.windows import fixed_windows, overlapping_segments, random_cuts, random_stream, within_runs


@st.composite
def some_runs(draw):
    edges = sorted(draw(st.sets(st.integers(0, 300), min_size=0, max_size=12)))
    edges = edges[: len(edges) // 2 * 2]
    return np.array(edges, np.int64).reshape(-1, 2)


@settings(deadline=None)
@given(some_runs(), st.integers(1, 40), st.data())
def test_windows_lie_end_to_end_in_their_run_and_only_short_ends_are_dropped(runs, window, data):
    shortest = data.draw(st.integers(1, window))
    expected = []
    for start, end in runs.tolist():
        while end - start >= shortest:
            expected.append([start, min(start + window, end)])
            start += window
    assert fixed_windows(runs, window, shortest).tolist() == expected


@settings(deadline=None)
@given(st.integers(0, 100_000))
def test_segments_of_dnagrinder_cover_the_contig_and_share_100_bp_with_their_neighbours(length):
    segments = overlapping_segments(length, 12_200, 100, 12_000)
    if length < 12_000:
        assert len(segments) == 0
        return
    assert segments[0, 0] == 0 and segments[-1, 1] == length
    assert (np.diff(segments)[:, 0] == min(length, 12_200)).all()
    shared = segments[:-1, 1] - segments[1:, 0]
    assert (shared[:-1] == 100).all() and (shared >= 100).all()  # the last one is moved left to end with the contig


def test_cuts_start_anywhere_within_the_first_200_bp_and_nowhere_else():
    segments = np.tile([[1000, 13_200]], (20_000, 1))
    cuts = random_cuts(segments, 12_000, np.random.default_rng(0))
    assert (cuts[:, 1] - cuts[:, 0] == 12_000).all()
    assert sorted(set(cuts[:, 0].tolist())) == list(range(1000, 1200))


def test_a_cut_as_long_as_its_segment_is_the_segment():
    segments = np.array([[5, 105]])
    assert random_cuts(segments, 100, np.random.default_rng(0)).tolist() == [[5, 105]]


@settings(deadline=None)
@given(some_runs(), st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), max_size=10))
def test_an_interval_is_within_runs_when_one_run_holds_all_of_it(runs, intervals):
    intervals = np.array([[start, start + length] for start, length in intervals], np.int64).reshape(-1, 2)
    expected = [any(a <= s and e <= b for a, b in runs.tolist()) for s, e in intervals.tolist()]
    assert within_runs(intervals, runs).tolist() == expected


def test_random_numbers_depend_on_seed_and_names_only():
    def first(seed, *names):
        return random_stream(seed, *names).integers(1 << 60)

    assert first(1, "human", "chr1") == first(1, "human", "chr1")
    assert (
        len({first(1, "human", "chr1"), first(2, "human", "chr1"), first(1, "human", "chr2"), first(1, "humanchr1")})
        == 4
    )
