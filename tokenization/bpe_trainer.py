"""Exact Byte Pair Encoding of DNA: the merges that `tokenizers` finds, at a fraction of its time and memory.

Definition (tokenizers' BpeTrainer): the count of a pair is the number of adjacent positions within words, overlapping
ones included; the pair with the largest count is merged, ties going to the smaller left and then right id; occurrences
are replaced from left to right. Counts are int64 here, so that corpora above 2^31 pairs are right too.

Three facts make it fast. (1) Sort the pairs by (-count, left, right): the longest prefix in which no pair ends with a
token that another begins with are the next merges, in this order, so few-token stages merge whole batches per pass.
(2) The count of an existing pair only falls, so while the best pair counts at least a threshold, only the pairs above
it need their positions known. (3) For the same reason a pair below a floor can be forgotten until the best pair has
come down to that floor; then all pairs are counted again with a lower one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tokenization import bpe_kernels as kernels
from tokenization.tokenizer_files import LETTERS

NO_LENGTH_LIMIT = np.iinfo(np.int64).max
MOST_DENSE_BITS = 10  # at most 1,023 tokens in the dense stage; its pair counts then take 8 MB
BUCKETS = 1 << 22  # of the first, approximate count of pairs; 32 MB
DEAD_SHARE = 32  # a floor is the best count divided by this
ROOM_FOR_BIRTHS = 64  # table slots for each token; one merge needs at most 4


@dataclass
class Progress:
    """What is known of the merges so far. `merges` (limit, 3): left, right, count; internal ids, A C G T are 0..3."""

    merges: np.ndarray
    done: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.ones(kernels.ID_SPACE, np.int64))  # bp of each token

    def add(self, left: int, right: int, count: int) -> None:
        self.merges[self.done] = left, right, count
        self.lengths[self.tokens] = self.lengths[left] + self.lengths[right]
        self.done += 1

    @property
    def tokens(self) -> int:
        return len(LETTERS) + self.done

    @property
    def finished(self) -> bool:
        return self.done == len(self.merges)


def merges_as_text(progress: Progress) -> list[tuple[str, str, int]]:
    """Merges made so far as (left token, right token, count)."""
    tokens = list(LETTERS)
    merges = []
    for left, right, count in progress.merges[: progress.done].tolist():
        merges.append((tokens[left], tokens[right], count))
        tokens.append(tokens[left] + tokens[right])
    return merges


@dataclass(frozen=True)
class Limits:
    """min_frequency: merges below this count are not made. max_token_length: tokens stay below this many bp."""

    min_frequency: int = 1
    max_token_length: int = NO_LENGTH_LIMIT

    def allows(self, left: np.ndarray, right: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the pairs of these ids may be merged; left, right: integers of shapes that broadcast."""
        # As in tokenizers: strictly below, and a pair of letters is always allowed.
        return ((left < 4) & (right < 4)) | (lengths[left] + lengths[right] < self.max_token_length)


