"""
Which token covers which nucleotide.

The tokens of a DNA vocabulary lie end to end on the sequence and differ in length (BPE), so a base is found only by
adding up the lengths of the tokens before it. A letter outside A, C, G, T, such as N, is one [UNK] of one base.
"""

import torch
from torch import Tensor

LETTERS = "ACGTUNRYSWKMBDHV"  # nucleotides and IUPAC ambiguity codes
_READ_AS = str.maketrans(LETTERS + LETTERS.lower(), ("ACGTT" + "N" * 11) * 2)
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def checked_letters(sequence: str, which: str = "the sequence") -> str:
    """
    The sequence in the letters ACGTN, as long as it was: case does not matter, U is T, ambiguity codes are N.

    Raises:
        ValueError: an empty sequence, or a character that is no nucleotide; names which sequence and where (from 1).
    """
    if not isinstance(sequence, str):
        raise ValueError(f"{which} is {type(sequence).__name__}, not text")
    if not sequence:
        raise ValueError(f"{which} is empty")
    letters = sequence.translate(_READ_AS)
    if letters.strip("ACGTN"):  # what is left begins with another character
        position = next(i for i, letter in enumerate(letters) if letter not in "ACGTN")
        hint = "; remove white space first" if sequence[position].isspace() else ""
        raise ValueError(f"{which}: character {sequence[position]!r} at position {position + 1} is no nucleotide{hint}")
    return letters


def reverse_complement(letters: str) -> str:
    """The other strand of a sequence in ACGTN, read 5' to 3'."""
    return letters.translate(_COMPLEMENT)[::-1]


def token_lengths(tokenizer) -> Tensor:
    """
    Bases that each token id stands for: int64 (highest id + 1,); 1 for [UNK], 0 for the other special tokens.

    tokenizer: one of transformers, for which an unknown letter is one [UNK].
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    lengths = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for token, index in vocabulary.items():
        lengths[index] = 0 if index in special else len(token)
    lengths[tokenizer.unk_token_id] = 1
    return lengths


def token_spans(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """
    Half-open interval in bp that each token covers: int64 (tokens, 2); empty for special tokens.

    input_ids: (tokens,) of one sequence. lengths: of `token_lengths`.
    """
    ends = lengths[input_ids].cumsum(0)
    return torch.stack([ends - lengths[input_ids], ends], dim=1)


def token_of_nucleotide(input_ids: Tensor, lengths: Tensor, length: int) -> Tensor:
    """
    Index of the token that covers each nucleotide: int64 (length,).

    Args:
        input_ids: (tokens,) of one sequence, with or without special tokens.
        lengths: of `token_lengths`.
        length: bp of the sequence.

    Raises:
        ValueError: the tokens do not cover the sequence end to end (a tokenizer of overlapping k-mers, or ids of
            another sequence).
    """
    bases = lengths[input_ids]
    if int(bases.sum()) != length:
        raise ValueError(
            f"the tokens hold {int(bases.sum()):,} bases, the sequence {length:,}: rows per nucleotide need a "
            "tokenizer whose tokens lie end to end"
        )
    return torch.repeat_interleave(torch.arange(len(input_ids)), bases)
