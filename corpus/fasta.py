"""A fast, strict FASTA reader: big blocks, no work per line, every error with file and line."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenization.alphabet import AMBIGUITY_CODES, WHITE_SPACE

BLOCK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
# The empty block that ends every file written by bgzip (SAM specification, section 4.1.2).
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
NUCLEOTIDES = b"ACGTU" + AMBIGUITY_CODES
_ALLOWED = NUCLEOTIDES + NUCLEOTIDES.lower() + WHITE_SPACE
_AMINO_ACIDS_ONLY = b"EFILPQZXJO*"
_FOREIGN_FORMATS = {
    b"@": "it looks like FASTQ",
    b"BZh": "it is compressed with bzip2; only plain text, gzip and bgzip are read",
    b"\xfd7zXZ": "it is compressed with xz; only plain text, gzip and bgzip are read",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; only plain text, gzip and bgzip are read",
    b"PK\x03\x04": "it is a zip archive; unpack it first",
    b"LOCUS": "it looks like GenBank; convert it to FASTA",
    b"\x1aAFQ": "it looks like 2bit; convert it with twoBitToFa",
}


class FastaError(ValueError):
    """A file that cannot be read as nucleotide FASTA; the message names file and, where there is one, line."""


@dataclass(frozen=True)
class FastaRecord:
    """
    One record. `name` is the header up to the first white space, `description` what follows it.

    `sequence` keeps the letters and the case of the file, white space removed; `line` is the header's, from 1.
    """

    name: str
    description: str
    sequence: bytes
    line: int


def read_fasta(path: str | Path) -> Iterator[FastaRecord]:
    """
    Read the records of a nucleotide FASTA file, plain or gzip or bgzip (told by content, not by name).

    Memory: one record. Letters: A C G T U and IUPAC ambiguity codes in either case.

    Raises:
        FastaError: missing, unreadable, empty, truncated or corrupt file; not FASTA; a record without sequence; a
            letter that is no nucleotide (names record, line and letter).
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise FastaError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
        with open(path, "rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
            if compressed:
                _check_bgzf_end(path, file)
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            yield from _parse(path, _blocks(path, stream))
    except OSError as error:
        raise FastaError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_bgzf_end(path: Path, file) -> None:
    file.seek(0)
    head = file.read(14)
    is_bgzf = len(head) == 14 and head[3] & 4 and head[12:] == b"BC"  # an extra field named BC
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - len(BGZF_END), 0))
    if is_bgzf and file.read() != BGZF_END:
        raise FastaError(f"{path}: truncated (the end mark of bgzip is missing); download or copy the file again")


def _blocks(path: Path, stream) -> Iterator[bytes]:
    """Yield the file in large pieces; damage to the compression becomes a FastaError."""
    while True:
        try:
            block = stream.read(BLOCK_BYTES)
        except EOFError:
            raise FastaError(f"{path}: truncated gzip file; download or copy the file again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FastaError(f"{path}: corrupt gzip file ({error}); download or copy the file again") from None
        if not block:
            return
        yield block


def _parse(path: Path, blocks: Iterator[bytes]) -> Iterator[FastaRecord]:
    line = 1  # of the next byte
    header: bytes | None = None  # of the record being read
    header_line = 0
    in_header = False
    line_start = True
    letters = io.BytesIO()  # getvalue() of a BytesIO does not copy: memory stays at one contig
    for block in blocks:
        position = 0
        if header is None:
            position, line = _skip_to_first_header(path, block, line)
        while position < len(block):
            if in_header:
                end = block.find(b"\n", position)
                header += block[position : end if end >= 0 else len(block)]
                if end < 0:
                    break
                position, line, in_header, line_start = end + 1, line + 1, False, True
            elif line_start and block.startswith(b">", position):
                if header is not None:
                    yield _record(path, header, header_line, letters)
                letters, header, header_line = io.BytesIO(), b"", line
                position, in_header = position + 1, True
            else:
                next_header = block.find(b"\n>", position)
                piece = block[position : next_header + 1 if next_header >= 0 else len(block)]
                if piece.translate(None, _ALLOWED):
                    raise _bad_letter(path, _split_header(header)[0], line, piece)
                letters.write(piece.translate(None, WHITE_SPACE))
                line += piece.count(b"\n")
                line_start = piece.endswith(b"\n")
                position += len(piece)
    if header is None:
        raise FastaError(f"{path}: empty file; expected FASTA, a first line such as '>chr1'")
    yield _record(path, header, header_line, letters)


def _skip_to_first_header(path: Path, block: bytes, line: int) -> tuple[int, int]:
    """Return (offset, line number) of the first character that is not white space; it must be '>'."""
    text = block.removeprefix(b"\xef\xbb\xbf").lstrip(WHITE_SPACE)
    offset = len(block) - len(text)
    line += block.count(b"\n", 0, offset)
    if text and not text.startswith(b">"):
        first_line = text[:60].splitlines()[0]
        hint = next((hint for start, hint in _FOREIGN_FORMATS.items() if text.startswith(start)), None)
        raise FastaError(
            f"{path}, line {line}: not FASTA: expected a header such as '>chr1', found "
            f"{first_line.decode('ascii', 'backslashreplace')!r}" + (f"; {hint}" if hint else "")
        )
    return offset, line


def _split_header(header: bytes) -> tuple[str, str]:
    words = header.decode("utf-8", "replace").strip().split(maxsplit=1)
    return (*words, "", "")[:2]


def _record(path: Path, header: bytes, line: int, letters: io.BytesIO) -> FastaRecord:
    name, description = _split_header(header)
    sequence = letters.getvalue()
    if not sequence:
        raise FastaError(f"{path}, line {line}: record {name!r} has no sequence; complete or remove it")
    return FastaRecord(name, description, sequence, line)


def _bad_letter(path: Path, name: str, line: int, piece: bytes) -> FastaError:
    letter = piece.translate(None, _ALLOWED)[:1]
    line += piece.count(b"\n", 0, piece.index(letter))
    if letter.upper() in _AMINO_ACIDS_ONLY:
        hint = "the sequence looks like protein; DNA or RNA is needed"
    elif letter in b"-.":
        hint = "it looks like the gap of an alignment; remove the gaps"
    else:
        hint = f"expected {NUCLEOTIDES.decode()}, in upper or lower case"
    return FastaError(
        f"{path}, line {line}, record {name!r}: letter {letter.decode('latin-1')!r} is no nucleotide; {hint}"
    )
