"""ME-BPE updates its vocabulary file by file as section 2.1.1 of the dnaGrinder paper says."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.oracle import codes_of, dna_like, our_merges
from tokenization.bpe_trainer import Limits
from tokenization.encoder import Encoder
from tokenization.me_bpe import train_me_bpe, update, usable_merges
from tokenization.tokenizer_files import bpe_tokenizer


def test_frequencies_of_known_tokens_add_up():
    assert update({"AC": 5}, {"AC": 3}) == {"AC": 8}


def test_the_more_frequent_come_first_and_of_equals_the_older():
    assert list(update({"AC": 5, "GG": 2}, {"TT": 4, "CA": 2})) == ["AC", "TT", "GG", "CA"]


def test_a_token_that_was_excluded_starts_from_the_new_file_alone():
    files = [codes_of(["AC"] * 9 + ["GG"] * 5), codes_of(["TT"] * 6), codes_of(["GG"] * 7)]
    assert train_me_bpe(files, 2, Limits(), lambda done: None) == [("A", "C", 9), ("G", "G", 7)]


def test_one_file_gives_the_exact_vocabulary():
    words = [dna_like(seed=41, length=20_000)]
    found = train_me_bpe([codes_of(words)], 100, Limits(), lambda done: None)
    assert sorted(a + b for a, b, _ in found) == sorted(a + b for a, b in our_merges(words, 104))


def test_a_token_is_merged_from_what_more_frequent_tokens_leave_of_it():
    assert usable_merges({"CG": 9, "ACG": 8, "AC": 7}, 3) == [("C", "G", 9), ("A", "CG", 8), ("A", "C", 7)]


def test_a_token_more_frequent_than_its_parts_waits_for_them():
    assert usable_merges({"TATT": 9, "TA": 8, "TT": 7}, 3) == [("T", "A", 8), ("T", "T", 7), ("TA", "TT", 9)]


def test_the_next_token_takes_the_place_of_one_that_cannot_be_merged():
    assert usable_merges({"ACGA": 9, "TT": 8, "AC": 1, "TG": 1}, 2) == [("T", "T", 8), ("A", "C", 1)]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("ACGT", min_size=2, max_size=7), st.integers(1, 50), max_size=40))
def test_every_token_that_is_kept_can_be_reached(frequencies):
    ordered = dict(sorted(frequencies.items(), key=lambda item: -item[1]))
    found = usable_merges(ordered, 30)
    tokenizer = bpe_tokenizer([merge[:2] for merge in found])
    for left, right, frequency in found:
        assert frequency == frequencies[left + right]
        assert tokenizer.encode(left + right, add_special_tokens=False).tokens == [left + right]


def test_the_result_is_a_tokenizer_of_the_wanted_size():
    files = [codes_of([dna_like(seed=seed, length=20_000)]) for seed in (42, 43, 44)]
    found = train_me_bpe(files, 150, Limits(), lambda done: None)
    encoder = Encoder(bpe_tokenizer([merge[:2] for merge in found]))
    sequence = dna_like(seed=45, length=2000)
    assert encoder.tokenizer.get_vocab_size() == 159
    assert encoder.tokenizer.decode(encoder.encode(sequence).tolist()) == sequence
