"""
The alleles of a VCF or BCF as pairs of sequence windows, reference and alternative, with the same flanks.

An insertion or deletion in a repeat can be written at several positions, with more or less of REF around it. Here the
window is built around all places where it could stand, so the pair of windows, and every score of it, depends on the
change alone: not on how the record is written, and, mirrored, not on the strand.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam

from corpus.variants import ref_problem
from corpus.vcf_files import VariantError, htslib_messages_off, kind_of
from inference.reading import Genome, SequenceRecord, read_lines

COLUMNS = 8  # CHROM POS ID REF ALT QUAL FILTER INFO
SCORED = "scored"
OF_ANOTHER_ASSEMBLY = ("REF mismatch", "beyond contig end")
WRONG_ASSEMBLY_SHARE = 0.5  # of REF alleles that differ from the genome
_ACGT = re.compile("[ACGT]+")


@dataclass(frozen=True)
class Allele(SequenceRecord):
    """
    One ALT allele of a record: `sequence` is the reference window and `pair` the alternative one, both empty when
    `status` is not "scored" but the reason why there is none. `position` is POS, from 1.
    """

    contig: str = ""
    position: int = 0
    id: str = ""
    ref: str = ""
    alt: str = ""
    status: str = SCORED


def read_variant_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """
    (where, line) of each line of a VCF, header included, without its end; a BCF is written out as VCF.

    Raises:
        VariantError: missing, empty, truncated or damaged file, or no VCF.
    """
    path = Path(path)
    if kind_of(path) == "BCF":
        with htslib_messages_off(), pysam.VariantFile(str(path)) as file:
            for line in str(file.header).splitlines():
                yield "header", line
            try:
                for number, record in enumerate(file, 1):
                    yield f"record {number}", str(record).rstrip("\n")
            except OSError as error:
                raise VariantError(f"{path}: truncated or corrupt ({error}); copy the file again") from None
        return
    for number, line in enumerate(read_lines(path), 1):
        yield f"line {number}", line.rstrip("\r\n")


def read_records(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """
    (where, the first 8 columns and the rest) of each record.

    Raises:
        VariantError: no column line, too few columns, a POS that is no number; names the line.
    """
    columns = False
    for where, line in read_variant_lines(path):
        if line.startswith("#") or not line:
            columns = columns or line.startswith("#CHROM\t")
            continue
        if not columns:
            raise VariantError(f"{path}, {where}: no line '#CHROM POS ID ...' with tabs before the first record")
        fields = line.split("\t", COLUMNS)
        if len(fields) < COLUMNS:
            hint = "; columns are separated by tabs" if " " in line and "\t" not in line else ""
            raise VariantError(f"{path}, {where}: {len(fields)} columns instead of at least {COLUMNS}{hint}")
        if not fields[1].isdecimal():
            raise VariantError(f"{path}, {where}: POS is {fields[1]!r}, not a number")
        if not fields[3] or not fields[4]:
            raise VariantError(f"{path}, {where}: REF or ALT is empty; write '.' for no ALT")
        yield where, fields


def read_alleles(path: str | Path, genome: Genome, flank: int) -> Iterator[Allele]:
    """
    One Allele for each ALT of each record, in the order of the file; none for ALT '.'.

    flank: bp on either side of the change.

    Raises:
        VariantError: as `read_records`; no alleles; and, at the end, more than half of the REF alleles differ from the
            genome or lie beyond it, or no contig of the file is in it: the wrong assembly.
    """
    count, contigs, first_wrong = Counter(), {}, None
    for where, fields in read_records(path):
        name, position, identifier, ref, alts = fields[0], int(fields[1]), *fields[2:5]
        if name not in contigs:
            contigs[name] = genome_contig(genome, name)
        letters = None if contigs[name] is None else genome.fetch(contigs[name])
        problem = "contig not in genome" if letters is None else ref_problem(letters, position - 1, ref)
        if problem in OF_ANOTHER_ASSEMBLY and first_wrong is None:
            found = letters[position - 1 : position - 1 + min(len(ref), 20)].decode()
            if problem == "beyond contig end":
                found = f"ends at {len(letters):,} bp"
            first_wrong = f"{where}, {name}:{position}: REF {ref[:20]}, genome {found}"
        for alt in alts.split(",") if alts != "." else []:
            status = problem or allele_problem(ref, alt)
            windows = b"", b""
            if status is None:
                windows = variant_windows(letters, position - 1, ref.upper().encode(), alt.upper().encode(), flank)
                status = SCORED if windows else "longer than the flank"
            count[status] += 1
            text = f"{name}:{position}:{ref}>{alt}"
            window, other = windows or (b"", b"")
            yield Allele(text, window, where, other, name, position, identifier, ref, alt, status)
    if not count:
        raise VariantError(f"{path}: no variants: no record with an ALT allele")
    if count["contig not in genome"] == count.total():
        raise VariantError(
            f"{path}: none of its contigs ({', '.join(list(contigs)[:5])}) is in {genome.path} "
            f"({', '.join(list(genome.lengths)[:5])})"
        )
    compared = count.total() - count["contig not in genome"] - count["reference is N"]
    wrong = sum(count[problem] for problem in OF_ANOTHER_ASSEMBLY)
    if wrong > WRONG_ASSEMBLY_SHARE * compared:
        raise VariantError(
            f"{path}: {wrong:,} of {compared:,} alleles have a REF that differs from {genome.path}; "
            f"the first: {first_wrong}. The variants belong to another assembly (GRCh37 and GRCh38 mixed up?)"
        )


def contig_names(path: str | Path) -> list[str]:
    """Names of all contigs that have records, each also as other files may call it."""
    names = dict.fromkeys(fields[0] for _, fields in read_records(path))
    return list(dict.fromkeys(alias for name in names for alias in aliases(name)))


def aliases(name: str) -> list[str]:
    """A contig's name, then what else it is called: chr1 and 1; chrM, M and MT."""
    bare = re.sub("^chr", "", name, flags=re.IGNORECASE)
    return [name] + [a for b in (("M", "MT") if bare in ("M", "MT") else (bare,)) for a in (b, f"chr{b}") if a != name]


