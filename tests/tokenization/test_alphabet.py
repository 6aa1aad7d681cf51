"""tokenization.alphabet: one policy for case, U, N and anything else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization import alphabet
from tokenization.alphabet import acgt_runs, normalize

sequences = st.text(alphabet="ACGTUNacgtunRYSWKMBDHV", max_size=200)


def test_lower_case_reads_as_upper_case():
    assert normalize("acgTN") == b"ACGTN"


def test_u_reads_as_t():
    assert normalize(b"ACGUu") == b"ACGTT"


def test_ambiguity_codes_become_n():
    assert normalize("RYSWKMBDHVNryswkmbdhvn") == b"N" * 22


def test_white_space_is_dropped():
    assert normalize("AC GT\n\tA\r\n") == b"ACGTA"


def test_empty_sequence_stays_empty():
    assert normalize(b"") == b""


@pytest.mark.parametrize(
    ("sequence", "position", "character"),
    [("ACGEL", 4, "E"), (b"AC\nG-T", 5, "-"), ("ACG\u00e9", 4, "\u00e9"), (b"\x00ACGT", 1, r"\x00"), ("AXC1", 2, "X")],
)
def test_other_characters_are_refused_by_name_and_position(sequence, position, character):
    with pytest.raises(ValueError, match=re.escape(f"'{character}' at position {position} ")):
        normalize(sequence)


@given(sequences)
def test_normalize_is_idempotent_and_keeps_length(sequence):
    once = normalize(sequence)
    assert normalize(once) == once
    assert len(once) == len(sequence)


@given(sequences)
def test_bytes_and_text_agree(sequence):
    assert normalize(sequence) == normalize(sequence.encode())


def test_runs_are_half_open_and_maximal():
    assert acgt_runs(b"NNACGTNNNTTN") == [(2, 6), (9, 11)]


def test_runs_touch_both_ends():
    assert acgt_runs(b"ACNGT") == [(0, 2), (3, 5)]


def test_runs_shorter_than_the_minimum_are_left_out():
    assert acgt_runs(b"ACNGTANC", min_length=3) == [(3, 6)]


@pytest.mark.parametrize("sequence", [b"", b"NNNN"])
def test_no_bases_no_runs(sequence):
    assert acgt_runs(sequence) == []


@settings(deadline=None)
@given(sequences.map(str.encode), st.integers(1, 7), st.integers(1, 5))
def test_runs_agree_with_a_regular_expression(sequence, block, min_length):
    expected = [m.span() for m in re.finditer(rb"[ACGTUacgtu]+", sequence) if m.end() - m.start() >= min_length]
    with pytest.MonkeyPatch.context() as patch:  # tiny blocks, so that runs cross their borders
        patch.setattr(alphabet, "_SCAN_BLOCK", block)
        assert acgt_runs(sequence, min_length) == expected
