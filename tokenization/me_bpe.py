"""ME-BPE, the file-by-file training of dnaGrinder (section 2.1.1), for comparison with exact training.

The paper leaves details open. The reading here: each file is trained by itself to the full vocabulary size; the
frequency of a token is the count of its pair when it was merged; letters are always kept. A token of a further file
adds its frequency to the one it has if it is in the vocabulary, else it comes in with this file's frequency alone; then
the vocabulary is cut back to its size, least frequent tokens first. Tokens become merges in order of frequency, the
parts of a token before it: a token can be more frequent than its parts, since files need not build it the same way.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from tokenization.bpe_trainer import Limits, Progress, TokensInMemory, merges_as_text, train


@dataclass
class Token:
    """frequency: merge counts added up over files. left, right: how the first file that had it merges it."""

    frequency: int
    left: str
    right: str


def train_me_bpe(
    files: Iterable[np.ndarray], merges: int, limits: Limits, report: Callable[[int], None]
) -> list[tuple[str, str, int]]:
    """Merges (left, right, frequency) of a vocabulary updated file by file; at most `merges` of them.

    files: letter codes of each file, see `words.load_codes`; worked on in place, one at a time.
    """
    vocabulary: dict[str, Token] = {}
    for codes in files:
        progress = Progress(np.zeros((merges, 3), np.int64))
        train(TokensInMemory(codes), progress, limits, report)
        vocabulary = update(vocabulary, merges_as_text(progress), merges)
    return usable_merges(vocabulary)


def update(vocabulary: dict[str, Token], found: list[tuple[str, str, int]], size: int) -> dict[str, Token]:
    """Vocabulary after one more file: frequencies added, the `size` most frequent kept (ties: the older one)."""
    updated = dict(vocabulary)
    for left, right, count in found:
        token = left + right
        if token in updated:
            known = updated[token]
            updated[token] = Token(known.frequency + count, known.left, known.right)
        else:
            updated[token] = Token(count, left, right)
    ranked = sorted(updated.items(), key=lambda item: -item[1].frequency)  # stable: the older one stays in front
    return dict(ranked[:size])


def usable_merges(vocabulary: dict[str, Token]) -> list[tuple[str, str, int]]:
    """Merges in the order of the vocabulary, the parts of a token always before it.

    A token whose parts were thrown out is split into others that were kept; one that has no such split cannot be made
    by merging and is left out.
    """
    made = {"A", "C", "G", "T"}
    cuts = {}
    for token in sorted(vocabulary, key=len):  # parts are shorter, so they are decided before the whole
        candidates = [len(vocabulary[token].left), *range(len(token) - 1, 0, -1)]
        cut = next((cut for cut in candidates if token[:cut] in made and token[cut:] in made), None)
        if cut is not None:
            made.add(token)
            cuts[token] = cut
    ordered: dict[str, None] = {}

    def place(token: str) -> None:
        if token in cuts and token not in ordered:
            place(token[: cuts[token]])
            place(token[cuts[token] :])
            ordered[token] = None

    for token in vocabulary:
        place(token)
    return [(token[: cuts[token]], token[cuts[token] :], vocabulary[token].frequency) for token in ordered]
