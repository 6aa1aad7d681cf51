"""
Haplotypes: the sequence that a chromosome copy has where it carries variants.

    haplotype = haplotype_sequence(reference, alleles.variants, start, end)   # reference: the whole contig, case kept
    haplotype.sequence                           # bytes; soft-masking (lower case) travels with the bases
    haplotype.reference_interval(200, 12_200)    # where a cut of the sequence lies on the reference
    haplotype.applied, haplotype.skipped         # counts by kind and by reason; each variant is in one of them

For SNV, insertions and deletions the result equals `bcftools consensus -H`, also where variants overlap.
docs/haplotypes.md has every policy.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from corpus.variants import Variant, ref_problem, too_many_differ, wrong_assembly

_COMPLEMENT = bytes.maketrans(b"ACGTRYKMBDHVacgtrykmbdhv", b"TGCAYRMKVHDBtgcayrmkvhdb")
_BASES = re.compile("[ACGTRYSWKMBDHVNacgtryswkmbdhvn]+")


class Piece(NamedTuple):
    """[reference_start, reference_end) of the contig became [start, end) of the haplotype's sequence."""

    reference_start: int
    reference_end: int
    start: int
    end: int


@dataclass
class Haplotype:
    """
    The sequence of [start, end) of a contig on one haplotype.

    `pieces` are the places where it differs from the reference, ascending; `applied` and `skipped` count variants.
    """

    sequence: bytes
    start: int
    end: int
    pieces: list[Piece] = field(default_factory=list)
    applied: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)

    def reference_interval(self, start: int, end: int) -> tuple[int, int]:
        """
        Return the reference's [start, end) of a cut [start, end) of the sequence.

        A cut that touches a changed piece takes in the whole of what that piece replaced; inserted bases have none.
        """
        if not 0 <= start <= end <= len(self.sequence):
            raise ValueError(f"[{start}, {end}) is outside of the haplotype's {len(self.sequence)} bp")
        first = bisect_right(self.pieces, start, key=lambda piece: piece.end)  # the first piece that ends after start
        if first < len(self.pieces) and self.pieces[first].start <= start:
            reference_start = self.pieces[first].reference_start
        else:
            reference_start = start + self._offset(first)
        last = bisect_left(self.pieces, end, key=lambda piece: piece.start)  # pieces before it start before the end
        if last and self.pieces[last - 1].end >= end:
            reference_end = self.pieces[last - 1].reference_end
        else:
            reference_end = end + self._offset(last)
        return reference_start, max(reference_start, reference_end)

    def position_of(self, reference_position: int) -> int | None:
        """Return where a base of the reference is in the sequence; None when it was deleted or replaced."""
        if not self.start <= reference_position < self.end:
            raise ValueError(f"position {reference_position} is outside of [{self.start}, {self.end})")
        index = bisect_right(self.pieces, reference_position, key=lambda piece: piece.reference_end)
        if index < len(self.pieces) and self.pieces[index].reference_start <= reference_position:
            return None
        return reference_position - self._offset(index)

    def _offset(self, index: int) -> int:
        """Reference position minus sequence position between pieces index - 1 and index."""
        if index == 0:
            return self.start
        return self.pieces[index - 1].reference_end - self.pieces[index - 1].end


class _Edit(NamedTuple):
    """What a variant does: [start, end) becomes `replacement`; first_base: REF's first base stays as it is."""

    kind: str
    start: int
    end: int
    replacement: bytes
    first_base_stays: bool


class _Skip(Exception):
    """A variant that is not applied; the message is the reason."""


def haplotype_sequence(
    reference: bytes, variants: Iterable[Variant], start: int = 0, end: int | None = None
) -> Haplotype:
    """
    Apply variants, ascending by position, to [start, end) of a contig.

    Args:
        reference: the whole contig, letters and case as in the FASTA file.
        variants: e.g. `Alleles.variants`; positions of the contig.
        start, end: bp. A deletion that crosses an end of the region is cut off there; an insertion belongs to the
            region of the base before it. The end is the contig's unless given.

    Raises:
        ValueError: variants out of order; a region outside of the contig.
        VariantError: ten or more, and more than 5 %, of the REF alleles differ from the reference.
    """
    end = len(reference) if end is None else end
    if not 0 <= start <= end <= len(reference):
        raise ValueError(f"[{start}, {end}) is outside of the contig's {len(reference)} bp")
    haplotype = Haplotype(b"", start, end)
    parts, length = [], 0  # of the sequence so far
    copied = start  # reference bases before this one are done
    frozen, upper, after_insertion = -1, True, False  # last base of the last variant applied, its case, whether longer
    mismatches = []
    count, previous = 0, -1
    for variant in variants:
        if variant.position < previous:
            raise ValueError(f"variants must ascend by position; {variant} comes after position {previous}")
        previous = variant.position
        count += 1
        try:
            edit = _edit_of(reference, variant)
            if edit.kind == "INV" and (edit.start < start or edit.end > end):
                raise _Skip("inversion crosses the region's end")
            # The rule of bcftools consensus: a variant may begin on the last base of the one before only if it leaves
            # this base alone and the one before was no insertion.
            position = variant.position
            if position <= frozen and (position < frozen or not edit.first_base_stays or after_insertion):
                raise _Skip("overlap")
            if position > frozen:  # else the case of the variant before goes on
                upper = not reference[position : position + 1].islower()
            replacement = edit.replacement
            if edit.kind not in ("DUP", "INV", "CN"):  # copies of the reference have their own case
                replacement = replacement.upper() if upper else replacement.lower()
            frozen = max(edit.end - 1, position)
            after_insertion = len(replacement) > edit.end - edit.start
            first, last, replacement = _inside(edit, replacement, start, end)
        except _Skip as skip:
            haplotype.skipped[str(skip)] += 1
            if str(skip) in ("REF mismatch", "beyond contig end") and variant.position >= 0:
                mismatches.append(variant)
            continue
        haplotype.applied[edit.kind] += 1
        parts += (reference[copied:first], replacement)
        length += first - copied + len(replacement)
        haplotype.pieces.append(Piece(first, last, length - len(replacement), length))
        copied = last
    if too_many_differ(len(mismatches), count):
        raise wrong_assembly(reference, mismatches[0].position, mismatches[0].ref, len(mismatches), count)
    haplotype.sequence = b"".join((*parts, reference[copied:end]))
    return haplotype


