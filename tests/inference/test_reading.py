"""Readers: every format gives the same records, and every bad input is named."""

import csv
import gzip

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.fasta import FastaError
from gue.check import check_split
from gue.tasks import find_task
from inference.reading import Genome, SequenceInputError, read_records, reverse_complement
from training.classification_data import Columns, pair_columns, read_labelled
from training.sources import read_sequences

SEQUENCES = {"a": b"ACGTNNA", "b": b"TTTT"}


def written(folder, name, content):
    path = folder / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.fa", ">a first\nacgt\nRYa\n>b\nUUTT\n"),
        ("x.fasta.gz", ">a\nACGTNNA\n>b\nTTTT\n"),
        ("x.fq", "@a 1:N:0\nACGTNNA\n+\nIIIIIII\n@b\nTTTT\n+b\n@@@@\n"),
        ("x.fastq.gz", "@a\r\nACGTNNA\r\n+\r\nIIIIIII\r\n@b\r\nTTTT\r\n+\r\nIIII\r\n"),
        ("x.csv", "\ufeffname,label,sequence\r\na,1,ACGTNNA\r\nb,0,tttt\r\n"),
        ("x.csv.gz", "sequence,id\nACGTNNA,a\nTTTT,b\n"),
        ("x.tsv", "id\tsequence\na\tACGTNNA\nb\tTTTT\n"),
    ],
)
def test_every_format_gives_the_same_records(tmp_path, name, content):
    records = read_records(written(tmp_path, name, content))
    assert {record.name: record.sequence for record in records} == SEQUENCES


def test_parquet(tmp_path):
    table = pyarrow.table({"name": list(SEQUENCES), "sequence": [s.decode() for s in SEQUENCES.values()]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert {r.name: r.sequence for r in read_records(tmp_path / "x.parquet")} == SEQUENCES


def test_rows_without_a_name_are_numbered(tmp_path):
    assert [r.name for r in read_records(written(tmp_path, "x.csv", "sequence\nA\nC\n"))] == ["1", "2"]
    assert [r.name for r in read_records(written(tmp_path, "x.txt", "ACG\n\nT\n"))] == ["1", "3"]


def test_pairs(tmp_path):
    path = written(tmp_path, "x.csv", "enhancer,promoter\nACG,TTT\n")
    (record,) = read_records(path, sequence_column="enhancer", pair_column="promoter")
    assert (record.sequence, record.pair) == (b"ACG", b"TTT")


def test_bed_intervals_are_half_open_from_zero_and_follow_the_strand(tmp_path):
    genome = written(tmp_path, "g.fa.gz", ">chr1 one\nAACCGGTTNN\n>chr2\nACGT\n")
    bed = written(tmp_path, "x.bed", "#c\ntrack name=x\nchr1\t0\t4\nchr1\t2\t5\tpeak\t0\t-\nchr2\t3\t4\t.\n")
    assert [(r.name, r.sequence) for r in read_records(bed, genome)] == [
        ("chr1:0-4", b"AACC"),
        ("peak", b"CGG"),
        ("chr2:3-4", b"T"),
    ]


@pytest.mark.parametrize("line", ["track", "track name=x", "browser position chr1:1-4", "track\tname=x\t1"])
def test_lines_for_genome_browsers_are_no_intervals(tmp_path, line):
    genome = written(tmp_path, "g.fa", ">track\nAACC\n>browser_1\nGGTT\n")
    bed = written(tmp_path, "x.bed", f"{line}\ntrack\t0\t2\nbrowser_1\t1\t3\n")
    assert [r.sequence for r in read_records(bed, genome)] == [b"AA", b"GT"]


def test_genome_keeps_only_the_contigs_asked_for(tmp_path):
    genome = Genome(written(tmp_path, "g.fa", ">a\nACGT\n>b\nGGGG\n"), {"b"})
    assert genome.fetch("b", 1) == b"GGG" and genome.lengths == {"a": 4, "b": 4}


@given(st.text("ACGTN").map(str.encode))
def test_reverse_complement_of_the_reverse_complement(sequence):
    assert reverse_complement(reverse_complement(sequence)) == sequence


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.parquet.gz", "ACGT", "Parquet is compressed inside"),
        ("x.fq", "ACGT\n+\nIIII\n", "line 1: expected a header"),
        ("x.fq", "@r1\nACGT\n+\nIII\n", "line 4, read 'r1': 4 bases but 3 qualities"),
        ("x.fq", "@r1\nACGT\n+\nIIII\n@r2\nAC\n", "line 5, read 'r2': the file ends"),
        ("x.fq", "@r1\nACGT\nACGT\n+\nIIIIIIII\n", r"line 3, read 'r1': expected '\+'"),
        ("x.fq", "@r1\nAC.T\n+\nIIII\n", "line 1, record 'r1': character '.' at position 3"),
        ("x.fq", "@r1\n\n+\n\n", "line 1, record 'r1': the sequence is empty"),
        ("x.csv", "sequence,label\nACGT,1\nMKV*,0\n", r"line 3, record '2': character '\*' at position 4"),
        ("x.csv", "sequence,label\nACGT,1\n,0\n", "line 3, record '2': the sequence is empty"),
        ("x.csv", "sequence,label\nACGT,1\nNaN,0\n", "line 3, record '2': .*missing"),
        ("x.csv", "seq,label\nACGT,1\n", "no column 'sequence'; the columns are seq, label. .*--sequence-column"),
        ("x.csv", "sequence;label\nACGT;1\n", "delimited by another character"),
        ("x.csv", "sequence,sequence\nACGT,1\n", "two columns 'sequence'"),
        ("x.csv", "sequence,label\nACGT,1\nACGT\n", "line 3: 1 fields, but the header has 2"),
        ("x.csv", 'sequence\n"ACGT\n', "line 2: unexpected end"),
        ("x.csv", b"sequence\nAC\xff\n", "x.csv, line 2: byte 0xff is not UTF-8 text; save the file as UTF-8"),
        ("x.csv", "sequence\n", "holds no sequence"),
        ("x.csv", "", r"no column 'sequence'; the columns are \(none\)"),
        ("x.txt", ">a\nACGT\n", "line 1: this is FASTA"),
        ("x.txt", "ACGTAC\nACGTAC CGTACG GTACGT\n", "line 2, record '2': white space within the sequence"),
        ("x.csv", "sequence,label\nACGT,1\nACG CGT,0\n", "line 3, record '2': white space within the sequence"),
        ("x.tsv", "id\tsequence\na\tACG CGT\n", "line 2, record 'a': white space within the sequence"),
        ("x.parquet", "nonsense", "not a readable Parquet file"),
        ("x.docx", "ACGT", "unknown kind of file '.docx'"),
        ("x.bed", "chr1\t0\t4\n", "needs? a genome"),
    ],
)
def test_bad_files_are_named_with_line_and_record(tmp_path, name, content, message):
    with pytest.raises(SequenceInputError, match=message) as error:
        list(read_records(written(tmp_path, name, content)))
    assert name in str(error.value)


