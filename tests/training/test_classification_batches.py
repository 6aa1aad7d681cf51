"""Samples and batches of fine-tuning: order, augmentation, packing, padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.reading import reverse_complement
from training.classification_batches import (
    Augmentation,
    ClassificationCollator,
    LengthBucketSampler,
    SequenceDataset,
    StrandBertTokenizer,
    TooLongError,
    View,
    evaluation_batches,
)
from training.classification_data import Examples


@pytest.fixture(scope="module")
def strandbert_tokenizer(tokenizer):
    return StrandBertTokenizer(tokenizer)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), size)).encode() for size in rng.integers(20, 60, 24)]
    return Examples(sequences, None, np.arange(24) % 2, [f"row {row}" for row in range(24)])


def letters(tokenizer, sample) -> bytes:
    return "".join(tokenizer.convert_ids_to_tokens(sample["input_ids"].tolist())[1:-1]).encode()


def test_order_follows_from_seed_and_epoch_and_takes_every_row():
    def order(seed, epoch):
        sampler = LengthBucketSampler(np.full(20, 101), 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0) != order(1, 0)
    assert [row for _, row in order(0, 0)] != [row for _, row in order(0, 1)]
    assert {row for _, row in order(0, 1)} == set(range(20)) and len(order(0, 1)) == 24


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=100), st.integers(1, 9), st.integers(0, 5))
def test_a_global_batch_holds_rows_of_similar_length_and_none_is_lost(lengths, size, seed):
    sampler = LengthBucketSampler(np.array(lengths), size, seed)
    rows = [row for _, row in sampler]
    assert set(rows) == set(range(len(lengths))) and len(rows) % size == 0
    batches = [sorted(sampler.classes[rows[start : start + size]]) for start in range(0, len(rows), size)]
    mixed = sum(batch[0] != batch[-1] for batch in batches)
    assert mixed < len(set(sampler.classes.tolist())) or mixed == 0


def test_rows_of_nearly_one_length_stay_in_plain_random_order():
    plain = [row for _, row in LengthBucketSampler(np.full(40, 100), 8, 3)]
    assert [row for _, row in LengthBucketSampler(np.array([100, 101] * 20), 8, 3)] == plain


def test_augmentation_follows_from_seed_epoch_and_row(strandbert_tokenizer, examples):
    def sample(seed, epoch):
        dataset = SequenceDataset(examples, strandbert_tokenizer, Augmentation(True, 0.3, 5), seed)
        return [dataset[epoch, row]["input_ids"].tolist() for row in range(len(examples))]

    assert sample(0, 0) == sample(0, 0)
    assert sample(0, 0) != sample(0, 1) and sample(0, 0) != sample(1, 0)


def test_reverse_complement_augmentation_reads_both_strands_about_equally(strandbert_tokenizer, tokenizer, examples):
    dataset = SequenceDataset(examples, strandbert_tokenizer, Augmentation(reverse_complement=True))
    reversed_rows = 0
    for epoch in range(10):
        for row, sequence in enumerate(examples.sequences):
            read = letters(tokenizer, dataset[epoch, row])
            assert read in (sequence, reverse_complement(sequence))
            reversed_rows += read != sequence
    assert 80 < reversed_rows < 160


def test_cropping_takes_a_little_off_the_ends(strandbert_tokenizer, tokenizer, examples):
    dataset = SequenceDataset(examples, strandbert_tokenizer, Augmentation(crop=6))
    read = [letters(tokenizer, dataset[0, row]) for row in range(len(examples))]
    assert all(piece in sequence for piece, sequence in zip(read, examples.sequences, strict=True))
    missing = [len(sequence) - len(piece) for piece, sequence in zip(read, examples.sequences, strict=True)]
    assert max(missing) <= 12 and len(set(missing)) > 4


def test_varied_tokens_spell_the_same_letters(strandbert_tokenizer, tokenizer, examples):
    dataset = SequenceDataset(examples, strandbert_tokenizer, Augmentation(cut_probability=0.4))
    plain = SequenceDataset(examples, strandbert_tokenizer)
    assert all(letters(tokenizer, dataset[0, row]) == examples.sequences[row] for row in range(len(examples)))
    assert any(len(dataset[0, row]["input_ids"]) > len(plain[0, row]["input_ids"]) for row in range(len(examples)))


def test_a_row_that_no_longer_fits_when_its_tokens_vary_is_read_as_it_stands(tokenizer, examples):
    plain = SequenceDataset(examples, StrandBertTokenizer(tokenizer))
    longest = max(len(plain.sample(row)["input_ids"]) for row in range(len(examples)))
    limited = SequenceDataset(examples, StrandBertTokenizer(tokenizer, longest), Augmentation(cut_probability=1.0))
    limited.check_lengths()
    as_they_stand = [limited[0, row]["input_ids"].tolist() == plain.sample(row)["input_ids"].tolist()
                     for row in range(len(examples))]  # fmt: skip
    assert any(as_they_stand)
    assert all(len(limited[0, row]["input_ids"]) <= longest for row in range(len(examples)))
    with pytest.raises(TooLongError, match=r"row \d+: \d+ tokens, more than the"):
        limited.check_lengths([View(), View(variant=1, cut_probability=1.0)])


def test_a_view_is_the_same_whatever_the_seed(strandbert_tokenizer, tokenizer, examples):
    first, second = (SequenceDataset(examples, strandbert_tokenizer, None, seed) for seed in (0, 1))
    view = View(reverse=True, variant=2, cut_probability=0.3)
    assert first.sample(3, view)["input_ids"].tolist() == second.sample(3, view)["input_ids"].tolist()
    assert letters(tokenizer, first.sample(3, view)) == reverse_complement(examples.sequences[3])


def test_packed_and_padded_batches_hold_the_same_tokens(strandbert_tokenizer, tokenizer, examples):
    dataset = SequenceDataset(examples, strandbert_tokenizer)
    samples = [dataset[0, row] for row in range(5)]
    packed = ClassificationCollator(tokenizer, packed=True)(samples)
    padded = ClassificationCollator(tokenizer, packed=False)(samples)
    starts = packed["cu_seqlens"].tolist()
    for row, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        tokens = packed["input_ids"][0, start:end].tolist()
        assert tokens == samples[row]["input_ids"].tolist()
        assert padded["input_ids"][row][padded["attention_mask"][row].bool()].tolist() == tokens
    assert packed["max_seqlen"] == padded["input_ids"].shape[1]
    assert packed["labels"].tolist() == padded["labels"].tolist() == [0, 1, 0, 1, 0]


def test_evaluation_batches_keep_to_their_size_and_take_every_row_once():
    lengths = np.array([5, 100, 20, 20, 1000, 7])
    batches = evaluation_batches(lengths, 100)
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert batches[0] == [4]  # longer than a batch: alone
    assert all(len(batch) * max(lengths[batch]) <= 100 for batch in batches[1:])
