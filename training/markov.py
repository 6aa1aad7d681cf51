"""
What a Markov model of bases achieves on the stretches that the language model has to predict.

Scores are bits per base, so that tokenizers compare. All models see the same held-out masked tokens and the same number
of bases: those of these tokens. The Markov model predicts the bases of a masked token from left to right, each given
the true bases before it, also those of masked tokens, and it is told where the token ends; the language model sees
both sides, but not the masked tokens, and has to find the token's length as well. So the comparison favours the Markov
model wherever it is not equal.
"""

import math

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.data import MlmDataset, TokenStore
from training.entropy import PRIOR_STRENGTHS, frequency_baselines, training_blocks
from training.masking import IGNORED

ORDER = 8  # bases of context
LETTERS = "ACGT"


def base_pairs_of_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """int64 (vocabulary,): bases of each token, 0 for special tokens."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return np.array([0 if index in special else len(token) for index, token in enumerate(tokens)])


def baselines(train: TokenStore, heldout: MlmDataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """
    What models of token and base frequencies reach at the held-out masked tokens.

    Returns:
        unigram_entropy, bigram_entropy in nats per token, unigram_accuracy, bigram_accuracy (see `training.entropy`);
        unigram, bigram and the order-8 Markov model of bases as *_bits_per_base.
    """
    found = frequency_baselines(train, heldout, len(tokenizer))
    lengths = base_pairs_of_tokens(tokenizer)
    targets = np.concatenate([heldout[index]["labels"] for index in range(len(heldout))])
    targets = targets[targets != IGNORED]
    bits_per_base = len(targets) / lengths[targets].sum() / math.log(2)
    per_base = {f"{name}_bits_per_base": found[f"{name}_entropy"] * bits_per_base for name in ("unigram", "bigram")}
    return found | per_base | {"markov_bits_per_base": markov_bits_per_base(train, heldout, tokenizer)}


def markov_bits_per_base(
    train: TokenStore, heldout: MlmDataset, tokenizer: PreTrainedTokenizerBase, order: int = ORDER
) -> float:
    """
    Mean -log2 p(base | `order` bases before it in the window) over the bases of the held-out masked tokens.

    Counts come from the training windows (at most `training.entropy.FIT_TOKENS` of their tokens). Every order is
    smoothed by the next lower one, p_k = (n(c, b) + s p_{k-1}) / (n(c) + s); near a window's start, where fewer bases
    precede, the order is that number. The strength s is the best of a few on the held-out bases themselves.
    """
    bases = _Bases(tokenizer)
    counts = np.zeros(4 ** (order + 1), dtype=np.int64)
    for tokens, offsets in training_blocks(train):
        codes, place = bases.codes(tokens, offsets, order)
        counts += np.bincount(codes[place >= order], minlength=len(counts))
    scored = _scored_bases(bases, heldout, order)
    return min(_cross_entropy(counts, *scored, order, strength) for strength in PRIOR_STRENGTHS)


class _Bases:
    """The bases of tokens as numbers 0..3."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.lengths = base_pairs_of_tokens(tokenizer)
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        text = "".join(token for token, length in zip(tokens, self.lengths, strict=True) if length)
        self.letters = np.searchsorted(list(LETTERS), list(text))
        self.starts = np.cumsum(self.lengths) - self.lengths

    def codes(self, tokens: np.ndarray, offsets: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
        """
        For every base of windows: the number in base 4 that the `order` bases before it and it itself spell, and how
        many bases precede it in its window. Digits from before the window are the older ones, and mean nothing.
        """
        lengths = self.lengths[tokens]
        first = np.cumsum(lengths) - lengths
        letters = self.letters[np.repeat(self.starts[tokens] - first, lengths) + np.arange(lengths.sum())]
        codes = letters.copy()
        for distance in range(1, order + 1):
            codes[distance:] += letters[:-distance] << 2 * distance
        window_starts = np.append(first, len(letters))[offsets[:-1]]
        window_lengths = np.diff(np.append(window_starts, len(letters)))
        return codes, np.arange(len(letters)) - np.repeat(window_starts, window_lengths)


def _scored_bases(bases: _Bases, heldout: MlmDataset, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and places (see `_Bases.codes`) of the bases of all held-out masked tokens."""
    codes, places = [], []
    for index in range(len(heldout)):
        window, labels = heldout.window(index), heldout[index]["labels"]
        code, place = bases.codes(window, np.array([0, len(window)]), order)
        masked = np.repeat(labels != IGNORED, bases.lengths[window])
        codes.append(code[masked])
        places.append(place[masked])
    return np.concatenate(codes), np.concatenate(places)


def _cross_entropy(counts: np.ndarray, codes: np.ndarray, places: np.ndarray, order: int, strength: float) -> float:
    """Mean -log2 p of the scored bases, with one strength of smoothing."""
    bits = np.zeros(len(codes))
    lower = np.full((1, 4), 0.25)
    for k in range(order + 1):
        seen = counts.reshape(-1, 4**k, 4).sum(axis=0)
        context = np.arange(4**k) % len(lower)
        lower = (seen + strength * lower[context]) / (seen.sum(axis=1, keepdims=True) + strength)
        here = np.minimum(places, order) == k
        bits[here] = -np.log2(lower.reshape(-1)[codes[here] % 4 ** (k + 1)])
    return float(bits.mean())
