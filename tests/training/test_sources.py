"""training.sources: one kind of sequence from many kinds of file, and the held-out split."""

import gzip

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.fasta import FastaError
from training.sources import SequenceFileError, heldout_bases, read_sequences, split_runs


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: bytes):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


def error_of(path, *arguments) -> str:
    with pytest.raises((SequenceFileError, FastaError)) as caught:
        list(read_sequences(path, *arguments))
    assert str(path) in str(caught.value)
    return str(caught.value)


def sequences(path, *arguments):
    return [sequence for _, sequence in read_sequences(path, *arguments)]


FILES = {
    "genome.fa": b">a\nACGu\n>b\nnnRA\n",
    "genome.fna.gz": gzip.compress(b">a\nACGu\n>b\nnnRA\n"),
    "lines.txt": b"ACGu\n\nnnRA",
    "lines.txt.gz": gzip.compress(b"ACGu\r\nnnRA\r\n"),
    "table.csv": b'sequence,label\n"ACGu",1\nnnRA,0\n',
    "windows.csv": b"\xef\xbb\xbfsequence,label\r\nACGu,1\r\nnnRA,0\r\n",
    "table.tsv": b"label\tsequence\n1\tACGu\n0\tnnRA\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_sequences(write, name):
    assert sequences(write(name, FILES[name])) == [b"ACGT", b"NNNA"]


def test_parquet(tmp_path):
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"dna": ["ACGu", "nnRA"], "label": [1, 0]}), path)
    assert sequences(path, "dna") == [b"ACGT", b"NNNA"]


def test_records_are_named_after_header_or_line(write):
    assert [name for name, _ in read_sequences(write("a.fa", FILES["genome.fa"]))] == ["a", "b"]
    assert [name for name, _ in read_sequences(write("a.txt", FILES["lines.txt"]))] == ["line 1", "line 3"]


def test_a_field_may_hold_a_chromosome(write):
    assert len(sequences(write("big.csv", b"sequence\n" + b"ACGT" * 100_000 + b"\n"))[0]) == 400_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"ACGT\nACEGT\n", "line 2: character 'E' at position 3 is not a nucleotide"),
        ("a.csv", b"sequence,label\nACGT,1\nMKLV,1\n", "line 3: character 'L' at position 3"),
        ("a.txt", b" ACGT \nACG CGT\n", "line 2: white space within the sequence"),
        ("a.csv", b"sequence,label\nACGT,1\nACG CGT,1\n", "line 3: white space within the sequence"),
        ("a.csv", b"seq,label\nACGT,1\n", "no column 'sequence'; the columns are seq, label"),
        ("a.csv", b"label,sequence\n1,ACGT\n2\n", "line 3: 1 fields; 'sequence' is missing"),
        ("a.csv", b"", "no column 'sequence'; the columns are (none)"),
        ("a.txt", b">chr1\nACGT\n", "this is FASTA"),
        ("a.fa", b">chr1\nMKLV\n", "looks like protein"),
        ("a.docx", b"ACGT", "unknown kind of file '.docx'"),
        ("a", b"ACGT", "unknown kind of file ''"),
        ("a.parquet.gz", b"ACGT", "Parquet is compressed inside"),
        ("a.parquet", b"ACGT", "not a readable Parquet file"),
        ("a.txt.gz", gzip.compress(b"ACGT" * 999, mtime=0)[:20], "damaged gzip file"),
    ],
)
def test_what_cannot_be_used_is_named(write, name, content, expected):
    assert expected in error_of(write(name, content))


@pytest.mark.parametrize("name", ["absent.fa", "absent.txt", "absent.csv"])
def test_missing_file(tmp_path, name):
    assert "no such file" in error_of(tmp_path / name)


def test_parquet_without_the_column_or_with_something_else_in_it(tmp_path):
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sequence": ["ACGT", None]}), path)
    assert "row 2: column 'sequence' holds None" in error_of(path)
    assert "no column 'dna'; the columns are sequence" in error_of(path, "dna")
    pyarrow.parquet.write_table(pyarrow.table({"sequence": [b"ACGT\n", b"ACG CGT"]}), path)
    assert "row 2: white space within the sequence" in error_of(path)


# -- the held-out split --------------------------------------------------------------------------------------------


def test_one_contig_gives_its_end():
    assert heldout_bases(np.array([10_000]), 5).tolist() == [500]


def test_several_contigs_give_whole_ones():
    bases = np.full(20, 1000)
    heldout = heldout_bases(bases, 10)
    assert sorted(set(heldout.tolist())) == [0, 1000]
    assert heldout.sum() == 2000


def test_contigs_too_large_to_give_whole_give_the_end_of_the_longest():
    assert heldout_bases(np.array([4000, 6000]), 5).tolist() == [0, 500]


def test_a_small_plasmid_is_not_all_that_is_held_out():
    assert heldout_bases(np.array([4_000_000, 3_000]), 5).tolist() == [197_150, 3_000]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30), st.floats(0, 99))
def test_about_the_percentage_is_held_out_and_never_everything(bases, percentage):
    bases = np.array(bases)
    heldout = heldout_bases(bases, percentage)
    target = bases.sum() * percentage / 100
    assert ((0 <= heldout) & (heldout <= bases)).all()
    assert target / 2 - 1 <= heldout.sum() <= target + 1


@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=8),
    share=st.floats(0, 1),
)
def test_split_runs_keeps_every_base_once_and_holds_out_the_last_ones(lengths, share):
    runs, position = [], 0
    for gap, length in lengths:
        runs.append((position + gap, position + gap + length))
        position += gap + length
    bases = [base for start, end in runs for base in range(start, end)]
    heldout = int(share * len(bases))
    parts = split_runs(runs, heldout)
    train, validation = ([base for start, end in part for base in range(start, end)] for part in parts)
    assert train + validation == bases
    assert len(validation) == heldout
