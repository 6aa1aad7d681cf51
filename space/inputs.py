"""What users paste or upload: which format it is, whether it is DNA, and whether it is within the limits."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from corpus.fasta import FastaError
from inference.mutagenesis import parse_region
from inference.reading import SequenceInputError, SequenceRecord, read_records
from inference.variant_windows import aliases

UPLOAD_BYTES = 5_000_000  # of a file; the server refuses larger ones before it has read them
UPLOAD_SUFFIXES = [".fa", ".fasta", ".fna", ".ffn", ".txt", ".csv", ".tsv", ".fq", ".fastq"]
_VARIANT = re.compile(
    r"(?:(?P<contig>[^\s:]+)[:-])?(?P<position>[\d,]{1,20})[\s:-]*(?P<ref>[A-Z]+)\s*[>/:-]\s*(?P<alt>[A-Z]+)",
    re.IGNORECASE,
)
_FLAG = re.compile(r"Name the right one with --\w+-column$")  # advice for the command line
_PACKED = (b"\x1f\x8b", b"PK\x03\x04")  # first bytes of gzip and zip


class InputError(ValueError):
    """Input that cannot be used; the message is shown to the user and says what to do."""


def read_sequences(text: str, most: int, most_bases: int) -> list[SequenceRecord]:
    """
    Sequences of a text: FASTA, FASTQ, a table with the column `sequence` (comma or tab), or one sequence per line.

    Raises:
        InputError: nothing there, no DNA, or more than `most` sequences or `most_bases` bp together.
    """
    return _read(text, most, most_bases)


def read_sequence(text: str, most_bases: int) -> SequenceRecord:
    """
    One sequence, as FASTA or plain letters over any number of lines, with or without line numbers.

    Raises:
        InputError: as `read_sequences`, or more than one sequence.
    """
    text = _bare(text)
    if text and text[0] not in ">@" and not _titles(text):
        (record,) = _read("".join(map(_letters_of_line, text.splitlines())), 1, most_bases)
        return SequenceRecord("sequence", record.sequence, record.where)
    return _read(text, 1, most_bases)[0]


def read_labels(text: str) -> list[str] | None:
    """The column `label` of a table, None where there is none."""
    if _titles(_bare(text)).count("label") != 1:
        return None
    return [record.name for record in _records(text, name_column="label")]


def _read(text: str, most: int, most_bases: int) -> list[SequenceRecord]:
    if not _bare(text):
        raise InputError("There is no sequence yet. Paste DNA, upload a file, or choose an example.")
    records, bases = [], 0
    for record in _records(text):
        bases += len(record.sequence)
        if len(records) == most:
            found = "several" if most == 1 else f"more than {most:,}"
            raise InputError(f"There are {found} sequences; this page takes at most {most:,}.")
        if bases > most_bases:
            raise InputError(
                f"The input holds more than {most_bases:,} bp, the most that this page takes. Cut out the part that "
                "matters, or use the command line, which has no limit (python -m inference.embed --help)."
            )
        if not record.sequence.strip(b"N"):
            raise InputError(f"Record {record.name[:60]!r}: no base of it is A, C, G or T.")
        records.append(record)
    return records


def _bare(text: str) -> str:
    """The text without white space and byte order mark around it."""
    return text.strip().removeprefix("\ufeff").strip()


def _letters_of_line(line: str) -> str:
    """A line of plain letters without the numbers that GenBank and EMBL write before or after them."""
    words = line.split()
    if words and words[0].isdecimal():
        del words[0]
    if words and words[-1].isdecimal():
        del words[-1]
    return "".join(words)


def _titles(text: str) -> list[str]:
    """
    Column titles of a table that has a column "sequence"; none of any other text.

    Raises:
        InputError: a table whose columns are separated by semicolons.
    """
    header = text.partition("\n")[0].strip()
    if len(header) < 1000 and not header.startswith((">", "@")):
        for mark in "\t,;":
            titles = [title.strip().strip('"') for title in header.split(mark)]  # R puts them in quotes
            if "sequence" in titles:
                if mark == ";":
                    raise InputError("The columns of this table are separated by semicolons; use commas or tabs.")
                return titles
    return []


def _records(text: str, name_column: str | None = None) -> Iterator[SequenceRecord]:
    text = _bare(text) + "\n"
    suffix = {">": ".fa", "@": ".fq"}.get(text[0], ".txt")
    if suffix == ".txt" and _titles(text):
        suffix = ".tsv" if "\t" in text.partition("\n")[0] else ".csv"
    with tempfile.TemporaryDirectory(prefix="strandbert-") as folder:
        path = Path(folder) / f"input{suffix}"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            yield from read_records(path, name_column=name_column)
        except (SequenceInputError, FastaError) as error:
            message = str(error).replace(f"{path}, ", "").replace(str(path), "the input")
            message = _FLAG.sub("Give that name to one column.", message)
            raise InputError(message[:1].upper() + message[1:500]) from None


def read_upload(path: str, most_bytes: int = UPLOAD_BYTES) -> str:
    """
    Text of an uploaded file; the file is deleted.

    Raises:
        InputError: too large, or no text.
    """
    file = Path(path)
    try:
        if file.stat().st_size > most_bytes:
            raise InputError(f"The file is larger than {most_bytes / 1e6:.0f} MB; use the command line for it.")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        if file.read_bytes().startswith(_PACKED):
            raise InputError("The file is not plain text. Unpack it first (.gz, .zip).") from None
        raise InputError("The file is no text in UTF-8. Save it as plain text with that encoding.") from None
    except OSError:
        raise InputError("The file did not arrive. Upload it again.") from None
    finally:
        file.unlink(missing_ok=True)


def place_of(record: SequenceRecord) -> tuple[str, int]:
    """Contig and first position (from 1) that a name such as chr1:1,001-2,000 states; else the name itself and 1."""
    try:
        contig, start, end = parse_region(record.name)
    except ValueError:  # no region, or a number of thousands of digits
        return record.name, 1
    return (contig, start + 1) if end - start == len(record.sequence) else (record.name, 1)


def parse_variant(text: str, record: SequenceRecord) -> tuple[int, str, str]:
    """
    (index in the sequence from 0, REF, ALT) of a text such as "chr1:159204893 T>C", "chr1-159204893-T-C", "120 A>G".

    Raises:
        InputError: not understood, on another contig, or outside of the sequence.
    """
    contig, first = place_of(record)
    match = _VARIANT.fullmatch(text.strip().removeprefix(f"{contig}:"))  # names of records may hold colons and blanks
    if not match:
        raise InputError("Write a variant as chr:pos ref>alt, for example chr1:159204893 T>C or 120 A>G.")
    last = first + len(record.sequence) - 1
    if match["contig"] and match["contig"] not in aliases(contig):
        raise InputError(f"The variant is on {match['contig'][:60]}, the sequence on {contig[:60]}.")
    index = int(match["position"].replace(",", "") or 0) - first
    if not 0 <= index < len(record.sequence):
        raise InputError(f"Position {match['position']} is not in the sequence, which has positions {first} to {last}.")
    return index, match["ref"].upper(), match["alt"].upper()
