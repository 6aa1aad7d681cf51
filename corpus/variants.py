"""
Phased variants: which alleles each haplotype of a sample carries, read from VCF or BCF by region.

    with PhasedVariants("chr20.vcf.gz") as variants:
        contig = variants.contig_for("20", length=63_025_520)      # 'chr20' where the file says so; None: not there
        variants.check_reference(contig, reference)                # raises VariantError for the wrong assembly
        first, second = variants.read(contig, start, end, "HG00096")
        first.variants                                             # what corpus.haplotypes.haplotype_sequence applies

Coordinates are 0-based and half-open. Genotypes are read by region through the index, one sample at a time, so that
memory does not grow with file or panel. A file without an index is indexed in a temporary folder first. Open one
PhasedVariants in each process. docs/haplotypes.md has every policy.
"""

import difflib
import functools
import itertools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pysam

from corpus.vcf_files import FIXED_COLUMNS, VariantError, htslib_messages_off, indexed, kind_of, read_header

MISMATCH_SHARE = 0.05  # of REF alleles that may differ from the reference before it is called the wrong assembly
FEWEST_MISMATCHES = 10  # fewer than this many may differ, however few are compared
AROUND = (10_000, 100_000)  # bp beside a region in which genotypes tell whether it has a second haplotype
_COMPATIBLE = {  # FASTA's ambiguity code -> the bases that a VCF may name there (VCF 4.3, section 1.6.1, REF)
    "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG",
}  # fmt: skip


class Variant(NamedTuple):
    """
    One allele other than the reference, of one record.

    `position` is that of REF's first base; `end` is the half-open end of what the record covers (from END or SVLEN
    for symbolic alleles, None where the file has neither); `alt` is the allele as written, `inserted` the sequence
    that INFO/SVINSSEQ gives for a symbolic insertion.
    """

    position: int
    end: int | None
    ref: str
    alt: str
    inserted: str = ""


@dataclass
class Alleles:
    """
    What one haplotype carries in a region.

    Each record of the region is in exactly one of `variants`, `reference` (a count), `skipped` (counts by reason).
    `unphased` counts heterozygous genotypes without phase; they are taken in the order written. `absent`: the sample
    has no such haplotype here, its genotypes are haploid (chrY, chrX of a male, MT).
    """

    variants: list[Variant] = field(default_factory=list)
    reference: int = 0
    skipped: Counter = field(default_factory=Counter)
    unphased: int = 0
    absent: bool = False

    @property
    def records(self) -> int:
        return len(self.variants) + self.reference + self.skipped.total()

    @property
    def informative(self) -> int:
        """Records whose genotype is there, and so tells whether it is haploid."""
        return self.records - self.skipped["missing genotype"] - self.skipped["no genotype field"]


