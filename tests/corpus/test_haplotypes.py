"""corpus.haplotypes: what a haplotype's sequence is, and where it lies on the reference."""

import random
import shutil
import subprocess
from collections import Counter

import pysam.bcftools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.fasta import read_fasta
from corpus.haplotypes import haplotype_sequence
from corpus.variants import PhasedVariants, Variant, VariantError
from tests.corpus.vcf import vcf_text, write_indexed

REFERENCE = b"ACGTACGTACGTTTGGCCAA"  # 20 bp


def variant(pos, ref, alt, end=None, inserted=""):
    """`pos` and `end` as in a VCF: counted from 1."""
    return Variant(pos - 1, end if alt.startswith("<") else pos - 1 + len(ref), ref, alt, inserted)


def apply(*variants, reference=REFERENCE, **region):
    return haplotype_sequence(reference, variants, **region)


def test_no_variant_gives_the_reference():
    haplotype = apply()
    assert (haplotype.sequence, haplotype.pieces, haplotype.applied) == (REFERENCE, [], Counter())


@pytest.mark.parametrize(
    ("kind", "ref", "alt", "expected"),
    [
        ("SNV", "T", "G", b"ACGGACGTACGTTTGGCCAA"),
        ("MNV", "TAC", "GGG", b"ACGGGGGTACGTTTGGCCAA"),
        ("insertion", "T", "TGG", b"ACGTGGACGTACGTTTGGCCAA"),
        ("insertion", "TA", "TGGA", b"ACGTGGACGTACGTTTGGCCAA"),
        ("deletion", "TACG", "T", b"ACGTTACGTTTGGCCAA"),
        ("deletion", "TA", "A", b"ACGACGTACGTTTGGCCAA"),
        ("complex", "TAC", "GG", b"ACGGGGTACGTTTGGCCAA"),
        ("SNV", "t", "g", b"ACGGACGTACGTTTGGCCAA"),
        ("SNV", "N", "G", b"ACGGACGTACGTTTGGCCAA"),
    ],
)
def test_alleles_given_as_bases(kind, ref, alt, expected):
    haplotype = apply(variant(4, ref, alt))
    assert (haplotype.sequence, haplotype.applied) == (expected, Counter([kind]))


@pytest.mark.parametrize(
    ("kind", "alt", "end", "expected"),
    [
        # positions 4 to 8 are T ACGT
        ("DEL", "<DEL>", 8, b"ACGT" + b"ACGTTTGGCCAA"),
        ("DEL", "<DEL:ME:ALU>", 8, b"ACGT" + b"ACGTTTGGCCAA"),
        ("CN", "<CN0>", 8, b"ACGT" + b"ACGTTTGGCCAA"),
        ("DUP", "<DUP>", 8, b"ACGT" + b"ACGTACGT" + b"ACGTTTGGCCAA"),
        ("DUP", "<DUP:TANDEM>", 8, b"ACGT" + b"ACGTACGT" + b"ACGTTTGGCCAA"),
        ("CN", "<CN2>", 8, b"ACGT" + b"ACGTACGT" + b"ACGTTTGGCCAA"),
        ("CN", "<CN4>", 8, b"ACGT" + b"ACGT" * 4 + b"ACGTTTGGCCAA"),
        ("INV", "<INV>", 9, b"ACGT" + b"TACGT" + b"CGTTTGGCCAA"),
    ],
)
def test_symbolic_alleles_change_the_bases_after_pos_up_to_end(kind, alt, end, expected):
    haplotype = apply(variant(4, "T", alt, end))
    assert (haplotype.sequence, haplotype.applied) == (expected, Counter([kind]))


def test_symbolic_insertion_with_its_sequence():
    assert apply(variant(4, "T", "<INS>", 4, inserted="GGG")).sequence == b"ACGTGGG" + REFERENCE[4:]


