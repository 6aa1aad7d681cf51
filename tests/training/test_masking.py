"""training.masking: what is masked, how, and that it depends on (seed, epoch, sample) only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.masking import IGNORED, TokenMasker

UNK, CLS, SEP, PAD, MASK = SPECIAL_IDS = range(5)
VOCABULARY = 64

windows = arrays(np.int64, st.integers(0, 80), elements=st.integers(0, VOCABULARY - 1))
keys = st.tuples(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(0, 2**40))


def masker(seed=0, **options):
    return TokenMasker(VOCABULARY, MASK, SPECIAL_IDS, seed, **options)


def is_special(ids):
    return np.isin(ids, SPECIAL_IDS)


@given(windows, keys)
def test_labels_hold_the_original_tokens_and_everything_else_is_unchanged(ids, key):
    seed, epoch, sample = key
    masked, labels = masker(seed)(ids, epoch, sample)
    targets = labels != IGNORED
    assert (labels[targets] == ids[targets]).all()
    assert (masked[~targets] == ids[~targets]).all()


@given(windows, keys)
def test_special_tokens_and_unk_are_never_targets(ids, key):
    seed, epoch, sample = key
    _, labels = masker(seed, mlm_probability=1.0)(ids, epoch, sample)
    assert ((labels == IGNORED) == is_special(ids)).all()


@given(windows, keys)
def test_replacements_are_mask_or_ordinary_tokens(ids, key):
    seed, epoch, sample = key
    masked, labels = masker(seed, mlm_probability=1.0, mask_replace_prob=0.5, random_replace_prob=0.5)(
        ids, epoch, sample
    )
    written = masked[labels != IGNORED]
    assert ((written == MASK) | ~is_special(written)).all()


@given(windows, keys)
def test_a_sample_with_any_ordinary_token_has_a_target(ids, key):
    seed, epoch, sample = key
    _, labels = masker(seed, mlm_probability=1e-9)(ids, epoch, sample)
    assert (labels != IGNORED).sum() == (1 if (~is_special(ids)).any() else 0)


@given(windows, keys)
def test_the_mask_is_a_function_of_seed_epoch_and_sample(ids, key):
    seed, epoch, sample = key
    other = masker(seed)
    other(ids, epoch + 1, sample)  # whatever was masked before leaves no trace
    for first, second in zip(masker(seed)(ids, epoch, sample), other(ids, epoch, sample), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["seed", "epoch", "sample"])
def test_another_seed_epoch_or_sample_gives_another_mask(change):
    ids = np.full(200, 10)
    seed, epoch, sample = change
    assert not np.array_equal(masker(0)(ids, 0, 0)[1], masker(seed)(ids, epoch, sample)[1])


def test_input_is_left_alone():
    ids = np.arange(VOCABULARY)
    masker(mlm_probability=1.0)(ids, 0, 0)
    assert np.array_equal(ids, np.arange(VOCABULARY))


def test_fifteen_percent_of_which_eighty_masked_ten_random_ten_kept():
    ids = np.full(400_000, 10)
    masked, labels = masker()(ids, epoch=3, sample=5)
    targets = labels != IGNORED
    written = masked[targets]
    assert targets.mean() == pytest.approx(0.15, abs=0.003)
    assert (written == MASK).mean() == pytest.approx(0.8, abs=0.01)
    random_ones = written[(written != MASK) & (written != 10)]
    assert len(random_ones) / len(written) == pytest.approx(0.1 * (1 - 1 / 59), abs=0.01)
    assert set(random_ones) == set(range(5, VOCABULARY)) - {10}


def test_tokens_are_masked_independently():
    ids = np.full(400_000, 10)
    targets = masker()(ids, 0, 0)[1] != IGNORED
    assert (targets[1:] & targets[:-1]).mean() == pytest.approx(0.15**2, abs=0.002)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm_probability": 0.0}, "mlm_probability is 0.0"),
        ({"mlm_probability": 1.5}, "mlm_probability is 1.5"),
        ({"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, "exceed 1"),
        ({"random_replace_prob": -0.1}, "negative"),
    ],
)
def test_impossible_probabilities_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masker(**options)


def test_a_vocabulary_of_special_tokens_only_is_refused():
    with pytest.raises(ValueError, match="nothing to predict"):
        TokenMasker(5, MASK, SPECIAL_IDS, seed=0)