def genome_contig(genome: Genome, name: str) -> str | None:
    """
    The genome's name of a contig, None where it has none.

    Raises:
        VariantError: two contigs of the genome could be meant.
    """
    found = [alias for alias in aliases(name) if alias in genome.lengths]
    if len(found) > 1 and found[0] != name:
        raise VariantError(f"contig {name!r} could be any of {found} in {genome.path}; rename one")
    return found[0] if found else None


def allele_problem(ref: str, alt: str) -> str | None:
    """Why an ALT allele has no sequence that could be scored, or None."""
    if alt.upper() == ref.upper():
        return "ALT equals REF"
    if alt == ".":
        return "missing ALT"
    if alt == "*":
        return "overlapping deletion"
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return "breakend"
    if alt.startswith("<"):
        return "symbolic allele"
    if not _ACGT.fullmatch(alt.upper()) or not _ACGT.fullmatch(ref.upper()):
        return "letters other than ACGT"
    return None


def variant_windows(contig: bytes, position: int, ref: bytes, alt: bytes, flank: int) -> tuple[bytes, bytes] | None:
    """
    (reference window, alternative window) around a change, with `flank` bp on both sides, less at the contig's ends.

    position: of REF's first base, from 0; REF must agree with the contig, and ALT differ from it.

    Returns None when the change, with all places at which it could be written, is longer than `flank`.
    """
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while ref and alt and ref[0] == alt[0]:
        ref, alt, position = ref[1:], alt[1:], position + 1
    start, end = position, position + len(ref)
    if not ref or not alt:
        start, end, alt = _all_places(contig, start, end, alt, flank)
    if max(end - start, len(alt)) > flank:
        return None
    left, right = contig[max(0, start - flank) : start], contig[end : end + flank]
    return left + contig[start:end] + right, left + alt + right


def _all_places(contig: bytes, start: int, end: int, inserted: bytes, limit: int) -> tuple[int, int, bytes]:
    """
    The interval within which an insertion (start = end) or a deletion (nothing inserted) can be moved without another
    result, and what stands there afterwards; gives up beyond `limit` bp.
    """
    unit = inserted or contig[start:end]
    period = len(unit)
    low, high = start, end
    # Moving by one base turns the unit around by one: its last letter must be the base before it, and so on.
    while low > 0 and high - low <= limit + period and contig[low - 1] == unit[(low - 1 - start) % period]:
        low -= 1
    while high < len(contig) and high - low <= limit + period and contig[high] == unit[(high - end) % period]:
        high += 1
    if inserted:
        return low, high, contig[low:start] + inserted + contig[start:high]
    return low, high, contig[low:start] + contig[end:high]
