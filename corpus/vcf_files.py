"""What lies around the records of a VCF or BCF file: its kind, damage, order, index, header."""

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pysam
import pysam.bcftools
from tqdm import tqdm

from corpus.fasta import BGZF_END, GZIP_MAGIC

FIXED_COLUMNS = 9  # CHROM POS ID REF ALT QUAL FILTER INFO FORMAT
_PROGRESS_BYTES = 50_000_000  # smaller files are read without a progress bar


class VariantError(ValueError):
    """Variants that cannot be read or do not fit the reference; the message names file and, where one is, record."""


def kind_of(path: Path) -> str:
    """
    Return 'BCF', 'bgzip' (VCF) or 'text' (VCF, plain or ordinary gzip), told by content.

    Raises:
        VariantError: missing, empty, truncated or corrupt file; anything else than VCF and BCF.
    """
    if not path.is_file():
        raise VariantError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            file.seek(max(path.stat().st_size - len(BGZF_END), 0))
            end = file.read()
    except OSError as error:
        raise VariantError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not head:
        raise VariantError(f"{path}: empty file; expected VCF or BCF")
    bgzf = head.startswith(GZIP_MAGIC) and head[3] & 4 and head[12:14] == b"BC"
    if bgzf and end != BGZF_END:
        raise VariantError(f"{path}: truncated (the end mark of bgzip is missing); copy the file again")
    try:
        with gzip.open(path) if head.startswith(GZIP_MAGIC) else open(path, "rb") as file:
            start = file.read(16)
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from None
    if start.startswith(b"BCF") and bgzf:
        return "BCF"
    if start.startswith(b"##fileformat=VCF"):
        return "bgzip" if bgzf else "text"
    raise VariantError(f"{path}: neither VCF nor BCF: starts with {start!r} instead of '##fileformat=VCF'")


def indexed(path: Path, kind: str, folder: Path) -> tuple[Path, Path]:
    """
    Return a file with the same records, and its index: those on disk, or made in `folder`.

    An index older than its file is not used: it may be that of an earlier file, and then hides records.

    Raises:
        VariantError: a file without index that is unsorted or damaged; names the line.
    """
    for suffix in (".tbi", ".csi"):
        index = Path(f"{path}{suffix}")
        if index.is_file() and index.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            return path, index
    data, index = path, folder / "variants.csi"
    if kind == "text":
        data = folder / "variants.vcf.gz"
        try:
            with pysam.BGZFile(os.fspath(data), "w") as copy:
                for line in _checked_lines(path):
                    copy.write(line)
        except OSError as error:
            raise VariantError(
                f"{path}: no indexed copy can be written to {folder} ({error}); make the file indexed yourself: "
                f"bcftools view -Oz -o copy.vcf.gz {path.name} && bcftools index copy.vcf.gz"
            ) from None
    with htslib_messages_off():
        try:
            if kind == "BCF":
                pysam.bcftools.index("-o", os.fspath(index), os.fspath(data), catch_stdout=False)
            else:
                pysam.tabix_index(os.fspath(data), preset="vcf", index=os.fspath(index), csi=True, force=True)
        except (OSError, pysam.SamtoolsError) as error:
            if kind != "BCF":
                for _ in _checked_lines(path):  # raises an error that names the line
                    pass
            reason = str(error).strip() or "unsorted or damaged"
            raise VariantError(f"{path}: no index can be made: {reason}; try `bcftools sort`") from None
    return data, index


def read_header(path: Path, lines: list[str]) -> tuple[list[str], dict[str, int]]:
    """
    Return the samples and, as far as the header has them, {contig: length in bp}.

    Raises:
        VariantError: no column line, no samples, the same sample twice.
    """
    lines = [line.rstrip("\r\n") for line in lines]
    names = next((line.split("\t") for line in lines if line.startswith("#CHROM")), None)
    if names is None:
        raise VariantError(f"{path}: the header has no line '#CHROM POS ID ...' with tabs")
    samples = names[FIXED_COLUMNS:]
    if not samples:
        raise VariantError(f"{path}: no samples, only sites; haplotypes need genotypes (columns after FORMAT)")
    twice = [name for name, count in Counter(samples).items() if count > 1]
    if twice:
        raise VariantError(f"{path}: sample {twice[0]!r} is there twice; rename it with `bcftools reheader`")
    lengths = {}
    for line in lines:
        name, length = re.search(r"[<,]ID=([^,>]+)", line), re.search(r"[<,]length=(\d+)", line)
        if line.startswith("##contig=") and name and length:
            lengths[name[1]] = int(length[1])
    return samples, lengths


@contextmanager
def htslib_messages_off():
    """Keep htslib from writing to stderr what is raised as an error anyway."""
    level = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(level)


def _checked_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a VCF in text; VariantError, with line number, where columns or order are wrong."""
    size = path.stat().st_size
    finished, contig, position, columns = set(), b"", 0, 0
    with (
        open(path, "rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=size < _PROGRESS_BYTES) as progress,
    ):
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        lines = enumerate(gzip.GzipFile(fileobj=file) if compressed else file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (EOFError, OSError, zlib.error) as error:
                raise _damaged(path, error) from None
            line = line.rstrip(b"\r\n") + b"\n"
            found = line.count(b"\t") + 1
            if line.startswith(b"#"):
                columns = found  # in the end those of #CHROM
            elif line == b"\n":
                continue
            else:
                name, text, _ = (*line.split(b"\t", 2), b"", b"")[:3]
                if found != columns:
                    raise VariantError(f"{path}, line {number}: {found} columns, expected {columns}; truncated?")
                if not text.isdigit():
                    raise VariantError(f"{path}, line {number}: POS {text.decode('utf-8', 'replace')!r} is no number")
                if name != contig:
                    finished.add(contig)
                    contig, position = name, 0
                if contig in finished or int(text) < position:
                    raise VariantError(
                        f"{path}, line {number}: {name.decode()}:{int(text)} is out of order; use `bcftools sort`"
                    )
                position = int(text)
            if not number % 1000:
                progress.update(file.tell() - progress.n)
            yield line


def _damaged(path: Path, error: Exception) -> VariantError:
    return VariantError(f"{path}: truncated or corrupt compressed file ({error}); copy the file again")
