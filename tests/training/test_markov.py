"""training.markov: bits per base of a Markov model on the masked stretches, against a slow obvious implementation."""

import math
from collections import Counter

import numpy as np
import pytest

from tests.training.conftest import random_dna
from training.data import DataSettings, MlmDataset, prepare_data
from training.entropy import PRIOR_STRENGTHS
from training.markov import base_pairs_of_tokens, baselines, markov_bits_per_base
from training.masking import IGNORED, TokenMasker


@pytest.fixture
def data(tmp_path, tokenizer):
    """Function from text to (training store, held-out dataset)."""

    def prepare(train: str, heldout: str):
        for name, text in (("train", train), ("heldout", heldout)):
            (tmp_path / f"{name}.fa").write_text(f">{name}\n{text}\n")
        settings = DataSettings(max_seq_length=32, min_run_length=20)
        files = [tmp_path / "train.fa"], [tmp_path / "heldout.fa"]
        train, validation, _ = prepare_data(*files, tokenizer, settings, tmp_path / "cache")
        masker = TokenMasker(len(tokenizer), tokenizer.mask_token_id, tokenizer.all_special_ids, seed=0)
        return train, MlmDataset(validation, masker, tokenizer.cls_token_id, tokenizer.sep_token_id)

    return prepare


def slow_bits_per_base(train, heldout, tokenizer, order):
    """The definition, base by base, with the best strength."""

    def text(ids):
        return "".join(tokenizer.convert_ids_to_tokens(int(i)) for i in ids if i not in tokenizer.all_special_ids)

    counts = Counter()
    for index in range(len(train)):
        window = text(train[index])
        for end in range(order + 1, len(window) + 1):
            for start in range(end - order - 1, end):
                counts[window[start:end]] += 1
    contexts = Counter()
    for word, count in counts.items():
        contexts[word[:-1]] += count

    def probability(context, base, strength):
        below = 0.25 if not context else probability(context[1:], base, strength)
        if not context:
            total = sum(counts[letter] for letter in "ACGT")
            return (counts[base] + strength * 0.25) / (total + strength)
        return (counts[context + base] + strength * below) / (contexts[context] + strength)

    words = []
    for index in range(len(heldout)):
        window, labels = heldout.window(index), heldout[index]["labels"]
        for position in np.flatnonzero(labels != IGNORED):
            before, token = text(window[:position]), text(window[position : position + 1])
            words += [((before + token[:i])[-order:] if order else "", base) for i, base in enumerate(token)]
    return min(
        np.mean([-math.log2(probability(context, base, strength)) for context, base in words])
        for strength in PRIOR_STRENGTHS
    )


@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_equals_the_definition(data, tokenizer, order):
    train, heldout = data(random_dna(3000, seed=1), random_dna(700, seed=2))
    assert markov_bits_per_base(train, heldout, tokenizer, order) == pytest.approx(
        slow_bits_per_base(train, heldout, tokenizer, order)
    )


def test_random_bases_cost_two_bits_and_a_repeat_costs_nothing(data, tokenizer):
    rng = np.random.default_rng(0)
    uniform = ["".join(rng.choice(list("ACGT"), length)) for length in (20_000, 3_000)]
    assert markov_bits_per_base(*data(*uniform), tokenizer) == pytest.approx(2, abs=0.02)
    repeat = data("AACGTTGCC" * 2000, "AACGTTGCC" * 200)
    assert markov_bits_per_base(*repeat, tokenizer) < 0.2  # what it costs to find the phase


def test_bases_of_tokens(tokenizer):
    lengths = base_pairs_of_tokens(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert [lengths[tokens.index(token)] for token in ("[MASK]", "[UNK]", "A", "AACGT", "ACAC")] == [0, 0, 1, 5, 4]


def test_baselines_share_one_scale(data, tokenizer):
    train, heldout = data(random_dna(8000, seed=1), random_dna(2000, seed=2))
    found = baselines(train, heldout, tokenizer)
    ratio = found["unigram_bits_per_base"] / found["unigram_entropy"]
    assert found["bigram_bits_per_base"] / found["bigram_entropy"] == pytest.approx(ratio)
    labels = np.concatenate([heldout[i]["labels"] for i in range(len(heldout))])
    targets = labels[labels != IGNORED]
    assert ratio == pytest.approx(len(targets) / base_pairs_of_tokens(tokenizer)[targets].sum() / math.log(2))
    assert found["markov_bits_per_base"] < 2
