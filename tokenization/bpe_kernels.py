"""Compiled loops of the exact BPE trainer.

Tokens are internal ids: A 0, C 1, G 2, T 3, then merges in order. A token array begins and ends with a separator (255
in uint8 arrays, 65535 in uint16 arrays) and has one before each word. HOLE marks, while merges are under way, the
former place of a token that is now part of the one on its left. All counts are int64.

Indices are uint64 on purpose: for signed ones the compiler adds a check for negative values to every access.
"""

import heapq

import numpy as np
from numba import njit, uint64

SEPARATOR = 65535
HOLE = 65534
MAX_TOKENS = 65534
ID_SPACE = 65536

REACHED_THRESHOLD, REACHED_LIMIT, POOL_FULL, TABLE_FULL = range(4)  # why merge_sparse returned
FILTER_BITS = 20  # pairs that are looked for while building positions; 128 KB, stays in the second-level cache


# ---- dense: few tokens, many occurrences; every pass counts all pairs ----


@njit(cache=True)
def count_dense(tokens, length, bits, counts):
    """Add the adjacent pairs of tokens[:length] to counts (2^bits * 2^bits,); a separator counts as 2^bits - 1."""
    mask = uint64((1 << bits) - 1)
    left = uint64(tokens[0]) & mask
    for index in range(uint64(1), uint64(length)):
        right = uint64(tokens[index]) & mask
        counts[(left << uint64(bits)) | right] += 1
        left = right


@njit(cache=True)
def merge_dense(tokens, length, bits, lookup):
    """Apply a batch of merges to tokens[:length] in place, left to right; returns the new length.

    lookup (2^bits * 2^bits,): the merged token of a pair, or the left token where the pair is not merged. No pair of
    the batch may end with a token that another begins with.
    """
    mask = uint64((1 << bits) - 1)
    write = uint64(0)
    keep = uint64(1)  # whether the current token was not consumed by the one before it; no branch: it would mispredict
    current = uint64(tokens[0])
    for index in range(uint64(1), uint64(length)):
        following = uint64(tokens[index])
        result = uint64(lookup[((current & mask) << uint64(bits)) | (following & mask)])
        tokens[write] = result
        write += keep
        keep = uint64(result == current) | (uint64(1) - keep)
        current = following
    tokens[write] = current  # the closing separator
    return np.int64(write) + 1


@njit(cache=True)
def widen_backwards(narrow, wide, length):
    """Rewrite uint8 tokens as uint16; from the end, so that both arrays may begin at the same address."""
    for step in range(length):
        index = length - 1 - step
        token = narrow[index]
        wide[index] = SEPARATOR if token == 255 else token