@pytest.mark.parametrize(
    ("reason", "given"),
    [
        ("symbolic insertion without sequence", variant(4, "T", "<INS:ME:ALU>", 4)),
        ("copy number not given", variant(4, "T", "<CNV>", 8)),
        ("copy number 1", variant(4, "T", "<CN1>", 8)),
        ("symbolic allele not known", variant(4, "T", "<UNK>", 8)),
        ("symbolic allele not known", variant(4, "T", "<DUP:DISPERSED>", 8)),
        ("reference block", variant(4, "T", "<*>", 8)),
        ("reference block", variant(4, "T", "<NON_REF>", 8)),
        ("no END and no SVLEN", variant(4, "T", "<DEL>")),
        ("END not after POS", variant(4, "T", "<DEL>", 4)),
        ("END beyond contig end", variant(4, "T", "<DEL>", 21)),
        ("allele *", variant(4, "T", "*")),
        ("breakend", variant(4, "T", "T[2:100[")),
        ("breakend", variant(4, "T", "]2:100]T")),
        ("breakend", variant(4, "T", "T.")),
        ("breakend", variant(4, "T", ".T")),
        ("unreadable allele", variant(4, "T", "T-")),
        ("unreadable allele", variant(4, "T", "")),
        ("unreadable allele", variant(4, "", "T")),
        ("symbolic allele not known", variant(4, "T", "<A[b]>", 8)),
        ("REF mismatch", variant(4, "G", "A")),
        ("REF mismatch", variant(4, "G", "<DEL>", 8)),
        ("beyond contig end", variant(20, "AC", "A")),
        ("beyond contig end", variant(0, "T", "A")),
    ],
)
def test_what_is_not_applied_leaves_the_reference_and_is_counted(reason, given):
    haplotype = apply(given)
    assert (haplotype.sequence, haplotype.applied, haplotype.skipped) == (REFERENCE, Counter(), Counter([reason]))


@pytest.mark.parametrize(
    ("reference", "ref", "outcome"),
    [
        (b"ACMT", "A", Counter(["SNV"])),
        (b"ACMT", "C", Counter(["SNV"])),
        (b"ACMT", "G", Counter(["REF mismatch"])),
        (b"ACNT", "G", Counter(["reference is N"])),
        (b"ACNT", "N", Counter(["SNV"])),
    ],
)
def test_ambiguity_codes_in_the_reference_fit_each_of_their_bases(reference, ref, outcome):
    haplotype = apply(variant(3, ref, "T"), reference=reference)
    assert haplotype.applied + haplotype.skipped == outcome


class TestOverlap:
    """The rule of bcftools consensus: the first one wins, but for indels that keep the shared base."""

    def test_a_variant_inside_a_deletion(self):
        haplotype = apply(variant(4, "TACG", "T"), variant(6, "C", "G"))
        assert (haplotype.sequence, haplotype.skipped) == (b"ACGTTACGTTTGGCCAA", Counter(["overlap"]))

    def test_two_variants_at_one_position(self):
        haplotype = apply(variant(4, "T", "G"), variant(4, "T", "C"))
        assert (haplotype.sequence[3:4], haplotype.skipped) == (b"G", Counter(["overlap"]))

    def test_an_insertion_after_a_changed_base(self):
        assert apply(variant(4, "T", "G"), variant(4, "T", "TCC")).sequence == b"ACGGCC" + REFERENCE[4:]

    def test_a_deletion_after_a_changed_base(self):
        assert apply(variant(4, "T", "G"), variant(4, "TA", "T")).sequence == b"ACGG" + REFERENCE[5:]

    def test_an_insertion_right_after_a_deletion(self):
        assert apply(variant(4, "TAC", "T"), variant(6, "C", "CGG")).sequence == b"ACGTGG" + REFERENCE[6:]

    def test_a_second_insertion_at_the_same_place(self):
        haplotype = apply(variant(4, "T", "TG"), variant(4, "T", "TC"))
        assert (haplotype.sequence, haplotype.skipped) == (b"ACGTG" + REFERENCE[4:], Counter(["overlap"]))

    def test_a_variant_that_is_skipped_does_not_block_the_next(self):
        haplotype = apply(variant(4, "T", "<INS>", 4), variant(4, "T", "G"))
        assert haplotype.applied == Counter(["SNV"])


def test_soft_masking_travels():
    haplotype = apply(
        variant(2, "C", "CGG"), variant(6, "C", "t"), variant(8, "T", "<INV>", 11), variant(13, "T", "TAA"),
        reference=b"ACgtacgTACgtttggccaa",
    )  # fmt: skip
    assert haplotype.sequence == b"ACGGgtatgTcGTttaatggccaa"


