"""Sequences with where they come from: the rows of a corpus."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from corpus.contigs import UPPER_CASE, Contig
from corpus.shards import GROUP_BASES

COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")

SCHEMA = pa.schema(
    [
        ("sequence", pa.string()),  # A, C, G, T
        ("species", pa.string()),
        ("category", pa.string()),
        ("contig", pa.string()),
        ("start", pa.int64()),  # bp, 0-based, in the reference
        ("end", pa.int64()),  # bp, behind the last base
        ("strand", pa.string()),  # + or -; - is the reverse complement of [start, end)
        ("sample", pa.string()),  # individual whose variants the sequence carries; null: the reference
        ("haplotype", pa.int8()),  # 1 or 2; null: the reference
        ("soft_masked", pa.float32()),  # share of [start, end) that is soft-masked in the reference
    ]
)
TOKENS_SCHEMA = SCHEMA.append(pa.field("input_ids", pa.list_(pa.uint16())))  # without [CLS] and [SEP]


@dataclass
class Sequences:
    """
    Sequences of one contig: `letters` end to end, sequence i is letters[offsets[i] : offsets[i + 1]].

    The arrays have one entry per sequence; see SCHEMA. `samples` is None for the reference.
    """

    letters: bytes
    offsets: np.ndarray  # int64 (count + 1,)
    start: np.ndarray
    end: np.ndarray
    reverse: np.ndarray  # bool: reverse complement
    soft_masked: np.ndarray  # share
    samples: list[str] | None = None
    haplotypes: np.ndarray | None = None  # 1 or 2

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def split(self) -> list[bytes]:
        """The sequences one by one."""
        bounds = self.offsets.tolist()
        return [self.letters[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def join(parts: list[bytes]) -> tuple[bytes, np.ndarray]:
    """Letters end to end, and where each part begins (int64, one more than parts)."""
    return b"".join(parts), np.concatenate(([0], np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))))


def groups(windows: np.ndarray) -> Iterator[np.ndarray]:
    """Windows (count, 2) in pieces that hold about a row group's bp each."""
    group = np.cumsum(windows[:, 1] - windows[:, 0]) // GROUP_BASES
    return (part for part in np.split(windows, np.flatnonzero(np.diff(group)) + 1) if len(part))


def reference_sequences(contig: Contig, windows: np.ndarray) -> Iterator[Sequences]:
    """The bases of windows (count, 2) that lie within runs of ACGT, a row group at a time."""
    for part in groups(windows):
        start, end = part.T
        letters, offsets = join([contig.letters[s:e] for s, e in part.tolist()])
        letters = letters.translate(UPPER_CASE)
        share = contig.soft_masked_bases(start, end) / (end - start)
        yield Sequences(letters, offsets, start, end, np.zeros(len(part), bool), share)


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand of a sequence of A, C, G, T, N, read from its 5' end."""
    return sequence.translate(COMPLEMENT)[::-1]


def apply_strand(sequences: Sequences, strand: str, random: np.random.Generator) -> Sequences:
    """
    Turn sequences to the strand a recipe asks for.

    forward: as they are. random: each with equal chance. both: each is followed by its reverse complement.
    """
    if strand == "forward":
        return sequences
    parts = sequences.split()
    count = len(parts)
    if strand == "both":
        index = np.repeat(np.arange(count), 2)
        reverse = np.arange(2 * count) % 2 == 1
    else:
        index = np.arange(count)
        reverse = random.random(count) < 0.5
    turned = [
        reverse_complement(parts[i]) if turn else parts[i]
        for i, turn in zip(index.tolist(), reverse.tolist(), strict=True)
    ]
    letters, offsets = join(turned)
    return Sequences(
        letters,
        offsets,
        sequences.start[index],
        sequences.end[index],
        reverse,
        sequences.soft_masked[index],
        None if sequences.samples is None else [sequences.samples[i] for i in index],
        None if sequences.haplotypes is None else sequences.haplotypes[index],
    )


def to_arrow(sequences: Sequences, species: str, category: str, contig: str, tokens=None) -> pa.Table:
    """
    Rows of SCHEMA; with `tokens`, (ids, offsets) of an `Encoder`, of TOKENS_SCHEMA.

    At most 2 GiB of letters.
    """
    count = len(sequences)
    offsets = pa.py_buffer(sequences.offsets.astype(np.int32).tobytes())
    strand = pa.DictionaryArray.from_arrays(sequences.reverse.astype(np.int8), ["+", "-"]).cast(pa.string())
    columns = [
        pa.StringArray.from_buffers(count, offsets, pa.py_buffer(sequences.letters)),
        *(pa.repeat(pa.scalar(name, pa.string()), count) for name in (species, category, contig)),
        pa.array(sequences.start, pa.int64()),
        pa.array(sequences.end, pa.int64()),
        strand,
        pa.nulls(count, pa.string()) if sequences.samples is None else pa.array(sequences.samples, pa.string()),
        pa.nulls(count, pa.int8()) if sequences.haplotypes is None else pa.array(sequences.haplotypes, pa.int8()),
        pa.array(sequences.soft_masked, pa.float32()),
    ]
    if tokens is None:
        return pa.Table.from_arrays(columns, schema=SCHEMA)
    ids, bounds = tokens
    columns.append(pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(ids, pa.uint16())))
    return pa.Table.from_arrays(columns, schema=TOKENS_SCHEMA)