class PhasedVariants:
    """
    A VCF or BCF file with genotypes; a context manager.

    Attributes:
        samples: names in the order of the file.
        contigs: names of contigs that have records.
        lengths: {contig: bp} as far as the header gives them.

    Raises:
        VariantError: missing, empty, truncated, corrupt or unsorted file; not VCF; no samples; no record; a record
            without FORMAT/GT as the first one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._temporary = tempfile.TemporaryDirectory(prefix="variants-")  # for an index, where there is none
        kind = kind_of(self.path)
        data, index = (os.fspath(path) for path in indexed(self.path, kind, Path(self._temporary.name)))
        with htslib_messages_off():
            try:
                if kind == "BCF":
                    self._file = pysam.VariantFile(data, index_filename=index)
                    header = str(self._file.header).splitlines()
                    # the index also lists contigs of the header that have no record
                    self.contigs = [name for name in self._file.index if any(True for _ in self._file.fetch(name))]
                else:
                    self._file = pysam.TabixFile(data, index=index, encoding="utf-8")
                    header, self.contigs = list(self._file.header), list(self._file.contigs)
            except (OSError, ValueError) as error:
                raise VariantError(
                    f"{self.path}: cannot be read with its index ({error}); make the index again"
                ) from None
        self.samples, self.lengths = read_header(self.path, header)
        self._sample_index = {name: index for index, name in enumerate(self.samples)}
        self._check_first_record()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()
        self._temporary.cleanup()

    def contig_for(self, name: str, length: int | None = None) -> str | None:
        """
        Return this file's name of a contig, `chr1` and `1` (chrM, M and MT) being the same; None when it is not there.

        Raises:
            VariantError: two contigs could be meant; or the header gives another length (bp): the wrong assembly.
        """
        found = [name] if name in self.contigs else [c for c in self.contigs if _bare_name(c) == _bare_name(name)]
        if len(found) > 1:
            raise VariantError(f"{self.path}: contig {name!r} could be any of {found}; rename it in one of the files")
        if found and length and self.lengths.get(found[0], length) != length:
            raise VariantError(
                f"{self.path}: contig {found[0]!r} has {self.lengths[found[0]]:,} bp in the header, but {length:,} bp "
                f"in the reference ({name!r}); the variants belong to another assembly"
            )
        return found[0] if found else None

    def check_reference(self, contig: str, reference: bytes):
        """
        Compare REF of up to 1,000 records, at 20 places of the contig, with the reference (the whole contig).

        Raises:
            VariantError: ten or more, and more than 5 %, differ: the wrong assembly. Names the first one that does.
        """
        compared, wrong = 0, []
        borders = [len(reference) * i // 20 for i in range(20)] + [None]  # the last place goes on to the last record
        for start, end in itertools.pairwise(borders):
            for line in itertools.islice(self._lines(contig, start, end), 50):
                position, ref = self._position(line), line[3]
                problem = ref_problem(reference, position, ref)
                if problem == "reference is N" or position < 0:
                    continue
                compared += 1
                if problem:
                    wrong.append((position, ref))
        if too_many_differ(len(wrong), compared):
            raise wrong_assembly(reference, *wrong[0], len(wrong), compared, f"{self.path}: contig {contig!r}: ")

    def read(self, contig: str, start: int, end: int, sample: str) -> tuple[Alleles, Alleles]:
        """
        Read what both haplotypes of a sample carry in the records that overlap [start, end) of a contig.

        Where no record tells whether the sample is haploid there, those within 10 kbp, then 100 kbp around do.

        Raises:
            VariantError: unknown sample or contig; a record that cannot be read, is out of order, or has more than
                two alleles in its genotype.
        """
        both = self._read(contig, start, end, sample)
        near = both[1]
        for around in AROUND:
            if near.informative:
                break
            near = self._read(contig, max(0, start - around), end + around, sample)[1]
        both[1].absent = 0 < near.informative == near.skipped["haploid genotype"]
        return both

    def _read(self, contig: str, start: int, end: int, sample: str) -> tuple[Alleles, Alleles]:
        column = self._column(sample)
        both = Alleles(), Alleles()
        previous = -1
        for fields in self._lines(contig, start, end):
            position = self._position(fields)
            if position < previous:
                raise self._error(fields, f"comes after position {previous + 1}; sort the file with `bcftools sort`")
            previous = position
            text = self._genotype_text(fields, column)
            if text == "0|0":
                both[0].reference += 1
                both[1].reference += 1
                continue
            try:
                *alleles, phased = _genotype(text)
            except ValueError:
                raise self._error(fields, f"genotype {text!r} of sample {sample!r} is not understood") from None
            if not phased and alleles[0] != alleles[1]:
                both[0].unphased += 1
                both[1].unphased += 1
            for haplotype, allele in zip(both, alleles, strict=True):
                _add(haplotype, allele, position, fields)
        return both

    def _column(self, sample: str) -> int:
        if sample not in self._sample_index:
            near = difflib.get_close_matches(sample, self.samples, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"samples here: {_some(self.samples)}"
            raise VariantError(f"{self.path}: no sample {sample!r}; {hint}")
        return self._sample_index[sample]

    def _lines(self, contig: str, start: int, end: int | None) -> Iterator[list[str]]:
        """Yield the nine fixed columns and the rest of each record that overlaps a region."""
        if contig not in self.contigs:
            raise VariantError(f"{self.path}: no records of contig {contig!r}; contigs here: {_some(self.contigs)}")
        try:
            for record in self._file.fetch(contig, start, end):
                fields = str(record).rstrip("\r\n").split("\t", FIXED_COLUMNS)
                if len(fields) <= FIXED_COLUMNS:
                    raise VariantError(f"{self.path}: a record of {contig!r} has {len(fields)} columns: {fields}")
                yield fields
        except (OSError, ValueError) as error:
            if isinstance(error, VariantError):
                raise
            raise VariantError(
                f"{self.path}: corrupt or truncated ({error}); copy the file again; or its index is not its own: make "
                "it again"
            ) from None

    def _position(self, fields: list[str]) -> int:
        try:
            return int(fields[1]) - 1
        except ValueError:
            raise self._error(fields, "POS is not a number") from None

    def _genotype_text(self, fields: list[str], column: int) -> str:
        """Cut one sample's genotype out of a line, without splitting it where all genotypes have three letters."""
        keys, rest = fields[8], fields[9]
        count = len(self.samples)
        if keys == "GT" and len(rest) == 4 * count - 1 and rest[3::4] == "\t" * (count - 1):
            return rest[4 * column : 4 * column + 3]
        columns = rest.split("\t")
        if len(columns) != count:
            raise self._error(fields, f"has {len(columns)} genotypes, but there are {count} samples: truncated?")
        if "GT" not in keys.split(":"):
            return ""
        values = columns[column].split(":")
        index = keys.split(":").index("GT")
        return values[index] if index < len(values) else "."  # trailing fields may be left out

    def _error(self, fields: list[str], problem: str) -> VariantError:
        return VariantError(f"{self.path}: record {fields[0]}:{fields[1]} {fields[3][:20]}>{fields[4][:20]} {problem}")

    def _check_first_record(self):
        if not self.contigs:
            raise VariantError(f"{self.path}: no variants, only a header")
        fields = next(self._lines(self.contigs[0], 0, None))
        if "GT" not in fields[8].split(":"):
            raise self._error(fields, f"has no genotypes (FORMAT is {fields[8]!r}); GT is needed for haplotypes")


