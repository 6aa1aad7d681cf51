"""What token frequencies alone achieve: the lines that a masked-language model must fall below."""

from collections.abc import Iterator

import numpy as np

from training.data import MlmDataset, TokenStore
from training.masking import IGNORED

FIT_TOKENS = 100_000_000  # training tokens counted at most, in blocks spread evenly over the corpus
BLOCK = 1_000_000
PRIOR_STRENGTHS = (1, 10, 100, 1_000, 10_000, 100_000)  # pseudo-counts of the unigram in the bigram
LARGEST_PAIR_TABLE = 4_096  # tokens of a vocabulary whose pairs are all counted, for the bigram's best guess


def frequency_baselines(train: TokenStore, heldout: MlmDataset, vocab_size: int) -> dict[str, float]:
    """
    Unigram and bigram cross-entropy at the held-out masked tokens, in nats per token, and the share of these tokens
    that is the likeliest one (the bigram's for vocabularies of at most LARGEST_PAIR_TABLE tokens).

    Counts come from the training tokens, the value is the mean of -log p over exactly the targets that the
    evaluation masks; so it compares with the evaluation loss. Unigram: one added to every count. Bigram: the token
    given its true left neighbour ([CLS] at a window's start), with the unigram as prior, p(b | a) =
    (n(a, b) + s p(b)) / (n(a) + s). The strength s is the best of a few on the held-out targets themselves: the
    baseline is flattered rather than the model.
    """
    left, target = _targets(heldout)
    pairs, pair_of_target = np.unique(left * vocab_size + target, return_inverse=True)
    token_counts = np.zeros(vocab_size, dtype=np.int64)
    left_counts = np.zeros(vocab_size, dtype=np.int64)
    pair_counts = np.zeros(len(pairs), dtype=np.int64)
    table = np.zeros(vocab_size**2, dtype=np.int64) if vocab_size <= LARGEST_PAIR_TABLE else None
    for tokens, offsets in training_blocks(train):
        token = tokens.astype(np.int64)
        previous = np.roll(token, 1)
        previous[offsets[:-1]] = heldout.cls_id
        token_counts += np.bincount(token, minlength=vocab_size)
        left_counts += np.bincount(previous, minlength=vocab_size)
        codes = previous * vocab_size + token
        found = np.searchsorted(pairs, codes).clip(max=len(pairs) - 1)
        pair_counts += np.bincount(found[pairs[found] == codes], minlength=len(pairs))
        if table is not None:
            table += np.bincount(codes, minlength=len(table))
    unigram = (token_counts + 1) / (token_counts.sum() + vocab_size)
    losses = {
        strength: -np.log((pair_counts[pair_of_target] + strength * unigram[target]) / (left_counts[left] + strength))
        for strength in PRIOR_STRENGTHS
    }
    strength = min(losses, key=lambda s: losses[s].mean())
    found = {
        "unigram_entropy": float(-np.log(unigram[target]).mean()),
        "unigram_accuracy": float((target == unigram.argmax()).mean()),
        "bigram_entropy": float(losses[strength].mean()),
    }
    if table is not None:
        likeliest = (table.reshape(vocab_size, vocab_size) + strength * unigram).argmax(axis=1)
        found["bigram_accuracy"] = float((target == likeliest[left]).mean())
    return found


def _targets(heldout: MlmDataset) -> tuple[np.ndarray, np.ndarray]:
    """Left neighbours and true ids of all held-out targets."""
    left, target = [], []
    for index in range(len(heldout)):
        window, labels = heldout.window(index), heldout[index]["labels"]
        positions = np.flatnonzero(labels != IGNORED)
        left.append(window[positions - 1])
        target.append(labels[positions])
    return np.concatenate(left), np.concatenate(target)


def training_blocks(train: TokenStore) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens of training windows and the windows' offsets, in blocks evenly spread over at most FIT_TOKENS tokens."""
    windows_per_block = max(1, BLOCK * len(train) // max(1, len(train.tokens)))
    starts = np.arange(0, len(train), windows_per_block)
    keep = max(1, min(len(starts), FIT_TOKENS // BLOCK))
    for start in starts[np.linspace(0, len(starts) - 1, keep).round().astype(np.int64)].tolist():
        offsets = train.offsets[start : start + windows_per_block + 1]
        yield train.tokens[offsets[0] : offsets[-1]], offsets - offsets[0]
