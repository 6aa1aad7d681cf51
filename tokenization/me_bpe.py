"""ME-BPE, the file-by-file training of dnaGrinder (section 2.1.1), for comparison with exact training.

The paper leaves details open. The reading here: each file is trained by itself to the full vocabulary size; the
frequency of a token is the count of its pair when it was merged; letters are always kept. A token of a further file
adds its frequency to the one it has if it is in the vocabulary, else it comes in with this file's frequency alone; then
the vocabulary is cut back to its size, least frequent tokens first. At the end tokens become merges in order of
frequency, see `usable_merges`.
"""

import itertools
from collections.abc import Callable, Iterable

import numpy as np

from tokenization.bpe_trainer import Limits, Progress, TokensInMemory, merges_as_text, train


def train_me_bpe(
    files: Iterable[np.ndarray], merges: int, limits: Limits, report: Callable[[int], None]
) -> list[tuple[str, str, int]]:
    """Merges (left, right, frequency) of a vocabulary updated file by file; at most `merges` of them.

    files: letter codes of each file, see `words.load_codes`; worked on in place, one at a time.
    """
    frequencies: dict[str, int] = {}
    for codes in files:
        progress = Progress(np.zeros((merges, 3), np.int64))
        train(TokensInMemory(codes), progress, limits, report)
        found = {left + right: count for left, right, count in merges_as_text(progress)}
        kept = dict(list(frequencies.items())[:merges])
        frequencies = update(kept, found)
    return usable_merges(frequencies, merges)


def update(frequencies: dict[str, int], found: dict[str, int]) -> dict[str, int]:
    """Frequencies of the kept tokens and those of one more file, most frequent first; of equal ones the older first.

    What comes behind the size of the vocabulary is thrown out before the next file.
    """
    updated = dict(frequencies)
    for token, count in found.items():
        updated[token] = updated.get(token, 0) + count
    return dict(sorted(updated.items(), key=lambda item: -item[1]))


def usable_merges(frequencies: dict[str, int], size: int) -> list[tuple[str, str, int]]:
    """Merges (left, right, frequency) that make the first `size` tokens, given most frequent first.

    The files that a vocabulary comes from need not build a token the same way, and may not have left its parts in it.
    So a token becomes the merge of the two tokens that the merges before it leave of its letters. If these are more
    than two, it waits until further merges join them; what never comes down to two cannot be reached, and the next
    most frequent token takes its place.
    """
    ranks: dict[tuple[str, str], int] = {}
    candidates = iter(frequencies)
    waiting = list(itertools.islice(candidates, size))
    while waiting:
        still_waiting = []
        for token in waiting:
            parts = encode_letters(token, ranks)
            if len(parts) == 2:
                ranks[parts[0], parts[1]] = len(ranks)
            else:
                still_waiting.append(token)
        if len(still_waiting) == len(waiting):
            still_waiting = list(itertools.islice(candidates, size - len(ranks)))
        waiting = still_waiting
    return [(left, right, frequencies[left + right]) for left, right in ranks]


def encode_letters(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte Pair Encoding of a short sequence: again and again the earliest merge, at its leftmost place."""
    parts = list(token)
    while True:
        known = [
            (ranks[pair], place) for place, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks
        ]
        if not known:
            return parts
        place = min(known)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