def test_variants_out_of_order_are_refused():
    with pytest.raises(ValueError, match="must ascend"):
        apply(variant(6, "C", "G"), variant(4, "T", "G"))


def test_region_outside_of_the_contig_is_refused():
    with pytest.raises(ValueError, match=r"\[5, 30\) is outside of the contig's 20 bp"):
        apply(start=5, end=30)


def test_wrong_assembly_is_an_error_that_names_the_first_record():
    wrong = [variant(pos, "ACGT"[(pos + 1) % 4], "ACGT"[(pos + 2) % 4]) for pos in range(1, 13)]
    with pytest.raises(VariantError, match="12 of 12 REF alleles differ .* position 1: REF G, reference A.*GRCh38"):
        apply(*wrong)


def test_variants_beyond_the_contig_mean_another_assembly_too():
    with pytest.raises(VariantError, match=r"position 21: REF A, reference nothing \(the contig ends before\)"):
        apply(*(variant(pos, "A", "C") for pos in range(21, 31)))


def test_few_wrong_ref_alleles_are_skipped():
    wrong = [variant(pos, "ACGT"[(pos + 1) % 4], "ACGT"[(pos + 2) % 4]) for pos in range(1, 10)]
    assert apply(*wrong).skipped == Counter({"REF mismatch": 9})


class TestRegion:
    def test_only_the_region_is_returned(self):
        haplotype = apply(variant(6, "C", "G"), start=4, end=8)
        assert haplotype.sequence == b"AGGT"

    def test_a_deletion_that_crosses_the_start_or_the_end_is_cut_off(self):
        deletion = variant(4, "T", "<DEL>", 8)
        assert apply(deletion, start=6, end=12).sequence == b"ACGT"
        assert apply(deletion, start=2, end=6).sequence == b"GT"

    def test_an_insertion_belongs_to_the_region_of_the_base_before(self):
        insertion = variant(4, "T", "TGG")
        assert apply(insertion, start=0, end=4).sequence == b"ACGTGG"
        assert apply(insertion, start=4, end=8).skipped == Counter(["outside region"])

    def test_a_copy_may_come_from_outside_of_the_region(self):
        assert apply(variant(4, "T", "<DUP>", 8), start=2, end=6).sequence == b"GT" + b"ACGT" + b"AC"

    def test_an_inversion_that_crosses_the_end_is_skipped_and_does_not_block_others(self):
        haplotype = apply(variant(4, "T", "<INV>", 12), variant(6, "C", "G"), start=2, end=8)
        assert haplotype.skipped == Counter(["inversion crosses the region's end"])
        assert haplotype.sequence == b"GTAGGT"


# Properties: random variants that do not overlap, against an implementation that is slow and obvious.

bases = st.text("ACGT", min_size=1, max_size=4)


@st.composite
def references_and_variants(draw):
    """A reference and variants of every kind, at least two bases apart, in VCF's notation."""
    reference = draw(st.text("ACGTacgtN", min_size=1, max_size=60))
    variants, position = [], 0
    while position < len(reference):
        position += draw(st.integers(0, 12))
        length = draw(st.integers(1, 5))
        if position + length > len(reference):
            break
        ref = reference[position : position + length].upper()
        alt = draw(
            st.one_of(
                bases, bases.map(lambda added, ref=ref: ref[0] + added), st.sampled_from(["<DUP>", "<INV>", "<CN3>"])
            )
        )
        variants.append(Variant(position, position + length, ref, alt))
        position += length + 1
    return reference, variants


def slow_haplotype(reference, variants):
    """The haplotype as a list of (base, reference position or None), made from right to left."""
    bases = [(base, position) for position, base in enumerate(reference)]
    complement = dict(zip("ACGTNacgtn", "TGCANtgcan", strict=True))
    for one in reversed(variants):
        inner = bases[one.position + 1 : one.end]
        if one.alt in ("<DUP>", "<CN3>"):
            copies = {"<DUP>": 1, "<CN3>": 2}[one.alt]
            changed = bases[one.position : one.position + 1] + [(base, None) for base, _ in inner] * copies + inner
        elif one.alt == "<INV>":
            changed = [bases[one.position]] + [(complement[base], None) for base, _ in reversed(inner)]
        else:
            case = str.lower if reference[one.position].islower() else str.upper
            changed = [(case(base), None) for base in one.alt]
        bases[one.position : one.end] = changed
    return bases


