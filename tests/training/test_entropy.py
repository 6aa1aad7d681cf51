"""training.entropy: the baselines equal a count by hand, and a bigram language is seen as one."""

import math
from collections import Counter

import numpy as np
import pytest

from training import entropy
from training.data import MlmDataset, TokenStore
from training.entropy import frequency_baselines
from training.masking import IGNORED, TokenMasker

CLS, SEP, MASK = 1, 2, 4
VOCABULARY = 12


def store(windows) -> TokenStore:
    tokens = np.concatenate(windows).astype(np.uint16)
    return TokenStore(tokens, np.cumsum([0, *map(len, windows)]), base_pairs=len(tokens))


def heldout(windows) -> MlmDataset:
    return MlmDataset(store(windows), TokenMasker(VOCABULARY, MASK, range(5), seed=0), CLS, SEP)


def random_windows(count, length, seed):
    return list(np.random.default_rng(seed).choice([5, 6, 6, 6, 7, 8], (count, length)))


def targets(dataset):
    for index in range(len(dataset)):
        labels, window = dataset[index]["labels"], dataset.window(index)
        for position in np.flatnonzero(labels != IGNORED):
            yield window[position - 1], window[position]


def test_unigram_is_the_cross_entropy_of_smoothed_counts_at_the_masked_tokens():
    train, test = random_windows(50, 20, seed=0), heldout(random_windows(20, 20, seed=1))
    counts = Counter(int(token) for window in train for token in window)
    expected = [-math.log((counts[token] + 1) / (50 * 20 + VOCABULARY)) for _, token in targets(test)]
    assert frequency_baselines(store(train), test, VOCABULARY)["unigram_entropy"] == pytest.approx(np.mean(expected))


def test_bigram_is_the_best_of_several_priors_at_the_masked_tokens():
    train, test = random_windows(50, 20, seed=0), heldout(random_windows(20, 20, seed=1))
    unigram = Counter(int(token) for window in train for token in window)
    pairs = Counter((int(a), int(b)) for window in train for a, b in zip([CLS, *window], window, strict=False))
    left = Counter(int(a) for window in train for a in [CLS, *window[:-1]])

    def loss(strength):
        return np.mean(
            [
                -math.log((pairs[a, b] + strength * (unigram[b] + 1) / (1000 + VOCABULARY)) / (left[a] + strength))
                for a, b in targets(test)
            ]
        )

    found = frequency_baselines(store(train), test, VOCABULARY)["bigram_entropy"]
    assert found == pytest.approx(min(loss(strength) for strength in entropy.PRIOR_STRENGTHS))


def test_counts_do_not_depend_on_blocks(monkeypatch):
    train, test = store(random_windows(50, 20, seed=0)), heldout(random_windows(20, 20, seed=1))
    whole = frequency_baselines(train, test, VOCABULARY)
    monkeypatch.setattr(entropy, "BLOCK", 70)
    assert frequency_baselines(train, test, VOCABULARY) == pytest.approx(whole)


def test_a_language_of_fixed_pairs_has_low_bigram_entropy():
    cycle = [np.resize([5, 6, 7, 8, 9, 10], 60)] * 30  # every token is known from its left neighbour
    found = frequency_baselines(store(cycle), heldout(cycle), VOCABULARY)
    assert found["unigram_entropy"] == pytest.approx(math.log(6), abs=0.02)
    assert found["bigram_entropy"] < 0.05
    assert (
        found["bigram_accuracy"] > 0.97
    )  # the first token of a window stands after [CLS], not after its left neighbour
    assert found["unigram_accuracy"] == pytest.approx(1 / 6, abs=0.05)


def test_accuracy_is_the_share_of_targets_that_are_the_most_frequent_token():
    train, test = random_windows(50, 20, seed=0), heldout(random_windows(20, 20, seed=1))
    expected = np.mean([token == 6 for _, token in targets(test)])
    assert frequency_baselines(store(train), test, VOCABULARY)["unigram_accuracy"] == pytest.approx(expected)


def test_a_large_vocabulary_has_no_table_of_all_pairs(monkeypatch):
    monkeypatch.setattr(entropy, "LARGEST_PAIR_TABLE", VOCABULARY - 1)
    found = frequency_baselines(
        store(random_windows(50, 20, seed=0)), heldout(random_windows(20, 20, seed=1)), VOCABULARY
    )
    assert "bigram_accuracy" not in found
