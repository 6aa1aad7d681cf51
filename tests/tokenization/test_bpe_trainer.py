"""The exact trainer makes the merges of `tokenizers`, in the same order, whatever its internal limits are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.oracle import codes_of, dna_like, our_merges, reference_merges, repeated, word_lists
from tokenization import bpe_kernels as kernels
from tokenization import bpe_trainer
from tokenization.bpe_trainer import Limits, PairTable, Progress, TokensInMemory, commuting_batch, train

ABOVE_INT32 = 2**31


@settings(max_examples=600, deadline=None)
@given(
    words=word_lists,
    vocabulary=st.sampled_from([5, 12, 40, 150, 500]),
    min_frequency=st.integers(0, 5),
    max_token_length=st.sampled_from([None, 2, 3, 5, 9, 17]),
    positions=st.sampled_from([1, 4, 20, 100, 1 << 16]),  # 1: one pair at a time; 65,536: everything at once
)
def test_merges_equal_those_of_tokenizers(words, vocabulary, min_frequency, max_token_length, positions):
    expected = reference_merges(words, vocabulary, min_frequency, max_token_length)
    assert our_merges(words, vocabulary, min_frequency, max_token_length, positions) == expected


@pytest.mark.parametrize("word_length", [100, 1000, 12200])
def test_merges_of_a_longer_sequence_equal_those_of_tokenizers(word_length):
    sequence = dna_like(seed=1, length=300_000)
    words = [sequence[start : start + word_length] for start in range(0, len(sequence), word_length)]
    assert our_merges(words, 1500) == reference_merges(words, 1500)


def test_repeated_words_count_as_often_as_they_occur():
    words = ["ACGT"] * 3 + ["CCCA", "TTGT"]
    assert our_merges(words, 12) == reference_merges(words, 12)


def test_runs_count_overlapping_pairs_but_merge_from_the_left():
    # AAAAA: AA counts 4, becomes AA AA A, then AAAA A.
    assert our_merges(["AAAAA"], 8) == [("A", "A"), ("AA", "A"), ("AA", "AAA")]


def test_ties_go_to_the_smaller_left_then_right_token():
    assert our_merges(["TC", "GA", "GC"], 7) == [("G", "A"), ("G", "C"), ("T", "C")]


@pytest.mark.parametrize("positions", [2000, 1 << 16])
def test_a_floor_that_proves_too_high_is_lowered_by_counting_again(monkeypatch, positions):
    sequence = dna_like(seed=2, length=60_000)
    floors = []
    count_again = bpe_trainer.count_pairs_above

    def recorded(store, buckets, floor):
        floors.append(floor)
        return count_again(store, buckets, floor)

    monkeypatch.setattr(bpe_trainer, "count_pairs_above", recorded)
    monkeypatch.setattr(bpe_trainer, "DEAD_SHARE", 2)
    assert our_merges([sequence], 800, positions=positions) == reference_merges([sequence], 800)
    assert len(floors) >= 4 and floors == sorted(floors, reverse=True)


def test_pairs_above_the_pool_are_merged_in_memory_when_the_dense_stage_is_full(monkeypatch):
    monkeypatch.setattr(bpe_trainer, "MOST_DENSE_BITS", 8)
    words = [dna_like(seed=9, length=20_000)]
    assert our_merges(words, 400, positions=1) == reference_merges(words, 400)


def test_a_full_pair_table_is_replaced_by_a_larger_one(monkeypatch):
    sizes = []
    build = PairTable.of_pairs.__func__

    def recorded(cls, *arguments, **options):
        table = build(cls, *arguments, **options)
        sizes.append(len(table.keys))
        return table

    monkeypatch.setattr(PairTable, "of_pairs", classmethod(recorded))
    monkeypatch.setattr(bpe_trainer, "ROOM_FOR_BIRTHS", 6)
    monkeypatch.setattr(bpe_trainer, "DEAD_SHARE", 1 << 40)  # every pair is stored: no recount, only growth
    sequence = dna_like(seed=3, length=60_000)
    assert our_merges([sequence], 800) == reference_merges([sequence], 800)
    assert len(sizes) > 3 and sizes[-1] > sizes[0]


def test_first_merges_do_not_depend_on_the_vocabulary_size():
    words = [dna_like(seed=4, length=50_000)]
    assert our_merges(words, 1000)[:252] == our_merges(words, 256)


def test_training_ends_when_no_pair_is_left():
    assert our_merges(["ACGT", "C"], 100) == [("A", "C"), ("G", "T"), ("AC", "GT")]


def test_no_pair_at_all_gives_no_merge():
    assert our_merges(["A", "C", "A"], 100) == []


def test_counts_beside_merges_are_those_of_the_moment_of_merging():
    progress = Progress(np.zeros((2, 3), np.int64))
    train(TokensInMemory(codes_of(["ACACAC", "AC", "GG"])), progress, Limits(), lambda done: None)
    assert progress.merges.tolist() == [[0, 1, 4], [4, 4, 2]]


def test_words_shorter_than_tokens_widen_outside_the_buffer():
    words = ["A", "CA", "G"] * 50  # more separators than letters: uint16 tokens need more room than the letters had
    assert our_merges(words, 6, positions=1000) == reference_merges(words, 6)


# ---- counts above 2^31, where tokenizers overflows ----


def test_dense_counts_pass_the_32_bit_limit():
    tokens = codes_of([repeated("A", 11)])
    counts = np.zeros(1 << 16, np.int64)
    counts[0] = ABOVE_INT32 - 1  # as if the segments before had held so many
    kernels.count_dense(tokens, len(tokens), 8, counts)
    assert counts[0] == ABOVE_INT32 + 9


def test_sparse_counts_pass_the_32_bit_limit():
    tokens = kernels.widen(codes_of([repeated("A", 11)]), 13)[:13]
    buckets = np.zeros(1 << 10, np.int64)
    kernels.add_to_buckets(tokens, len(tokens), buckets)
    buckets *= ABOVE_INT32
    kernels.add_to_buckets(tokens, len(tokens), buckets)
    assert buckets.max() == 10 * ABOVE_INT32 + 10
    table = PairTable(1 << 10, floor=1)
    slot = kernels.find_slot(table.keys, 0)
    table.keys[slot], table.counts[slot] = 1, ABOVE_INT32
    assert kernels.add_to_table(tokens, len(tokens), buckets, 1, table.keys, table.counts, 1) == 1
    assert table.counts[slot] == ABOVE_INT32 + 10


def test_order_of_merges_is_right_above_the_32_bit_limit():
    counts = np.array([[0, ABOVE_INT32 + 5, 7, 0], [0, 0, 0, 0], [0, 0, 0, 2**40], [0, 0, 0, 0]])
    assert commuting_batch(counts, Limits()) == [(2, 3), (0, 1)]


def test_sparse_merge_prefers_a_count_above_the_32_bit_limit():
    store = TokensInMemory(codes_of(["CC", "AG", "AG"]))
    progress = Progress(np.zeros((1, 3), np.int64))
    store.widen(progress)
    table = PairTable.of_pairs(np.array([0 << 16 | 2, 1 << 16 | 1]), np.array([2, 1]), floor=1, tokens=4)
    slot = kernels.find_slot(table.keys, 1 << 16 | 1)
    table.counts[slot] = ABOVE_INT32 + 1
    keys, counts = table.alive(Limits(), progress.lengths)
    assert (keys[0], counts[0]) == (1 << 16 | 1, ABOVE_INT32 + 1)


def test_a_corpus_of_2_32_bases_is_refused_in_memory():
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1 << 32,), (0,))
    with pytest.raises(ValueError, match="memory budget"):
        TokensInMemory(huge)