def ref_problem(reference: bytes, position: int, ref: str) -> str | None:
    """
    Say why a REF allele does not fit the reference: 'REF mismatch', 'reference is N', 'beyond contig end', or None.

    Case does not matter; N in REF fits anything; an ambiguity code in the reference fits each of its bases.
    """
    found = reference[position : position + len(ref)].upper().decode()
    ref = ref.upper()
    if found == ref:
        return None
    if len(found) < len(ref) or position < 0:
        return "beyond contig end"
    fits = [a == b or b == "N" or b in _COMPATIBLE.get(a, "") for a, b in zip(found, ref, strict=True)]
    if all(fits):
        return None
    return "reference is N" if all(fit or a == "N" for fit, a in zip(fits, found, strict=True)) else "REF mismatch"


def too_many_differ(wrong: int, compared: int) -> bool:
    """Whether so many REF alleles differ from the reference that it must be another assembly."""
    return wrong >= FEWEST_MISMATCHES and wrong > MISMATCH_SHARE * compared


def wrong_assembly(reference, position, ref, wrong, compared, where="") -> VariantError:
    """The error for a reference that most REF alleles contradict; names the first such record."""
    found = reference[position : position + min(len(ref), 20)].decode() or "nothing (the contig ends before)"
    return VariantError(
        f"{where}{wrong} of {compared} REF alleles differ from the reference; the first at position {position + 1}: "
        f"REF {ref[:20]}, reference {found}. The variants belong to another assembly (GRCh37 and GRCh38 mixed up?)"
    )


@functools.lru_cache(maxsize=4096)
def _genotype(text: str) -> tuple[int | str, int | str, bool]:
    """Return for both haplotypes an allele number or the reason why there is none, and whether phase is known."""
    if text in ("", "."):
        reason = "missing genotype" if text else "no genotype field"
        return reason, reason, True
    alleles = text.replace("/", "|").split("|")
    if alleles[0] == "" and text[0] in "|/":  # VCF 4.4 may write the first allele's phase in front
        alleles = alleles[1:]
    if not all(allele == "." or allele.isdecimal() for allele in alleles):
        raise ValueError(text)
    alleles = ["missing genotype" if allele == "." else int(allele) for allele in alleles]
    if len(alleles) == 1:
        return alleles[0], "haploid genotype", True
    first, second = alleles  # ValueError: more than two
    return first, second, "/" not in text


def _add(haplotype: Alleles, allele: int | str, position: int, fields: list[str]):
    if allele == 0:
        haplotype.reference += 1
        return
    if isinstance(allele, str):
        haplotype.skipped[allele] += 1
        return
    ref, alts = fields[3], fields[4].split(",")
    if allele > len(alts) or fields[4] == ".":
        haplotype.skipped["no such allele"] += 1
        return
    alt = alts[allele - 1]
    if not alt.startswith("<"):
        haplotype.variants.append(Variant(position, position + len(ref), ref, alt))
        return
    info = dict(item.partition("=")[::2] for item in fields[7].split(";"))
    end = _symbolic_end(position, info, allele)
    haplotype.variants.append(Variant(position, end, ref, alt, info.get("SVINSSEQ", "")))


def _symbolic_end(position: int, info: dict[str, str], allele: int) -> int | None:
    """END if there is one, else POS + |SVLEN|."""
    if info.get("END", "").isdigit():
        return int(info["END"])
    lengths = info.get("SVLEN", "").split(",")
    length = lengths[allele - 1] if allele <= len(lengths) else lengths[0]
    return position + 1 + int(length.lstrip("-")) if re.fullmatch(r"-?\d+", length) else None


def _bare_name(contig: str) -> str:
    """A contig's name without 'chr'; MT for the mitochondrion."""
    name = re.sub("^chr", "", contig, flags=re.IGNORECASE)
    return "MT" if name in ("M", "MT") else name


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