@pytest.mark.parametrize(
    "option, names, kinds",
    [
        ("pair_column", ["x.fa", "x.fq.gz", "x.txt", "x.bed"], "CSV, TSV or Parquet"),
        ("name_column", ["x.fa", "x.fq.gz", "x.txt", "x.bed"], "CSV, TSV or Parquet"),
        ("genome", ["x.fa", "x.fq.gz", "x.txt", "x.csv", "x.parquet"], "BED"),
    ],
)
def test_options_that_a_format_has_no_use_for_are_refused(tmp_path, option, names, kinds):
    for name in names:
        message = f"{name}: --{option.replace('_', '-')} is for {kinds} files; leave it out"
        with pytest.raises(SequenceInputError, match=message):
            read_records(tmp_path / name, **{option: "x"})


@pytest.mark.parametrize(
    "line, message",
    [
        ("1\t0\t4", "no contig '1'; it has 'chr1'"),
        ("chr1\t0\t11", "line 1: interval 0-11 does not lie in contig 'chr1' of 10 bp"),
        ("chr1\t4\t4", "line 1: the interval 4-4 is empty"),
        ("chr1\tx\t4", "line 1: expected contig, start and end"),
        ("chr1\t0\t4\t.\t0\tplus", "line 1: strand 'plus'"),
        ("# nothing", "holds no interval"),
    ],
)
def test_bad_intervals_are_named(tmp_path, line, message):
    genome = written(tmp_path, "g.fa", ">chr1\nAACCGGTTNN\n")
    with pytest.raises(SequenceInputError, match=message):
        list(read_records(written(tmp_path, "x.bed", line + "\n"), genome))


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = written(tmp_path, "x.csv.gz", "sequence\n" + "ACGT\n" * 1000)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SequenceInputError, match="x.csv.gz: damaged gzip"):
        list(read_records(path))


def test_a_missing_value_in_parquet_is_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"sequence": ["ACG", None]}), tmp_path / "x.parquet")
    with pytest.raises(SequenceInputError, match="x.parquet, row 2: column 'sequence' holds None"):
        list(read_records(tmp_path / "x.parquet"))


def test_white_space_within_a_sequence_of_parquet_is_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"sequence": ["ACG", "ACG CGT"]}), tmp_path / "x.parquet")
    with pytest.raises(SequenceInputError, match="x.parquet, row 2, record '2': white space within the sequence"):
        list(read_records(tmp_path / "x.parquet"))


def test_white_space_around_a_sequence_does_not_matter(tmp_path):
    assert [r.sequence for r in read_records(written(tmp_path, "x.txt", " ACG\t\r\nTT \n"))] == [b"ACG", b"TT"]


def test_two_contigs_of_one_name_are_refused(tmp_path):
    with pytest.raises(SequenceInputError, match="line 3: a second contig has the name 'a'"):
        Genome(written(tmp_path, "g.fa", ">a\nACGT\n>a\nGGGG\n"))


tables = pytest.mark.parametrize(
    "read",
    [
        lambda path: list(read_records(path)),
        lambda path: list(read_sequences(path)),
        lambda path: read_labelled({"train": [path]}, Columns("sequence", None, ("label",))),
        lambda path: pair_columns(path, ("label",)),
        lambda path: check_split(find_task("tf/0"), "train", path).problems,
    ],
)


@tables
def test_a_stray_quote_in_a_header_is_named(tmp_path, read):
    path = written(tmp_path, "x.csv", '"sequence"s,pair,label\nACGT,ACGT,0\n')
    with pytest.raises(ValueError, match="x.csv, line 1: .*expected after"):
        raise ValueError(read(path))


@tables
def test_tables_are_read_where_a_long_of_c_has_32_bits(tmp_path, monkeypatch, read):
    def field_size_limit(limit):
        if limit >= 2**31:
            raise OverflowError("Python int too large to convert to C long")

    monkeypatch.setattr(csv, "field_size_limit", field_size_limit)
    assert read(written(tmp_path, "x.csv", "sequence,pair,label\nACGT,ACGT,0\nTTTT,ACGT,1\n"))


@pytest.mark.parametrize("path", ["none.csv", "none.fa"])
def test_a_missing_file_is_named(tmp_path, path):
    with pytest.raises((SequenceInputError, FastaError), match="no such file"):
        list(read_records(tmp_path / path))
