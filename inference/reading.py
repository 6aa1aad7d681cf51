"""
Sequences from FASTA, FASTQ, CSV, TSV, Parquet, text, or BED with a genome: one stream of records, read strictly.

Every sequence comes back in the letters ACGTN (`tokenization.alphabet.normalize`): soft-masked letters are upper case,
U is T, ambiguity codes are N. Every error names the file, the line or row, the record, and the value.
"""

import argparse
import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus.fasta import GZIP_MAGIC, read_fasta
from tokenization.alphabet import normalize
from training.sources import COMPRESSED_SUFFIXES, DELIMITERS, FASTA_SUFFIXES, TEXT_SUFFIXES, csv_reader

FASTQ_SUFFIXES = (".fq", ".fastq")
NAME_COLUMNS = ("name", "id")  # of a table, when no other is asked for
MISSING = (b"NAN", b"NA")  # what missing values of a table look like; both would read as bases
_COMPLEMENT = bytes.maketrans(b"ACGTNacgtn", b"TGCANtgcan")


class SequenceInputError(ValueError):
    """Input that cannot be used; the message names the file and, where there are any, line, record and value."""


@dataclass(frozen=True)
class SequenceRecord:
    """
    One sequence: name, letters ACGTN, where it stands in the file ("line 12", "row 3"), and the second sequence of a
    pair where there is one.
    """

    name: str
    sequence: bytes
    where: str
    pair: bytes | None = None

    def place(self) -> str:
        """What an error message calls the record."""
        return f"{self.where}, record {self.name!r}"


def add_input_arguments(parser: argparse.ArgumentParser):
    """What `read_records` needs, as arguments of a command."""
    parser.add_argument("input", help="FASTA, FASTQ, CSV, TSV, Parquet, text, or BED with --genome")
    parser.add_argument("--genome", help="FASTA file that the intervals of a BED file are cut from")
    parser.add_argument("--sequence-column", default="sequence", help="column of a CSV, TSV or Parquet file")
    parser.add_argument("--name-column", help="column with names (default: name or id, else the number of the row)")


def read_records(
    path: str | Path,
    genome: "str | Path | Genome | None" = None,
    sequence_column: str = "sequence",
    name_column: str | None = None,
    pair_column: str | None = None,
) -> Iterator[SequenceRecord]:
    """
    Read the sequences of a file; the suffix tells the format, and any but Parquet may be compressed (.gz, .bgz).

    Args:
        path: FASTA (.fa .fasta .fna ...), FASTQ (.fq .fastq), CSV, TSV, Parquet, text (.txt, one sequence per line),
            BED (needs `genome`).
        genome: FASTA file or `Genome` that BED intervals are cut from; intervals on strand "-" are reverse
            complemented.
        sequence_column, name_column, pair_column: columns of a table. Names default to the column "name" or "id", and
            to the number of the row where there is neither.

    An argument that the format has no use for is refused, except `sequence_column`.

    Memory: one record, and the contigs of the genome that the BED file names.

    Raises:
        SequenceInputError, corpus.fasta.FastaError: a file that is missing, empty, damaged or of an unknown kind; a
            column that is absent, or asked of a file without columns; a genome without BED; a sequence that is empty
            or holds other letters than nucleotides.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED_SUFFIXES]
    suffix = suffixes[-1] if suffixes else ""
    table = suffix in DELIMITERS or suffix == ".parquet"
    for flag, value, used in (
        ("--pair-column", pair_column, table),
        ("--name-column", name_column, table),
        ("--genome", genome, suffix == ".bed"),
    ):
        if value is not None and not used:
            which = "BED" if flag == "--genome" else "CSV, TSV or Parquet"
            raise SequenceInputError(f"{path}: {flag} is for {which} files; leave it out, or give such a file")
    if suffix in FASTA_SUFFIXES:
        return _fasta_records(path)
    if not path.is_file():
        raise SequenceInputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if suffix == ".bed":
        if genome is None:
            raise SequenceInputError(f"{path}: intervals need a genome; name its FASTA file with --genome")
        return _bed_records(path, genome)
    if suffix in FASTQ_SUFFIXES:
        rows = _fastq_rows(path)
    elif suffix in TEXT_SUFFIXES:
        rows = _text_rows(path)
    elif suffix in DELIMITERS:
        rows = _delimited_rows(path, DELIMITERS[suffix], sequence_column, name_column, pair_column)
    elif suffix == ".parquet":
        check_plain_parquet(path)
        rows = _parquet_rows(path, sequence_column, name_column, pair_column)
    else:
        known = ", ".join([*FASTA_SUFFIXES, *FASTQ_SUFFIXES, *DELIMITERS, *TEXT_SUFFIXES, ".bed"])
        raise SequenceInputError(
            f"{path}: unknown kind of file {suffix!r}; known are {known} (also with .gz), .parquet"
        )
    return _checked_records(path, rows)


class Genome:
    """
    The contigs of a FASTA file in memory, one byte per bp, in the letters ACGTN.

    Args:
        path: FASTA, plain or gzip or bgzip.
        names: contigs to keep; None keeps all.

    Raises:
        corpus.fasta.FastaError: a file that cannot be read. SequenceInputError: two contigs of one name.
    """

    def __init__(self, path: str | Path, names: Iterable[str] | None = None):
        self.path = Path(path)
        names = None if names is None else set(names)
        self._contigs: dict[str, bytes] = {}
        self.lengths: dict[str, int] = {}  # bp of every contig of the file, kept or not
        for record in read_fasta(path):
            if record.name in self.lengths:
                raise SequenceInputError(f"{path}, line {record.line}: a second contig has the name {record.name!r}")
            self.lengths[record.name] = len(record.sequence)
            if names is None or record.name in names:
                self._contigs[record.name] = normalize(record.sequence)

    def fetch(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """
        Letters of the half-open interval [start, end) in bp, counted from 0; the whole contig by default.

        Raises:
            SequenceInputError: no such contig, or an interval that does not lie in it.
        """
        if name not in self.lengths:
            other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
            hint = f"; it has {other!r}: rename one side" if other in self.lengths else ""
            shown = ", ".join(list(self.lengths)[:5]) + (", ..." if len(self.lengths) > 5 else "")
            raise SequenceInputError(f"{self.path} has no contig {name!r}{hint}; its contigs are {shown}")
        length = self.lengths[name]
        end = length if end is None else end
        if not 0 <= start < end <= length:
            raise SequenceInputError(f"interval {start}-{end} does not lie in contig {name!r} of {length:,} bp")
        return self._contigs[name][start:end]


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand, read 5' to 3'; letters ACGTN, case kept."""
    return sequence.translate(_COMPLEMENT)[::-1]