@settings(deadline=None, max_examples=200)
@given(references_and_variants())
def test_sequence_equals_the_slow_implementation(drawn):
    reference, variants = drawn
    haplotype = haplotype_sequence(reference.encode(), variants)
    expected = slow_haplotype(reference, [one for one in variants if one.end - one.position > 1 or one.alt[0] != "<"])
    assert haplotype.sequence.decode() == "".join(base for base, _ in expected)
    assert haplotype.applied.total() + haplotype.skipped.total() == len(variants)


@settings(deadline=None, max_examples=200)
@given(references_and_variants())
def test_unchanged_bases_map_there_and_back(drawn):
    reference, variants = drawn
    haplotype = haplotype_sequence(reference.encode(), variants)
    for position, base in enumerate(reference):
        found = haplotype.position_of(position)
        if found is not None:
            assert haplotype.sequence[found : found + 1].decode() == base
            assert haplotype.reference_interval(found, found + 1) == (position, position + 1)
    changed = {p for piece in haplotype.pieces for p in range(piece.reference_start, piece.reference_end)}
    assert changed == {p for p in range(len(reference)) if haplotype.position_of(p) is None}


@settings(deadline=None, max_examples=200)
@given(references_and_variants(), st.data())
def test_the_interval_of_a_cut_holds_every_base_of_the_cut(drawn, data):
    reference, variants = drawn
    haplotype = haplotype_sequence(reference.encode(), variants)
    end = data.draw(st.integers(0, len(haplotype.sequence)))
    start = data.draw(st.integers(0, end))
    low, high = haplotype.reference_interval(start, end)
    inside = [p for p in range(len(reference)) if (f := haplotype.position_of(p)) is not None and start <= f < end]
    assert 0 <= low <= high <= len(reference)
    assert all(low <= p < high for p in inside)
    if len(inside) == end - start > 0:
        assert (low, high) == (inside[0], inside[-1] + 1)


@settings(deadline=None, max_examples=200)
@given(references_and_variants(), st.lists(st.integers(0, 60), max_size=4))
def test_regions_end_to_end_give_the_whole_haplotype(drawn, borders):
    reference, variants = drawn
    variants = [one for one in variants if one.alt != "<INV>"]
    borders = sorted({0, len(reference), *(border for border in borders if border < len(reference))})
    pieces = [
        haplotype_sequence(reference.encode(), variants, start, end).sequence
        for start, end in zip(borders[:-1], borders[1:], strict=True)
    ]
    assert b"".join(pieces) == haplotype_sequence(reference.encode(), variants).sequence


# Against bcftools.


def consensus(program, reference, vcf, sample, haplotype):
    """{contig: sequence} of `bcftools consensus -H`, by the program on PATH or the one inside pysam."""
    options = ["-H", str(haplotype), "-s", sample, "-f", str(reference), "-o", f"{vcf}.fa", str(vcf)]
    if program == "pysam":
        pysam.bcftools.consensus(*options, catch_stdout=False)
    else:
        subprocess.run([program, "consensus", *options], check=True, capture_output=True)
    return {record.name: record.sequence for record in read_fasta(f"{vcf}.fa")}


@pytest.fixture(params=["system", "pysam"])
def bcftools(request):
    program = shutil.which("bcftools") if request.param == "system" else "pysam"
    return program or pytest.skip("bcftools is not installed")


def write_fasta(path, sequences):
    with path.open("w") as file:
        for name, sequence in sequences.items():
            file.write(f">{name}\n" + "\n".join(sequence[i : i + 60] for i in range(0, len(sequence), 60)) + "\n")
    return path


def messy_records(generator, contig, sequence):
    """Records at random places, many of them overlapping, sorted by position."""
    records = []
    for _ in range(generator.randint(1, 12)):
        position, length = generator.randrange(len(sequence) - 4), generator.choice([1, 1, 1, 1, 2, 3, 4])
        ref = sequence[position : position + length].upper()
        added = "".join(generator.choices("ACGT", k=generator.randint(1, 4)))
        alt = generator.choice(
            [added, ref[0] + added + ref[1:], ref[: generator.randint(1, length)], added[0] + ref, "<DEL>"]
        )
        info = "."
        if alt == "<DEL>":
            ref, info = ref[0], f"END={min(len(sequence), position + 1 + generator.randint(1, 10))}"
        genotype = generator.choice(["1|1", "1|0", "0|1", "1|.", "0/1"])
        records.append((contig, position + 1, ref, alt, info, genotype))
    return sorted(records, key=lambda record: record[1])


