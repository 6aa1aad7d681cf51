"""Tokens cover a sequence end to end, whatever its letters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from modeling.nucleotides import (
    checked_letters,
    reverse_complement,
    token_lengths,
    token_of_nucleotide,
    token_spans,
)

from ..conftest import ROOT

LETTERS = "ACGTUNRYSWKMBDHV"
sequences = st.text(LETTERS + LETTERS.lower(), min_size=1, max_size=400)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(ROOT / "tokenization" / "vocabulary")


@settings(max_examples=200, deadline=None)
@given(sequence=sequences)
def test_letters_keep_their_number_and_their_strand(sequence):
    letters = checked_letters(sequence)
    assert len(letters) == len(sequence) and set(letters) <= set("ACGTN")
    assert reverse_complement(reverse_complement(letters)) == letters


@settings(max_examples=200, deadline=None)
@given(sequence=sequences)
def test_the_token_of_a_nucleotide_is_the_one_whose_offsets_hold_it(tokenizer, sequence):
    letters = checked_letters(sequence)
    encoding = tokenizer(letters, return_offsets_mapping=True)
    ids, lengths = torch.tensor(encoding["input_ids"]), token_lengths(tokenizer)
    places = token_of_nucleotide(ids, lengths, len(sequence))
    assert len(places) == len(sequence)
    offsets = encoding["offset_mapping"]
    assert all(offsets[place][0] <= i < offsets[place][1] for i, place in enumerate(places.tolist()))
    assert token_spans(ids[1:-1], lengths).tolist() == [list(offset) for offset in offsets[1:-1]]


@pytest.mark.parametrize(
    "sequence, message",
    [
        ("", "sequence 7 is empty"),
        ("ACG T", "sequence 7: character ' ' at position 4 is no nucleotide; remove white space"),
        ("ACGT\n", "at position 5 .* white space"),
        ("MKLV", "character 'L' at position 3"),
        ("ACG-", "character '-' at position 4"),
        ("ACG\u00c4", "character '\u00c4' at position 4"),
        (None, "sequence 7 is NoneType, not text"),
        (b"ACG", "sequence 7 is bytes, not text"),
    ],
)
def test_what_is_no_nucleotide_is_named(sequence, message):
    with pytest.raises(ValueError, match=message):
        checked_letters(sequence, "sequence 7")


def test_ids_of_another_sequence_are_refused(tokenizer):
    ids = torch.tensor(tokenizer("ACGTACGT")["input_ids"])
    with pytest.raises(ValueError, match="the tokens hold 8 bases, the sequence 9"):
        token_of_nucleotide(ids, token_lengths(tokenizer), 9)
