"""corpus.fasta: reads what is FASTA, and says what is wrong with what is not."""

import errno
import gzip
import io
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import fasta
from corpus.fasta import BGZF_END, FastaError, FastaRecord, read_fasta

TWO_RECORDS = b">chr1 first contig\nACGTN\nacgtn\n>chr2\nUURYK\n"


@pytest.fixture
def write(tmp_path):
    def write_bytes(content: bytes, name: str = "genome.fa"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_bytes


def bgzf_block(content: bytes) -> bytes:
    """One block as bgzip writes it: a gzip member with an extra field 'BC' that holds its size."""
    member = gzip.compress(content, mtime=0)
    extra = b"\x06\x00BC\x02\x00" + (len(member) + 8 - 1).to_bytes(2, "little")
    return member[:3] + b"\x04" + member[4:10] + extra + member[10:]


def error_of(path) -> str:
    with pytest.raises(FastaError) as caught:
        list(read_fasta(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_records_keep_name_description_case_and_header_line(write):
    assert list(read_fasta(write(TWO_RECORDS))) == [
        FastaRecord("chr1", "first contig", b"ACGTNacgtn", 1),
        FastaRecord("chr2", "", b"UURYK", 4),
    ]


@pytest.mark.parametrize(
    "content",
    [
        TWO_RECORDS.replace(b"\n", b"\r\n"),
        TWO_RECORDS.rstrip(),
        TWO_RECORDS.replace(b"\nacg", b"\n\nacg"),
        gzip.compress(TWO_RECORDS, mtime=0),
        bgzf_block(TWO_RECORDS[:30]) + bgzf_block(TWO_RECORDS[30:]) + BGZF_END,
        b"\xef\xbb\xbf" + TWO_RECORDS,
    ],
    ids=["crlf", "no final newline", "blank line", "gzip", "bgzip", "byte order mark"],
)
def test_every_common_form_reads_the_same(write, content):
    assert [(record.name, record.sequence) for record in read_fasta(write(content))] == [
        ("chr1", b"ACGTNacgtn"),
        ("chr2", b"UURYK"),
    ]


def test_compression_is_told_by_content_not_by_name(write):
    assert [record.name for record in read_fasta(write(TWO_RECORDS, "genome.fa.gz"))] == ["chr1", "chr2"]


@settings(deadline=None)
@given(
    records=st.lists(
        st.tuples(st.text("abc1 ", max_size=8), st.lists(st.text("ACGTNacgtn", max_size=9), min_size=1, max_size=5)),
        min_size=1,
        max_size=5,
    ),
    block=st.integers(1, 12),
)
def test_result_does_not_depend_on_block_borders(tmp_path_factory, records, block):
    records = [(header, ["A", *lines]) for header, lines in records]
    path = tmp_path_factory.mktemp("fasta") / "genome.fa"
    path.write_text("".join(f">{header}\n" + "".join(line + "\n" for line in lines) for header, lines in records))
    line_counts = [1 + len(lines) for _, lines in records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "BLOCK_BYTES", block)
        found = [(record.sequence.decode(), record.line) for record in read_fasta(path)]
    assert found == [("".join(lines), 1 + sum(line_counts[:i])) for i, (_, lines) in enumerate(records)]


def test_missing_file(tmp_path):
    assert "no such file" in error_of(tmp_path / "absent.fa")


def failing(number: int):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_that_may_not_be_opened(write, monkeypatch):
    path = write(TWO_RECORDS)
    monkeypatch.setattr(fasta, "open", failing(errno.EACCES), raising=False)
    assert "cannot be read (Permission denied)" in error_of(path)


def test_a_disk_that_fails_while_a_file_is_read(write, monkeypatch):
    path = write(gzip.compress(TWO_RECORDS, mtime=0))
    monkeypatch.setattr(gzip.GzipFile, "read", failing(errno.EIO))
    assert "cannot be read (Input/output error)" in error_of(path)


def test_folder_instead_of_file(tmp_path):
    assert "is a folder" in error_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n\n", gzip.compress(b"", mtime=0)], ids=["empty", "blank", "empty gzip"])
def test_empty_file(write, content):
    assert "empty file" in error_of(write(content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"ACGT\n", "line 1: not FASTA: expected a header such as '>chr1', found 'ACGT'"),
        (b"\nsequence,label\nACGT,1\n", "line 2: not FASTA"),
        (b"@read1\nACGT\n+\nIIII\n", "it looks like FASTQ"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (b"LOCUS       SCU49845", "it looks like GenBank"),
    ],
)
def test_not_a_fasta_names_the_first_line(write, content, expected):
    assert expected in error_of(write(content))


def test_binary_garbage(write):
    assert "line 1: not FASTA" in error_of(write(random.Random(0).randbytes(500).lstrip(b">")))


def test_binary_garbage_after_a_header(write):
    assert r"line 2, record 'chr1': letter '\x00' is no nucleotide" in error_of(write(b">chr1\n\x00\x01\x02\n"))


def test_truncated_gzip(write):
    content = gzip.compress(b">chr1\n" + bytes(random.Random(0).choices(b"ACGT", k=10_000)))
    assert "truncated gzip file" in error_of(write(content[: len(content) // 2]))


def test_bgzip_cut_between_blocks(write):
    assert "end mark of bgzip is missing" in error_of(write(bgzf_block(b">chr1\nACGT\n")))


def test_gzip_whose_stored_name_begins_like_bgzip_is_not_mistaken_for_it(write):
    content = io.BytesIO()
    with gzip.GzipFile("chBC.fa", "wb", fileobj=content) as file:
        file.write(TWO_RECORDS)
    assert len(list(read_fasta(write(content.getvalue())))) == 2


def test_corrupt_gzip(write):
    content = bytearray(gzip.compress(b">chr1\n" + bytes(random.Random(0).choices(b"ACGT", k=10_000))))
    content[len(content) // 2] ^= 0xFF
    assert "corrupt gzip file" in error_of(write(bytes(content)))


def test_protein_names_record_line_and_letter(write):
    message = error_of(write(b">chr1\nACGT\n>sp|P69905 haemoglobin\nMVHSKT\nNVKAAWGKVGAHAGEYGAEALERMF\n"))
    assert "line 5, record 'sp|P69905': letter 'E'" in message
    assert "looks like protein" in message


def test_gap_of_an_alignment(write):
    assert "gap of an alignment" in error_of(write(b">chr1\nACGT--ACGT\n"))


def test_wrong_letter_is_found_on_its_line_however_deep(write):
    content = b">chr1\n" + b"ACGTACGTAC\n" * 300_000 + b"ACGT1\n"
    assert "line 300002, record 'chr1': letter '1'" in error_of(write(content))


@pytest.mark.parametrize(
    ("content", "line"), [(b">chr1\n>chr2\nACGT\n", 1), (b">chr1\nACGT\n>chr2\n", 3)], ids=["first", "last"]
)
def test_record_without_sequence(write, content, line):
    assert f"line {line}: record 'chr{(line + 1) // 2}' has no sequence" in error_of(write(content))
