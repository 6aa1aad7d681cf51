"""The letters of a sequence: what counts as a base, what becomes N, what is refused."""

import numpy as np

AMBIGUITY_CODES = b"RYSWKMBDHVN"
WHITE_SPACE = b" \t\r\n\v\f"
_INVALID = 0


def _translation_table() -> bytes:
    table = bytearray([_INVALID]) * 256
    for letters, result in ((b"A", b"A"), (b"C", b"C"), (b"G", b"G"), (b"TU", b"T"), (AMBIGUITY_CODES, b"N")):
        for letter in letters + letters.lower():
            table[letter] = result[0]
    return bytes(table)


_TO_ACGTN = _translation_table()
_IS_BASE = bytes(_TO_ACGTN[letter] in b"ACGT" for letter in range(256))
_SCAN_BLOCK = 1 << 24  # bp looked at at once: bounds the memory of acgt_runs


def normalize(sequence: bytes | str) -> bytes:
    """
    Write a sequence in the letters A, C, G, T and N.

    Lower case (soft-masked) reads as upper case, U as T, an IUPAC ambiguity code (R Y S W K M B D H V N) as N;
    white space is dropped.

    Raises:
        ValueError: any other character; names it and its position (counted from 1, white space included).
    """
    if isinstance(sequence, str):
        try:
            sequence = sequence.encode("ascii")
        except UnicodeEncodeError as error:
            raise _invalid_character(sequence[error.start], error.start) from None
    letters = sequence.translate(_TO_ACGTN, WHITE_SPACE)
    if _INVALID in letters:
        allowed = WHITE_SPACE + bytes(letter for letter in range(256) if _TO_ACGTN[letter] != _INVALID)
        first = sequence.translate(None, allowed)[:1]
        raise _invalid_character(first.decode("latin-1"), sequence.index(first))
    return letters


def _invalid_character(character: str, index: int) -> ValueError:
    return ValueError(
        f"character {character!r} at position {index + 1} is not a nucleotide: a sequence holds A, C, G, T, U and the "
        f"ambiguity codes {AMBIGUITY_CODES.decode()}, in upper or lower case"
    )


def acgt_runs(sequence: bytes, min_length: int = 1) -> list[tuple[int, int]]:
    """
    Find the maximal runs of unambiguous bases (A, C, G, T, U, in either case).

    Args:
        sequence: letters without white space, e.g. of `FastaRecord` or from `normalize`.
        min_length: runs shorter than this many bp are left out.

    Returns:
        Half-open intervals [start, end) in bp, ascending.
    """
    edges = []
    inside = 0  # whether the letter before the block is a base
    for offset in range(0, len(sequence), _SCAN_BLOCK):
        is_base = np.frombuffer(sequence[offset : offset + _SCAN_BLOCK].translate(_IS_BASE), np.uint8)
        edges.append(np.flatnonzero(np.diff(is_base, prepend=np.uint8(inside))) + offset)
        inside = is_base[-1]
    if inside:
        edges.append(np.array([len(sequence)]))
    runs = np.concatenate(edges).reshape(-1, 2) if edges else np.empty((0, 2), np.int64)
    return [(start, end) for start, end in runs.tolist() if end - start >= min_length]