def widen(codes, length):
    """uint16 tokens of uint8 codes[:length], in the memory of `codes` if they fit there."""
    fits = 2 * length <= len(codes)
    wide = codes[: len(codes) // 2 * 2].view(np.uint16) if fits else np.empty(length, np.uint16)
    widen_backwards(codes, wide, length)
    return wide


# ---- pair table: open addressing, linear probing ----


@njit(cache=True, inline="always")
def hash_pair(key):
    """64-bit mix of a pair key (left << 16 | right)."""
    return key * uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def find_slot(keys, key):
    """Slot of a pair, or the free slot where it would go. keys: uint32, a power of two long, key + 1, 0 free."""
    mask = uint64(len(keys) - 1)
    stored = uint64(key) + uint64(1)
    slot = (hash_pair(uint64(key)) >> uint64(32)) & mask
    while keys[slot] != 0 and uint64(keys[slot]) != stored:
        slot = (slot + uint64(1)) & mask
    return slot


@njit(cache=True)
def add_to_buckets(tokens, length, buckets):
    """Count the pairs of tokens[:length] by hash bucket (a power of two of them): an upper bound for every pair."""
    mask = uint64(len(buckets) - 1)
    left = uint64(tokens[0])
    for index in range(uint64(1), uint64(length)):
        right = uint64(tokens[index])
        if left != SEPARATOR and right != SEPARATOR:
            buckets[(hash_pair((left << uint64(16)) | right) >> uint64(32)) & mask] += 1
        left = right


@njit(cache=True)
def add_to_table(tokens, length, buckets, floor, keys, counts, used):
    """Count exactly the pairs of tokens[:length] whose bucket reaches `floor`; returns used slots, -1 when full."""
    mask = uint64(len(buckets) - 1)
    left = uint64(tokens[0])
    for index in range(uint64(1), uint64(length)):
        right = uint64(tokens[index])
        key = (left << uint64(16)) | right
        if left != SEPARATOR and right != SEPARATOR:
            if buckets[(hash_pair(key) >> uint64(32)) & mask] >= floor:
                slot = find_slot(keys, key)
                if keys[slot] == 0:
                    if used * 2 >= len(keys):
                        return -1
                    keys[slot] = key + uint64(1)
                    used += 1
                counts[slot] += 1
        left = right
    return used


@njit(cache=True)
def insert_pairs(keys, counts, new_keys, new_counts):
    """Put pairs into an empty table."""
    for index in range(len(new_keys)):
        slot = find_slot(keys, uint64(new_keys[index]))
        keys[slot] = uint64(new_keys[index]) + uint64(1)
        counts[slot] = new_counts[index]


@njit(cache=True)
def find_slots(keys, wanted):
    """Slots of pairs that the table holds."""
    slots = np.empty(len(wanted), np.int64)
    for index in range(len(wanted)):
        slots[index] = find_slot(keys, wanted[index])
    return slots


@njit(cache=True)
def pair_filter(wanted):
    """Bit filter over the hashes of the wanted pairs, 2^FILTER_BITS bits."""
    bits = np.zeros(1 << (FILTER_BITS - 3), np.uint8)
    for index in range(len(wanted)):
        bit = hash_pair(uint64(wanted[index])) >> uint64(64 - FILTER_BITS)
        bits[bit >> uint64(3)] |= np.uint8(1 << (bit & uint64(7)))
    return bits


@njit(cache=True)
def drop_holes(tokens, length):
    """Close the gaps in tokens[:length], in place; returns the new length."""
    write = uint64(0)
    for index in range(uint64(length)):
        tokens[write] = tokens[index]
        write += uint64(tokens[index] != HOLE)
    return np.int64(write)


# ---- sparse: many tokens, each merge touches only the positions of its pair ----


@njit(cache=True)
def collect_positions(tokens, length, keys, starts, wanted, pool):
    """Write the positions of the wanted pairs of tokens[:length] (no holes) into the pool, ascending.

    wanted: see `pair_filter`. starts: for each table slot its next place in the pool, or -1; moved on as places fill.
    """
    block = 4096
    found = np.empty(block, np.uint32)
    for begin in range(0, length - 1, block):
        end = min(begin + block, length - 1)
        number = uint64(0)
        left = uint64(tokens[begin])
        for index in range(uint64(begin), uint64(end)):  # no branch: hits are too irregular to predict
            right = uint64(tokens[index + uint64(1)])
            bit = hash_pair((left << uint64(16)) | right) >> uint64(64 - FILTER_BITS)
            found[number] = index
            number += (uint64(wanted[bit >> uint64(3)]) >> (bit & uint64(7))) & uint64(1)
            left = right
        for hit in range(number):
            index = uint64(found[hit])
            slot = find_slot(keys, (uint64(tokens[index]) << uint64(16)) | uint64(tokens[index + uint64(1)]))
            if keys[slot] != 0 and starts[slot] >= 0:
                pool[starts[slot]] = index
                starts[slot] += 1


@njit(cache=True)
def merge_positions(tokens, positions, left, right, merged, left_counts, right_counts, lefts, rights):
    """Replace each (left, right) that still stands at a position by `merged`, ascending.

    The positions of the replaced ones are kept at the front of `positions`. left_counts and right_counts (ID_SPACE,)
    get the neighbours that stood there at that moment, lefts and rights (ID_SPACE,) each neighbour once.
    Returns (replaced, distinct left neighbours, distinct right neighbours).
    """
    kept = uint64(0)
    left_used = uint64(0)
    right_used = uint64(0)
    for index in range(uint64(len(positions))):
        position = uint64(positions[index])
        if tokens[position] != left:
            continue
        second = position + uint64(1)
        while tokens[second] == HOLE:
            second += uint64(1)
        if tokens[second] != right:
            continue
        before = position - uint64(1)
        while tokens[before] == HOLE:
            before -= uint64(1)
        after = second + uint64(1)
        while tokens[after] == HOLE:
            after += uint64(1)
        tokens[position] = merged
        tokens[second] = HOLE
        neighbour = uint64(tokens[before])
        if left_counts[neighbour] == 0:
            lefts[left_used] = neighbour
            left_used += uint64(1)
        left_counts[neighbour] += 1
        neighbour = uint64(tokens[after])
        if right_counts[neighbour] == 0:
            rights[right_used] = neighbour
            right_used += uint64(1)
        right_counts[neighbour] += 1
        positions[kept] = position
        kept += uint64(1)
    return np.int64(kept), np.int64(left_used), np.int64(right_used)


@njit(cache=True)
def collect_new_positions(tokens, positions, merged, left_starts, right_starts, pool):
    """Write the positions of the new pairs (x, merged) and (merged, y) that have a place in the pool, ascending."""
    for index in range(uint64(len(positions))):
        position = uint64(positions[index])
        before = position - uint64(1)
        while tokens[before] == HOLE:
            before -= uint64(1)
        left = tokens[before]
        if left_starts[left] >= 0:
            pool[left_starts[left]] = before
            left_starts[left] += 1
        after = position + uint64(1)
        while tokens[after] == HOLE:
            after += uint64(1)
        right = tokens[after]
        if right != merged and right_starts[right] >= 0:
            pool[right_starts[right]] = position
            right_starts[right] += 1


@njit(cache=True)
def subtract(keys, counts, left, right, number):
    """Lower the count of a pair if the table holds it."""
    slot = find_slot(keys, (uint64(left) << uint64(16)) | uint64(right))
    if keys[slot] != 0:
        counts[slot] -= number


@njit(cache=True)
def merge_sparse(
    tokens, pool, keys, counts, starts, ends, used, first_keys, threshold, floor, max_length, lengths, merges, done
):
    """Merge pair after pair while the best one counts at least `threshold`.

    tokens: uint16, may hold holes. pool: uint32 positions. keys, counts, starts, ends: the pair table, starts and
    ends being a pair's place in the pool (-1 without). used: slots in use. first_keys: the pairs in the pool, best
    first. lengths: bases of each token. merges: (limit, 3) left, right, count; `done` of them are made.
    Returns (why, done, used).

    A pair's count never grows after its birth, so a pair born below `floor` is not stored, and a stale heap entry
    only needs to be pushed again with its lower count. Ties go to the smallest key: smallest left, then right id.
    """
    heap = [(-counts[find_slot(keys, key)], key) for key in first_keys]  # sorted, so already a heap
    pool_used = ends[find_slot(keys, first_keys[-1])]
    left_counts = np.zeros(ID_SPACE, np.int64)
    right_counts = np.zeros(ID_SPACE, np.int64)
    lefts = np.empty(ID_SPACE, np.uint16)
    rights = np.empty(ID_SPACE, np.uint16)
    left_starts = np.full(ID_SPACE, -1, np.int64)
    right_starts = np.full(ID_SPACE, -1, np.int64)
    while len(heap) > 0:
        negative, key = heap[0]
        slot = find_slot(keys, key)
        if counts[slot] != -negative:
            heapq.heappop(heap)
            if counts[slot] >= threshold:
                heapq.heappush(heap, (-counts[slot], key))
            continue
        if done == len(merges):
            return REACHED_LIMIT, done, used
        merged = done + 4
        if (used + 2 * merged + 2) * 2 > len(keys):
            return TABLE_FULL, done, used
        heapq.heappop(heap)
        left, right = key >> 16, key & 65535
        merges[done, 0], merges[done, 1], merges[done, 2] = left, right, counts[slot]
        lengths[merged] = lengths[left] + lengths[right]
        done += 1
        positions = pool[starts[slot] : ends[slot]]
        kept, left_used, right_used = merge_positions(
            tokens, positions, left, right, merged, left_counts, right_counts, lefts, rights
        )
        for index in range(left_used):
            if lefts[index] != merged:
                subtract(keys, counts, lefts[index], left, left_counts[lefts[index]])
        for index in range(right_used):
            subtract(keys, counts, right, rights[index], right_counts[rights[index]])
        counts[slot] = 0
        # Between two neighbouring merges stood (merged, left) for a moment: born and gone, so not to be counted.
        right_counts[left] -= left_counts[merged]

        born = 0
        overflow = False
        for index in range(left_used + right_used):
            on_left = index < left_used
            other = np.int64(lefts[index] if on_left else rights[index - left_used])
            number = left_counts[other] if on_left else right_counts[other]
            if other == SEPARATOR or number < floor or lengths[other] + lengths[merged] >= max_length:
                continue
            new_key = (other << 16 | merged) if on_left else (merged << 16 | other)
            new_slot = find_slot(keys, new_key)
            keys[new_slot] = new_key + 1
            counts[new_slot] = number
            starts[new_slot] = ends[new_slot] = -1
            used += 1
            if number < threshold:
                continue
            if pool_used + number > len(pool):
                overflow = True
                continue
            if on_left:
                left_starts[other] = pool_used
            else:
                right_starts[other] = pool_used
            starts[new_slot] = pool_used
            pool_used += number
            ends[new_slot] = pool_used
            heapq.heappush(heap, (-number, new_key))
            born += 1
        if born > 0:
            collect_new_positions(tokens, positions[:kept], merged, left_starts, right_starts, pool)
        for index in range(left_used):
            left_counts[lefts[index]] = 0
            left_starts[lefts[index]] = -1
        for index in range(right_used):
            right_counts[rights[index]] = 0
            right_starts[rights[index]] = -1
        if overflow:
            return POOL_FULL, done, used
    return REACHED_THRESHOLD, done, used


# ---- islands: what a sparse stage needs of a corpus that is larger than memory ----


@njit(cache=True)
def extract_islands(tokens, keys, starts, wanted, islands, used, begins, sizes, number):
    """Append the neighbourhoods of the wanted pairs of `tokens` to `islands`; returns (used, number).

    An island is a stretch of tokens that hold wanted pairs, and one more token on each side: merges inside it never
    reach further, because a pair that is born has a wanted pair under it. A separator stands before and after each.
    begins, sizes: place of each island in `tokens`; `number` of them are known. islands[:used] is filled.
    """
    block = 4096
    found = np.empty(block, np.uint32)
    length = len(tokens)
    stop = -1  # end of the island that is open
    for first in range(0, length - 1, block):
        last = min(first + block, length - 1)
        hits = uint64(0)
        left = uint64(tokens[first])
        for index in range(uint64(first), uint64(last)):
            right = uint64(tokens[index + uint64(1)])
            bit = hash_pair((left << uint64(16)) | right) >> uint64(64 - FILTER_BITS)
            found[hits] = index
            hits += (uint64(wanted[bit >> uint64(3)]) >> (bit & uint64(7))) & uint64(1)
            left = right
        for hit in range(hits):
            index = np.int64(found[hit])
            slot = find_slot(keys, (uint64(tokens[index]) << uint64(16)) | uint64(tokens[index + 1]))
            if keys[slot] == 0 or starts[slot] < 0:
                continue
            if index - 1 > stop:
                if stop >= 0:
                    islands[used] = SEPARATOR
                    used += 1
                begins[number] = stop = index - 1
                number += 1
            for place in range(stop, index + 3):
                islands[used] = tokens[place]
                used += 1
            stop = index + 3
            sizes[number - 1] = stop - begins[number - 1]
    if stop >= 0:
        islands[used] = SEPARATOR
        used += 1
    return used, number


@njit(cache=True)
def put_islands_back(tokens, islands, place, begins, sizes):
    """Put merged islands, which lie from islands[place] on, back into `tokens` without their holes.

    Returns (new length of tokens, next place).
    """
    write = 0
    read = 0
    for island in range(len(begins)):
        begin, size = np.int64(begins[island]), np.int64(sizes[island])
        for index in range(read, begin):
            tokens[write] = tokens[index]
            write += 1
        for index in range(place, place + size):
            if islands[index] != HOLE:
                tokens[write] = islands[index]
                write += 1
        read = begin + size
        place += size + 1
    for index in range(read, len(tokens)):
        tokens[write] = tokens[index]
        write += 1
    return write, place