@pytest.mark.parametrize("seed", range(3))
def test_messy_variants_are_resolved_as_bcftools_does(tmp_path, bcftools, seed):
    generator = random.Random(seed)
    cased = {f"c{i}": "".join(generator.choices("ACGTacgt", k=generator.randint(20, 200))) for i in range(200)}
    upper = {name: sequence.upper() for name, sequence in cased.items()}
    header = [f"##contig=<ID={name},length={len(sequence)}>" for name, sequence in cased.items()]
    header += [
        '##INFO=<ID=END,Number=1,Type=Integer,Description="End">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
    ]
    records = [record for name, sequence in cased.items() for record in messy_records(generator, name, sequence)]
    vcf = write_indexed(tmp_path / "messy.vcf.gz", vcf_text(records, header=header))
    for number in (1, 2):
        letters = consensus(bcftools, write_fasta(tmp_path / "upper.fa", upper), vcf, "HG1", number)
        # In lower case bcftools lets an insertion overwrite the changed base before it; letters come from upper case.
        case = consensus(bcftools, write_fasta(tmp_path / "cased.fa", cased), vcf, "HG1", number)
        with PhasedVariants(vcf) as variants:
            for name, sequence in cased.items():
                alleles = variants.read(name, 0, len(sequence), "HG1")[number - 1]
                found = haplotype_sequence(sequence.encode(), alleles.variants).sequence
                assert found.upper() == letters[name]
                assert [base.islower() for base in found.decode()] == [base.islower() for base in case[name].decode()]


@pytest.mark.shared
def test_1000_genomes_haplotypes_equal_bcftools_consensus(tmp_path, shared_data):
    """Both haplotypes of 20 individuals over 1 Mbp, byte for byte."""
    program = shutil.which("bcftools") or pytest.skip("bcftools is not installed")
    folder = shared_data("data/vcf/g1k_chr20_1mb_grch37")
    reference = next(iter(read_fasta(folder / "ref.z.fa.gz"))).sequence
    fasta = write_fasta(tmp_path / "z.fa", {"z": reference.decode()})
    vcf = tmp_path / "z.vcf.gz"
    with PhasedVariants(folder / "z.300samples.phased.derived.vcf.gz") as variants:
        samples = variants.samples[::15]
        view = [program, "view", "-s", ",".join(samples), "-Oz", "-o", str(vcf)]
        subprocess.run([*view, str(folder / "z.300samples.phased.derived.vcf.gz")], check=True, capture_output=True)
        subprocess.run([program, "index", str(vcf)], check=True)
        variants.check_reference("z", reference)
        for sample in samples:
            for number, alleles in enumerate(variants.read("z", 0, len(reference), sample), 1):
                haplotype = haplotype_sequence(reference, alleles.variants)
                assert haplotype.applied.total() > 300
                assert haplotype.sequence == consensus(program, fasta, vcf, sample, number)["z"]
    assert len(samples) == 20


@pytest.mark.shared
def test_every_alt_form_of_the_specification_is_applied_or_counted(shared_data):
    reference = bytearray(b"C" * 5000)
    reference[4369:4370], reference[4388:4389] = b"G", b"T"
    with PhasedVariants(shared_data("data/vcf/spec_small/passed_body_alt.vcf.gz")) as variants:
        first, second = variants.read("1", 0, 5000, "HG00097")
    assert (first.records, second.records) == (26, 26)
    assert (first.reference, second.reference) == (26, 5)
    haplotype = haplotype_sequence(bytes(reference), second.variants)
    assert haplotype.applied == Counter({"SNV": 3, "complex": 1})
    assert second.skipped + haplotype.skipped == Counter({
        "breakend": 6, "no END and no SVLEN": 5, "symbolic insertion without sequence": 2, "copy number not given": 1,
        "allele *": 1, "no such allele": 1, "REF mismatch": 1,  # the file has two REF at position 4389
    })  # fmt: skip
