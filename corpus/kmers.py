"""Which 32-mers held-out sequences share with training: a sample of them, the same in every genome."""

import numpy as np
from numba import njit, uint64

K = 32  # 2 bits a base: a k-mer is a uint64
SAMPLED = 256  # one k-mer of so many, chosen by its hash (FracMinHash, as in sourmash)
_LIMIT = np.uint64((1 << 64) // SAMPLED)
_CODES = np.full(256, 4, np.uint8)
_CODES[[65, 67, 71, 84]] = 0, 1, 2, 3


def sampled_kmers(letters: bytes, offsets: np.ndarray) -> np.ndarray:
    """
    Hashes of the sampled canonical 32-mers (of a k-mer and its reverse complement the smaller one) of sequences.

    Args:
        letters: A, C, G, T, sequences end to end.
        offsets: where each begins, int64 (count + 1,); no k-mer crosses from one into the next.

    Returns:
        uint64, unique, ascending.
    """
    out = np.empty(max(1024, len(letters) // SAMPLED * 2), np.uint64)
    data = np.frombuffer(letters, np.uint8)
    while (used := _sample(data, offsets, _CODES, _LIMIT, out)) < 0:
        out = np.empty(2 * len(out), np.uint64)
    return np.unique(out[:used])


@njit(cache=True)
def _sample(data, offsets, codes, limit, out):
    """Write the sampled hashes to `out`; returns how many, or -1 when there is no room."""
    used = 0
    for sequence in range(len(offsets) - 1):
        forward = uint64(0)
        backward = uint64(0)
        length = 0
        for index in range(offsets[sequence], offsets[sequence + 1]):
            code = uint64(codes[data[index]])
            if code > 3:
                length = 0
                continue
            forward = (forward << uint64(2)) | code
            backward = (backward >> uint64(2)) | ((uint64(3) - code) << uint64(62))
            length += 1
            if length >= 32:
                mixed = min(forward, backward)  # splitmix64
                mixed = (mixed ^ (mixed >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
                mixed = (mixed ^ (mixed >> uint64(27))) * uint64(0x94D049BB133111EB)
                mixed ^= mixed >> uint64(31)
                if mixed < limit:
                    if used == len(out):
                        return -1
                    out[used] = mixed
                    used += 1
    return used