class PairTable:
    """Counts of all pairs that count at least `floor`, and their places in the pool of positions."""

    def __init__(self, capacity: int, floor: int):
        self.floor = floor
        self.used = 0
        self.keys = np.zeros(capacity, np.uint32)
        self.counts = np.zeros(capacity, np.int64)
        self.starts = np.full(capacity, -1, np.int64)
        self.ends = np.full(capacity, -1, np.int64)

    def alive(self, limits: Limits, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs that may still be merged, best first: (keys, counts)."""
        slots = np.flatnonzero((self.keys != 0) & (self.counts >= self.floor))
        keys, counts = self.keys[slots].astype(np.int64) - 1, self.counts[slots]
        allowed = limits.allows(keys >> 16, keys & 65535, lengths)
        keys, counts = keys[allowed], counts[allowed]
        order = np.lexsort((keys, -counts))
        return keys[order], counts[order]

    @classmethod
    def of_pairs(cls, keys: np.ndarray, counts: np.ndarray, floor: int, tokens: int) -> "PairTable":
        """Table with room for the births of many merges."""
        table = cls(power_of_two(4 * len(keys) + ROOM_FOR_BIRTHS * tokens), floor)
        kernels.insert_pairs(table.keys, table.counts, keys, counts)
        table.used = len(keys)
        return table

    def index(self, keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, int]:
        """Give each pair its place in the pool; returns (filter for `collect_positions`, places in use)."""
        self.starts[:] = -1
        self.ends[:] = -1
        slots = kernels.find_slots(self.keys, keys)
        self.ends[slots] = np.cumsum(counts)
        self.starts[slots] = self.ends[slots] - counts
        return kernels.pair_filter(keys), int(counts.sum())


def power_of_two(at_least: int) -> int:
    return 1 << max(10, int(at_least - 1).bit_length())


class TokensInMemory:
    """A whole corpus as one token array. `codes` (uint8 letters, a separator before each word) is worked on in place.

    position_share: places in the pool of positions, per code; 4 bytes each.
    """

    def __init__(self, codes: np.ndarray, position_share: float = 1 / 50):
        if len(codes) >= 1 << 32:
            raise ValueError(f"{len(codes):,} bases and words do not fit one array of 2^32; train with a memory budget")
        self.codes = codes
        self.tokens = codes
        self.length = len(codes)
        self.wide = False
        self.positions = max(1 << 16, int(len(codes) * position_share))

    def arrays(self) -> Iterator[np.ndarray]:
        """The token arrays, for counting."""
        yield self.tokens[: self.length]

    def widen(self, progress: Progress) -> None:
        """Turn uint8 tokens into uint16, in the same memory where they fit."""
        self.tokens = kernels.widen(self.codes, self.length)
        self.wide = True

    def merge_dense(self, bits: int, lookup: np.ndarray, progress: Progress) -> None:
        self.length = kernels.merge_dense(self.tokens, self.length, bits, lookup)

    def merge_sparse(
        self, table: PairTable, wanted: np.ndarray, places: int, merge: Callable, progress: Progress
    ) -> None:
        pool = np.empty(max(self.positions, places), np.uint32)
        starts = table.starts.copy()
        kernels.collect_positions(self.tokens, self.length, table.keys, starts, wanted, pool)
        merge(self.tokens, pool)
        self.length = kernels.drop_holes(self.tokens, self.length)


def train(store, progress: Progress, limits: Limits, report: Callable[[int], None]) -> None:
    """Merge until `progress` is full or no pair is left that the limits allow. `report` gets the merges made so far.

    store: TokensInMemory or TokensOnDisk.
    """
    table = merge_while_dense(store, progress, limits, report)
    if not store.wide and not progress.finished:
        store.widen(progress)
    while not progress.finished:
        if table is None:
            table = count_pairs(store, progress, limits)
        if table is None:
            return
        table = merge_one_phase(store, progress, limits, table)
        report(progress.done)


def merge_while_dense(store, progress: Progress, limits: Limits, report: Callable[[int], None]) -> PairTable | None:
    """First stage: few tokens with many occurrences each. Every pass merges a batch and counts all pairs.

    Returns the pairs left, once the positions of several fit the pool, or no more tokens fit this stage. Raises
    ValueError in the latter case for a corpus on disk.
    """
    while not progress.finished and progress.tokens < 1 << MOST_DENSE_BITS:
        if progress.tokens >= 240 and not store.wide:
            store.widen(progress)
        bits = MOST_DENSE_BITS if store.wide else 8
        counts = np.zeros(1 << 2 * bits, np.int64)
        for tokens in store.arrays():
            kernels.count_dense(tokens, len(tokens), bits, counts)
        counts = counts.reshape(1 << bits, -1)[: progress.tokens, : progress.tokens]
        ids = np.arange(progress.tokens)
        counts[~limits.allows(ids[:, None], ids, progress.lengths)] = 0
        room = (1 << bits) - 1 - progress.tokens
        if counts.max() * 4 <= store.positions or (room == 0 and isinstance(store, TokensInMemory)):
            return table_of_counts(counts, progress, limits)
        if room == 0:
            raise ValueError(
                f"the memory budget is too small: the most frequent pair has {counts.max():,} positions; "
                f"give {counts.max() * 4 // store.positions + 1} times as much"
            )
        batch = commuting_batch(counts, limits)[: min(room, len(progress.merges) - progress.done)]
        if not batch:
            return None
        kind = np.uint16 if store.wide else np.uint8
        lookup = np.repeat(np.arange(1 << bits, dtype=kind), 1 << bits)
        lookup[-(1 << bits) :] = np.iinfo(kind).max  # a separator stays
        for left, right in batch:
            lookup[left << bits | right] = progress.tokens
            progress.add(left, right, int(counts[left, right]))
        store.merge_dense(bits, lookup, progress)
        report(progress.done)
    return None


def table_of_counts(counts: np.ndarray, progress: Progress, limits: Limits) -> PairTable:
    """Table of all pairs, counts: (tokens, tokens), that count at least a 32nd of the best one."""
    floor = max(limits.min_frequency, int(counts.max()) // DEAD_SHARE)
    left, right = np.nonzero(counts >= floor)
    return PairTable.of_pairs(left << 16 | right, counts[left, right], floor, progress.tokens)


def commuting_batch(counts: np.ndarray, limits: Limits) -> list[tuple[int, int]]:
    """The next merges that do not change each other's counts, in order.

    counts: (tokens, tokens), 0 for pairs that may not be merged. A pair of a token with itself ends a batch: what it
    gives birth to may come next.
    """
    batch, lefts, rights = [], set(), set()
    size = len(counts)
    for flat in np.lexsort((np.arange(size * size), -counts.ravel())):
        left, right = divmod(int(flat), size)
        if counts[left, right] < limits.min_frequency:
            break
        if left in rights or right in lefts:
            break
        batch.append((left, right))
        lefts.add(left)
        rights.add(right)
        if left == right:
            break
    return batch


def count_pairs(store, progress: Progress, limits: Limits) -> PairTable | None:
    """Table of the pairs that count at least a 32nd of the best one; None when no pair may be merged any more."""
    buckets = np.zeros(min(BUCKETS, power_of_two(4 * progress.tokens**2)), np.int64)
    for tokens in store.arrays():
        kernels.add_to_buckets(tokens, len(tokens), buckets)
    floor = max(limits.min_frequency, int(buckets.max()) // DEAD_SHARE)
    while True:
        table = count_pairs_above(store, buckets, floor)
        keys, counts = table.alive(limits, progress.lengths)
        if len(keys):
            return PairTable.of_pairs(keys, counts, floor, progress.tokens)
        if floor == limits.min_frequency:
            return None
        floor = max(limits.min_frequency, floor // DEAD_SHARE)


def count_pairs_above(store, buckets: np.ndarray, floor: int) -> PairTable:
    """Exact counts of the pairs whose bucket reaches the floor."""
    capacity = power_of_two(4 * int((buckets >= floor).sum()))
    while True:
        table = PairTable(capacity, floor)
        for tokens in store.arrays():
            table.used = kernels.add_to_table(tokens, len(tokens), buckets, floor, table.keys, table.counts, table.used)
            if table.used < 0:
                break
        else:
            return table
        capacity *= 2


def merge_one_phase(store, progress: Progress, limits: Limits, table: PairTable) -> PairTable | None:
    """Merge while the best pair is among those whose positions fit the pool; returns None when a recount is due."""
    keys, counts = table.alive(limits, progress.lengths)
    if not len(keys):
        return None
    fitting = int(np.searchsorted(np.cumsum(counts), store.positions * 0.8, side="right"))
    threshold = table.floor if fitting == len(keys) else min(int(counts[fitting]) + 1, int(counts[0]))
    chosen = counts >= threshold
    wanted, places = table.index(keys[chosen], counts[chosen])
    why = None

    def merge(tokens: np.ndarray, pool: np.ndarray) -> None:
        nonlocal why
        why, progress.done, table.used = kernels.merge_sparse(
            tokens, pool, table.keys, table.counts, table.starts, table.ends, table.used, keys[chosen], threshold,
            table.floor, limits.max_token_length, progress.lengths, progress.merges, progress.done,
        )  # fmt: skip

    store.merge_sparse(table, wanted, places, merge, progress)
    if why == kernels.TABLE_FULL:
        keys, counts = table.alive(limits, progress.lengths)
        return PairTable.of_pairs(keys, counts, table.floor, progress.tokens) if len(keys) else None
    return table