def _inside(edit: _Edit, replacement: bytes, start: int, end: int) -> tuple[int, int, bytes]:
    """Cut an edit to a region: what is deleted in it, and what takes its place."""
    if edit.start == edit.end:  # an insertion after base start - 1
        if not start < edit.start <= end:
            raise _Skip("outside region")
        return edit.start, edit.end, replacement
    first, last = max(edit.start, start), min(edit.end, end)
    if first >= last:
        raise _Skip("outside region")
    if (first, last) != (edit.start, edit.end):
        if len(replacement) == edit.end - edit.start:
            replacement = replacement[first - edit.start : last - edit.start]
        elif first > edit.start:  # the bases belong to the region before
            replacement = b""
    return first, last, replacement


def _edit_of(reference: bytes, variant: Variant) -> _Edit:
    """Turn a variant into an edit of the reference; raises _Skip with the reason when it cannot be applied."""
    ref, alt = variant.ref, variant.alt
    if alt == "*":
        raise _Skip("allele *")
    symbolic = alt.startswith("<")
    if not symbolic and ("[" in alt or "]" in alt or alt.startswith(".") or alt.endswith(".")):
        raise _Skip("breakend")
    if not ref or not (symbolic or _BASES.fullmatch(alt)):
        raise _Skip("unreadable allele")
    problem = ref_problem(reference, variant.position, ref)
    if problem:
        raise _Skip(problem)
    if symbolic:
        return _symbolic_edit(reference, variant)
    position, end = variant.position, variant.position + len(ref)
    if len(ref) == len(alt):
        return _Edit("SNV" if len(ref) == 1 else "MNV", position, end, alt.encode(), False)
    if not _is_pure(ref.upper(), alt.upper()):
        return _Edit("complex", position, end, alt.encode(), False)
    stays = ref[0].upper() == alt[0].upper()
    kind = "insertion" if len(alt) > len(ref) else "deletion"
    return _Edit(kind, position + stays, end, alt[stays:].encode(), stays)


def _is_pure(ref: str, alt: str) -> bool:
    """Whether the longer allele is the shorter one with bases inserted at one place."""
    short, long = sorted((ref, alt), key=len)
    same = 0
    while same < len(short) and short[same] == long[same]:
        same += 1
    return short[same:] == long[len(long) - (len(short) - same) :]


def _symbolic_edit(reference: bytes, variant: Variant) -> _Edit:
    """The event begins at the base after POS and ends with END (VCF 4.3, section 1.6.1, ALT)."""
    name = variant.alt[1:-1].upper()
    if name in ("*", "NON_REF", "X"):
        raise _Skip("reference block")
    position, end, kind = variant.position + 1, variant.end, name.split(":")[0]
    if kind == "INS":
        if not _BASES.fullmatch(variant.inserted):
            raise _Skip("symbolic insertion without sequence")
        return _Edit("INS", position, position, variant.inserted.encode(), True)
    copies = re.fullmatch(r"CN(\d+)", name)
    if not (copies or kind == "DEL" or name in ("DUP", "DUP:TANDEM", "INV")):
        raise _Skip("copy number not given" if kind in ("CNV", "CN") else "symbolic allele not known")
    if copies and int(copies[1]) == 1:
        raise _Skip("copy number 1")
    if end is None:
        raise _Skip("no END and no SVLEN")
    if end > len(reference):
        raise _Skip("END beyond contig end")
    if end <= position:
        raise _Skip("END not after POS")
    event = reference[position:end]
    if kind == "DEL" or copies and int(copies[1]) == 0:
        return _Edit("CN" if copies else "DEL", position, end, b"", True)
    if kind == "INV":
        return _Edit("INV", position, end, event[::-1].translate(_COMPLEMENT), True)
    more = int(copies[1]) - 1 if copies else 1
    return _Edit("CN" if copies else "DUP", position, position, event * more, True)