def read_lines(path: str | Path) -> Iterator[str]:
    """
    Lines of a text file, plain or gzip or bgzip, with their ends; a byte order mark is dropped.

    Raises:
        SequenceInputError: damaged compression, or bytes that are not UTF-8.
    """
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    with gzip.open(path, "rb") if compressed else open(path, "rb") as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        try:
            yield from text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SequenceInputError(f"{path}: damaged gzip file ({error}); download or copy it again") from None
        except UnicodeDecodeError as error:
            binary.seek(0)
            lines = enumerate(binary, 1)
            line = next((number for number, content in lines if not _is_text(content)), 1)
            raise SequenceInputError(
                f"{path}, line {line}: byte {error.object[error.start]:#x} is not UTF-8 text; save the file as UTF-8 "
                '(Excel calls it "CSV UTF-8")'
            ) from None


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def check_plain_parquet(path: Path):
    """Raise SequenceInputError for a Parquet file with another suffix behind, such as .gz."""
    if path.suffix.lower() != ".parquet":
        raise SequenceInputError(f"{path}: Parquet is compressed inside; unpack the file to .parquet first")


def _fasta_records(path: Path) -> Iterator[SequenceRecord]:
    for record in read_fasta(path):
        yield SequenceRecord(record.name, normalize(record.sequence), f"line {record.line}")


def _checked_records(path: Path, rows) -> Iterator[SequenceRecord]:
    """Records of (name, where, sequence, pair) rows."""
    empty = True
    for name, where, sequence, pair in rows:
        empty = False
        sequence = _letters(path, name, where, sequence)
        yield SequenceRecord(name, sequence, where, None if pair is None else _letters(path, name, where, pair))
    if empty:
        raise SequenceInputError(f"{path}: holds no sequence")


def _letters(path: Path, name: str, where: str, sequence: str | bytes) -> bytes:
    try:
        letters = normalize(sequence)
    except ValueError as error:
        raise SequenceInputError(f"{path}, {where}, record {name!r}: {error}") from None
    if not letters or letters in MISSING:
        what = f"the value {sequence!r} stands for a missing sequence" if letters else "the sequence is empty"
        raise SequenceInputError(f"{path}, {where}, record {name!r}: {what}; complete or remove it")
    if len(sequence.split(maxsplit=1)) > 1:
        raise SequenceInputError(
            f"{path}, {where}, record {name!r}: white space within the sequence; give the letters in one piece"
        )
    return letters


def _text_rows(path: Path):
    for number, line in enumerate(read_lines(path), 1):
        if number == 1 and line.startswith(">"):
            raise SequenceInputError(f"{path}, line 1: this is FASTA; give the file a FASTA suffix such as .fa")
        if line.strip():
            yield str(number), f"line {number}", line, None


def _fastq_rows(path: Path):
    lines = enumerate((line.rstrip("\r\n") for line in read_lines(path)), 1)
    for number, header in lines:
        if not header.strip():
            continue
        if not header.startswith("@"):
            raise SequenceInputError(
                f"{path}, line {number}: expected a header such as '@read1', found {header[:40]!r}"
            )
        name = (header[1:].split(maxsplit=1) or [""])[0]
        (_, sequence), (_, plus), (_, quality) = (next(lines, (0, None)) for _ in range(3))
        if quality is None:
            raise SequenceInputError(f"{path}, line {number}, read {name!r}: the file ends within this read")
        if not plus.startswith("+"):
            raise SequenceInputError(
                f"{path}, line {number + 2}, read {name!r}: expected '+', found {plus[:40]!r}; a read takes four lines"
            )
        if len(quality) != len(sequence):
            raise SequenceInputError(
                f"{path}, line {number + 3}, read {name!r}: {len(sequence)} bases but {len(quality)} qualities"
            )
        yield name, f"line {number}", sequence, None


