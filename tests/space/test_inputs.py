"""What users paste: formats, letters and limits; coordinates and variants."""

import time

import pytest

from inference.reading import SequenceRecord
from space.inputs import (
    InputError,
    parse_variant,
    place_of,
    read_labels,
    read_sequence,
    read_sequences,
    read_upload,
)

FASTA = ">one first\nACGT\nacgu\n>two\nTTTT\n"
CSV = "name,label,sequence\na,human,ACGT\nb,yeast,GGGG\n"
GENBANK = "        1 acgtacgtac gtacgtacgt\n       21 ttttt\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        (FASTA, [("one", b"ACGTACGT"), ("two", b"TTTT")]),
        ("\ufeff" + FASTA.replace("\n", "\r\n"), [("one", b"ACGTACGT"), ("two", b"TTTT")]),
        (CSV, [("a", b"ACGT"), ("b", b"GGGG")]),
        (CSV.replace(",", "\t"), [("a", b"ACGT"), ("b", b"GGGG")]),
        ("ACGT\n\nRYAC\n", [("1", b"ACGT"), ("3", b"NNAC")]),
        ("@read\nACGT\n+\nIIII\n", [("read", b"ACGT")]),
    ],
    ids=["FASTA", "FASTA of Windows", "CSV", "TSV", "lines", "FASTQ"],
)
def test_every_format_is_recognised(text, expected):
    assert [(r.name, r.sequence) for r in read_sequences(text, 9, 99)] == expected


@pytest.mark.parametrize("text", ["ACGT ACGT\nTTTTT", "acgtacgtttttt", "1 acgt acgt 8\n9 uuuuu 13"])
def test_one_sequence_may_be_wrapped_and_numbered(text):
    assert read_sequence(text, 99).sequence == b"ACGTACGTTTTTT"


def test_lines_of_genbank_are_read():
    assert read_sequence(GENBANK, 99).sequence == b"ACGTACGTACGTACGTACGTTTTTT"


@pytest.mark.parametrize("gap", [" ", "\n"])
def test_a_gap_of_any_length_takes_no_time(gap):
    start = time.perf_counter()
    assert read_sequence(f"ACGT{gap * 200_000}ACGT", 99).sequence == b"ACGTACGT"
    assert time.perf_counter() - start < 5  # quadratic time would be minutes, for all visitors


def test_a_byte_order_mark_is_no_letter():
    assert read_sequence("\ufeff>one\nACGT\n", 99).sequence == b"ACGT"


def test_a_table_as_R_writes_it_is_read():
    quoted = '"name","label","sequence"\n"a","human","ACGT"\n"b","yeast","GGGG"\n'
    assert [(r.name, r.sequence) for r in read_sequences(quoted, 9, 99)] == [("a", b"ACGT"), ("b", b"GGGG")]
    assert read_labels(quoted) == ["human", "yeast"]


def test_labels_are_those_of_the_table():
    assert read_labels(CSV) == read_labels("\ufeff" + CSV) == ["human", "yeast"]
    assert read_labels(FASTA) is None


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no sequence yet"),
        (" \n\t", "no sequence yet"),
        ("ACGT1ACGT", "character '1' at position 5"),
        ("MKVLAAGLL", "is not a nucleotide"),
        (">protein\nMKVL\n", "looks like protein"),
        ("<script>alert(1)</script>", "not a nucleotide"),
        (">empty\n>next\nACGT", "empty"),
        ("NNNNNN", "no base of it"),
        ("A" * 100, "more than 99 bp, the most that this page takes"),
        ("name,sequence\na,ACGT,extra\n", "3 fields"),
        ("ACGÅ", "not a nucleotide"),
    ],
)
def test_what_cannot_be_used_is_said(text, said):
    with pytest.raises(InputError, match=said):
        read_sequences(text, 9, 99)


@pytest.mark.parametrize("text", ["name;sequence\na;ACGT\n", '"sequence";"label"\nACGT;x\n'])
def test_semicolons_between_columns_are_said(text):
    for read in (lambda: read_sequences(text, 9, 99), lambda: read_sequence(text, 99)):
        with pytest.raises(InputError, match="separated by semicolons; use commas or tabs"):
            read()


