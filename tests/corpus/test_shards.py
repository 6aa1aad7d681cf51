"""Shards: rows in, Parquet files out, whole or absent."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.sequences import SCHEMA, Sequences, apply_strand, join, reverse_complement, to_arrow
from corpus.shards import ShardWriter


def sequences_of(*parts: bytes) -> Sequences:
    letters, offsets = join(list(parts))
    start = offsets[:-1]
    return Sequences(letters, offsets, start, offsets[1:], np.zeros(len(parts), bool), np.zeros(len(parts)))


def table_of(*parts: bytes, tokens: list[int] | None = None) -> pa.Table:
    ids = None if tokens is None else (np.arange(sum(tokens), dtype=np.uint16), np.cumsum([0, *tokens]))
    return to_arrow(sequences_of(*parts), "yeast", "fungi", "chrI", ids)


def writer_in(folder, **options) -> ShardWriter:
    return ShardWriter(folder / "train", folder / "partial", "00000-yeast", options.pop("shard_bases", 100), **options)


def files_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_rows_keep_their_columns_and_order(tmp_path):
    writer = writer_in(tmp_path)
    writer.write(table_of(b"ACGT", b"GG"), 6)
    writer.write(table_of(b"T"), 1)
    writer.close()
    table = pq.read_table(tmp_path / "train" / "00000-yeast-0000.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["sequence"].to_pylist() == ["ACGT", "GG", "T"]
    assert table["end"].to_pylist() == [4, 6, 1]
    assert (writer.rows, writer.bases, writer.tokens) == (3, 7, 0)


def test_a_new_shard_begins_when_one_is_full_and_each_is_described(tmp_path):
    writer = writer_in(tmp_path, shard_bases=10)
    for _ in range(5):
        writer.write(table_of(b"ACGTA"), 5)
    writer.close()
    assert [(file["file"], file["sequences"], file["bases"]) for file in writer.files] == [
        ("train/00000-yeast-0000.parquet", 2, 10),
        ("train/00000-yeast-0001.parquet", 2, 10),
        ("train/00000-yeast-0002.parquet", 1, 5),
    ]
    for file in writer.files:
        content = (tmp_path / file["file"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert files_in(tmp_path) == [file["file"] for file in writer.files]


def test_many_small_tables_are_joined_to_one_row_group(tmp_path):
    writer = writer_in(tmp_path, shard_bases=1 << 20)
    for _ in range(2500):
        writer.write(table_of(b"ACGTA", b"C"), 6)
    assert len(writer._pending) < 1000
    writer.close()
    table = pq.ParquetFile(tmp_path / "train" / "00000-yeast-0000.parquet")
    assert table.num_row_groups == 1
    assert table.read()["sequence"].to_pylist() == ["ACGTA", "C"] * 2500


def test_nothing_is_written_for_nothing(tmp_path):
    writer = writer_in(tmp_path)
    writer.write(table_of(), 0)
    writer.close()
    assert writer.files == [] and files_in(tmp_path) == []


@pytest.mark.parametrize("by_tokens", [False, True])
def test_aborted_work_leaves_whole_shards_only(tmp_path, by_tokens):
    writer = writer_in(tmp_path, by_tokens=by_tokens)
    writer.write(table_of(b"A" * 100, tokens=[3]), 100)
    writer.write(table_of(b"A" * 50, tokens=[3]), 50)
    writer.abort()
    assert files_in(tmp_path) == ([] if by_tokens else ["train/00000-yeast-0000.parquet"])


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=8))
def test_rows_come_in_ascending_number_of_tokens_equal_ones_as_they_came(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("ordered")
    writer = writer_in(folder, by_tokens=True, shard_bases=1 << 20)
    came = []
    for batch in batches:
        parts = [b"ACGT"[i % 4 : i % 4 + 1] * (len(came) + i + 1) for i in range(len(batch))]
        came += zip(batch, [part.decode() for part in parts], strict=True)
        writer.write(table_of(*parts, tokens=batch), sum(map(len, parts)))
    writer.close()
    table = pq.read_table(folder / "train" / "00000-yeast-0000.parquet")
    rows = list(zip(map(len, table["input_ids"].to_pylist()), table["sequence"].to_pylist(), strict=True))
    assert rows == sorted(came, key=lambda row: row[0])
    assert files_in(folder) == ["train/00000-yeast-0000.parquet"]


def test_both_strands_follow_each_other():
    both = apply_strand(sequences_of(b"AAC", b"GT"), "both", np.random.default_rng(0))
    assert both.split() == [b"AAC", b"GTT", b"GT", b"AC"]
    assert both.reverse.tolist() == [False, True, False, True]
    assert both.start.tolist() == [0, 0, 3, 3]


def test_random_strands_are_half_reversed_and_say_so():
    parts = [b"AAC"] * 1000
    turned = apply_strand(sequences_of(*parts), "random", np.random.default_rng(0))
    assert 400 < turned.reverse.sum() < 600
    expected = [reverse_complement(b"AAC") if reverse else b"AAC" for reverse in turned.reverse]
    assert turned.split() == expected


def test_strand_sample_and_haplotype_are_columns():
    sequences = sequences_of(b"AAC", b"GT")
    sequences.samples, sequences.haplotypes = ["HG1", "HG1"], np.array([1, 2], np.int8)
    table = to_arrow(apply_strand(sequences, "both", np.random.default_rng(0)), "human", "mammalian", "chr1")
    assert table["strand"].to_pylist() == ["+", "-", "+", "-"]
    assert table["sample"].to_pylist() == ["HG1"] * 4
    assert table["haplotype"].to_pylist() == [1, 1, 2, 2]
