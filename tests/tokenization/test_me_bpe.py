"""ME-BPE updates its vocabulary file by file as section 2.1.1 of the dnaGrinder paper says."""

from tests.tokenization.oracle import codes_of, dna_like, our_merges
from tokenization.bpe_trainer import Limits
from tokenization.encoder import Encoder
from tokenization.me_bpe import Token, train_me_bpe, update, usable_merges
from tokenization.tokenizer_files import bpe_tokenizer


def names(vocabulary):
    return {token: known.frequency for token, known in vocabulary.items()}


def test_frequencies_of_kept_tokens_add_up():
    assert names(update({"AC": Token(5, "A", "C")}, [("A", "C", 3)], size=2)) == {"AC": 8}


def test_a_more_frequent_new_token_replaces_the_least_frequent_one():
    old = {"AC": Token(5, "A", "C"), "GG": Token(2, "G", "G")}
    assert names(update(old, [("T", "T", 4)], size=2)) == {"AC": 5, "TT": 4}


def test_a_less_frequent_new_token_does_not_come_in():
    old = {"AC": Token(5, "A", "C"), "GG": Token(2, "G", "G")}
    assert names(update(old, [("T", "T", 1)], size=2)) == names(old)


def test_a_token_that_was_excluded_starts_from_the_new_file_alone():
    first = update({}, [("A", "C", 9), ("G", "G", 5)], size=2)
    second = update(first, [("T", "T", 6)], size=2)  # GG goes out with its 5
    third = update(second, [("G", "G", 7)], size=2)
    assert names(third) == {"AC": 9, "GG": 7}


def test_one_file_gives_the_exact_vocabulary():
    words = [dna_like(seed=41, length=20_000)]
    found = train_me_bpe([codes_of(words)], 100, Limits(), lambda done: None)
    assert sorted(a + b for a, b, _ in found) == sorted(a + b for a, b in our_merges(words, 104))


def test_a_token_whose_parts_are_gone_is_split_otherwise():
    vocabulary = {"ACG": Token(9, "AC", "G"), "CG": Token(8, "C", "G")}
    assert usable_merges(vocabulary) == [("C", "G", 8), ("A", "CG", 9)]


def test_parts_come_before_a_more_frequent_whole():
    vocabulary = {"TATT": Token(9, "TA", "TT"), "TA": Token(8, "T", "A"), "TT": Token(7, "T", "T")}
    assert usable_merges(vocabulary) == [("T", "A", 8), ("T", "T", 7), ("TA", "TT", 9)]


def test_a_token_that_cannot_be_merged_is_left_out():
    assert usable_merges({"ACG": Token(9, "AC", "G"), "TT": Token(8, "T", "T")}) == [("T", "T", 8)]


def test_the_result_is_a_tokenizer_of_the_wanted_size():
    files = [codes_of([dna_like(seed=seed, length=20_000)]) for seed in (42, 43, 44)]
    found = train_me_bpe(files, 150, Limits(), lambda done: None)
    encoder = Encoder(bpe_tokenizer([merge[:2] for merge in found]))
    sequence = dna_like(seed=45, length=2000)
    assert encoder.tokenizer.get_vocab_size() == 159
    assert encoder.tokenizer.decode(encoder.encode(sequence).tolist()) == sequence