def test_a_header_of_fasta_is_no_table():
    text = ">gene;sequence,label\nACGT\n"
    assert read_sequence(text, 99).sequence == read_sequences(text, 9, 99)[0].sequence == b"ACGT"
    assert read_labels(text) is None


def test_two_columns_of_one_name_are_said_without_a_flag():
    with pytest.raises(InputError, match="two columns 'name'.* Give that name to one column.$"):
        read_sequences("name,name,sequence\na,b,ACGT\n", 9, 99)


def test_no_message_holds_a_path_of_the_server():
    for text in (">a\nMKVL\n", "name,sequence\na,ACGT,x\n", "@r\nACGT\n", "ACGT!", ">a\n\n"):
        with pytest.raises(InputError) as error:
            read_sequences(text, 9, 99)
        assert "/" not in str(error.value).replace("and/or", "")


@pytest.mark.parametrize(
    "line, said", [("ACGT\n", "more than 9 sequences; this page takes at most 9"), ("A" * 60 + "\n", "more than 99 bp")]
)
def test_reading_ends_where_the_limits_are_exceeded(line, said):
    with pytest.raises(InputError, match=said):
        read_sequences(line * 10 + "what follows is not read\n", 9, 99)


def test_an_upload_is_read_and_deleted(tmp_path):
    file = tmp_path / "genes.fa"
    file.write_text(FASTA)
    assert read_upload(str(file)) == FASTA
    assert not file.exists()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\x1f\x8b\x08\x00\xff", "not plain text. Unpack it first"),
        (b"PK\x03\x04\x14\xff", "not plain text. Unpack it first"),
        (">é\nAC".encode("latin-1"), "no text in UTF-8. Save it"),
        (">a\n".encode("utf-16"), "no text in UTF-8. Save it"),
        (b"A" * 11, "larger than"),
    ],
    ids=["gzip", "zip", "Latin-1", "UTF-16", "large"],
)
def test_an_upload_that_is_refused_is_deleted_too(tmp_path, content, said):
    file = tmp_path / "genes.fa"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_upload(str(file), most_bytes=10)
    assert not file.exists()


def test_an_upload_that_is_gone_is_asked_for_again(tmp_path):
    with pytest.raises(InputError, match="Upload it again"):
        read_upload(str(tmp_path / "gone.fa"))


def record(name, length=100):
    return SequenceRecord(name, b"ACGT" * (length // 4), "line 1")


def test_a_name_with_coordinates_places_the_sequence():
    assert place_of(record("chr1:1,001-1,100")) == ("chr1", 1001)
    assert place_of(record("chr1:1-50")) == ("chr1:1-50", 1)  # of another length: no coordinates of this sequence
    assert place_of(record("gene")) == ("gene", 1)
    assert place_of(record("chr1:1-" + "1" * 5000))[1] == 1


@pytest.mark.parametrize(
    "text", ["chr1:1005 A>G", "1:1005 A>G", "chr1:1,005A>G", "chr1-1005-A-G", "chr1:1005:a:g", "1005 A>G", " 1005A>G "]
)
def test_a_variant_is_understood_as_people_write_it(text):
    assert parse_variant(text, record("chr1:1001-1100")) == (4, "A", "G")


@pytest.mark.parametrize("name", ["HLA:HLA00001", "read 1:2:3", "chr1:1-50", "a-b"])
def test_a_variant_names_any_record(name):
    assert parse_variant(f"{name}:5 A>G", record(name)) == (4, "A", "G")


@pytest.mark.parametrize(
    "text, said",
    [
        ("1" * 5000 + " A>G", "Write a variant as"),
        ("chr2:1005 A>G", "on chr2, the sequence on chr1"),
        ("chr1:5 A>G", "positions 1001 to 1100"),
        ("rs2814778", "Write a variant as"),
        ("chr1:1005 A>", "Write a variant as"),
        ("", "Write a variant as"),
        ("chr1:, A>G", "not in the sequence"),
    ],
)
def test_a_variant_that_is_none_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_variant(text, record("chr1:1001-1100"))
