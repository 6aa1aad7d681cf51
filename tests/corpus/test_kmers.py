"""Shared 32-mers: a sample by hash that does not depend on strand, place or sequence."""

import random

import numpy as np

from corpus.kmers import SAMPLED, K, sampled_kmers
from corpus.sequences import join, reverse_complement

MASK = (1 << 64) - 1


def bases(count: int, seed: int) -> bytes:
    return bytes(random.Random(seed).choices(b"ACGT", k=count))


def slow_sample(sequences: list[bytes]) -> list[int]:
    """splitmix64 of the smaller of a 32-mer and its reverse complement, read as numbers in base 4."""
    found = set()
    for sequence in sequences:
        for start in range(len(sequence) - K + 1):
            kmer = sequence[start : start + K]
            if b"N" in kmer:
                continue
            both = [int(k.translate(bytes.maketrans(b"ACGT", b"0123")), 4) for k in (kmer, reverse_complement(kmer))]
            value = min(both)
            value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
            value ^= value >> 31
            if value < (1 << 64) // SAMPLED:
                found.add(value)
    return sorted(found)


def test_the_sample_equals_the_slow_one_and_no_kmer_crosses_from_sequence_to_sequence():
    sequences = [bases(20_000, 1), bases(31, 2), b"", bases(3000, 3) + b"N" + bases(3000, 4), bases(500, 5)]
    assert sampled_kmers(*join(sequences)).tolist() == slow_sample(sequences)


def test_both_strands_have_the_same_kmers():
    sequence = bases(50_000, 6)
    assert sampled_kmers(*join([sequence])).tolist() == sampled_kmers(*join([reverse_complement(sequence)])).tolist()


def test_one_kmer_in_256_is_taken():
    taken = len(sampled_kmers(*join([bases(2_000_000, 7)])))
    assert abs(taken - 2_000_000 / SAMPLED) < 5 * np.sqrt(2_000_000 / SAMPLED)


def test_there_is_room_when_by_chance_nearly_all_kmers_are_taken():
    kmer = next(k for i in range(100_000) if slow_sample([k := bases(K, i)]))
    assert len(sampled_kmers(*join([kmer] * 5000))) == 1