def _delimited_rows(path: Path, delimiter: str, sequence_column: str, name_column: str | None, pair_column: str | None):
    reader = csv_reader(read_lines(path), delimiter)
    try:
        header = [title.strip() for title in next(reader, [])]
        columns = _columns(path, header, sequence_column, name_column, pair_column)
        for row_number, row in enumerate((row for row in reader if row), 1):
            where = f"line {reader.line_num}"
            if len(row) != len(header):
                raise SequenceInputError(f"{path}, {where}: {len(row)} fields, but the header has {len(header)}")
            sequence, name, pair = (None if column is None else row[column] for column in columns)
            yield (str(row_number) if name is None else name), where, sequence, pair
    except csv.Error as error:
        raise SequenceInputError(f"{path}, line {reader.line_num}: {error}") from None


def _parquet_rows(path: Path, sequence_column: str, name_column: str | None, pair_column: str | None):
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            header = file.schema_arrow.names
            columns = _columns(path, header, sequence_column, name_column, pair_column)
            wanted = [None if column is None else header[column] for column in columns]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[title for title in wanted if title is not None]):
                for row in batch.to_pylist():
                    number += 1
                    sequence, name, pair = (None if title is None else row[title] for title in wanted)
                    for title, value in ((wanted[0], sequence), (wanted[2], pair)):
                        if title is not None and not isinstance(value, str | bytes):
                            raise SequenceInputError(
                                f"{path}, row {number}: column {title!r} holds {value!r}, no sequence"
                            )
                    yield str(number if name is None else name), f"row {number}", sequence, pair
    except (pyarrow.ArrowException, OSError) as error:  # OSError: damaged pages
        raise SequenceInputError(f"{path}: not a readable Parquet file ({error})") from None


def _columns(path: Path, header: list[str], sequence_column: str, name_column: str | None, pair_column: str | None):
    """Positions of the sequence, name and pair columns; None for a column that is not wanted or not there."""
    if name_column is None:
        name_column = next((title for title in NAME_COLUMNS if title in header and title != sequence_column), None)
    positions = []
    for title, flag in ((sequence_column, "sequence"), (name_column, "name"), (pair_column, "pair")):
        if title is not None and header.count(title) != 1:
            found = "two columns" if title in header else "no column"
            hint = " Is the file delimited by another character?" if len(header) == 1 else ""
            raise SequenceInputError(
                f"{path}, line 1: {found} {title!r}; the columns are {', '.join(header) or '(none)'}.{hint} "
                f"Name the right one with --{flag}-column"
            )
        positions.append(None if title is None else header.index(title))
    return positions


def _bed_records(path: Path, genome: "str | Path | Genome") -> Iterator[SequenceRecord]:
    if not isinstance(genome, Genome):
        genome = Genome(genome, {interval[1] for interval in _bed_intervals(path)})
    for where, contig, start, end, name, strand in _bed_intervals(path):
        try:
            sequence = genome.fetch(contig, start, end)
        except SequenceInputError as error:
            raise SequenceInputError(f"{path}, {where}: {error}") from None
        yield SequenceRecord(name, reverse_complement(sequence) if strand == "-" else sequence, where)


def _bed_intervals(path: Path):
    """(where, contig, start, end, name, strand) of each line of a BED file with 3 or more columns."""
    empty = True
    for number, line in enumerate(read_lines(path), 1):
        where = f"line {number}"
        if not line.strip() or line.startswith("#"):
            continue
        first, *others = line.split(maxsplit=2)
        if first in ("track", "browser") and not (others and others[0].isdecimal()):
            continue  # a line for genome browsers, and no contig of that name
        empty = False
        fields = line.rstrip("\r\n").split("\t" if "\t" in line else None)
        if len(fields) < 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
            raise SequenceInputError(f"{path}, {where}: expected contig, start and end, found {line.strip()[:60]!r}")
        contig, start, end = fields[0], int(fields[1]), int(fields[2])
        if start >= end:
            raise SequenceInputError(
                f"{path}, {where}: the interval {start}-{end} is empty; BED is [start, end) from 0"
            )
        strand = fields[5] if len(fields) > 5 else "."
        if strand not in ("+", "-", "."):
            raise SequenceInputError(f"{path}, {where}: strand {strand!r} is none of + - .")
        named = len(fields) > 3 and fields[3] not in ("", ".")
        yield where, contig, start, end, fields[3] if named else f"{contig}:{start}-{end}", strand
    if empty:
        raise SequenceInputError(f"{path}: holds no interval")
