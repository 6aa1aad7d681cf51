"""Windows of VCF alleles: one change, one pair of windows, however and on whichever strand it is written."""

import gzip

import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.vcf_files import VariantError
from inference.reading import Genome, reverse_complement
from inference.variant_windows import read_alleles, variant_windows

CONTIG = b"GATTACAGGCATTTTTCCGAACGATCGNNACGTTGCA"
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture
def genome(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_bytes(b">1 first\n" + CONTIG.lower() + b"\n>chrM\nACGT\n")
    return Genome(path)


def vcf(folder, *records, name="calls.vcf"):
    path = folder / name
    path.write_text(HEADER + "".join("\t".join(map(str, record)) + "\t.\t.\t.\n" for record in records))
    return path


def record(position, ref, alt, contig="1"):
    return contig, position, ".", ref, alt


def test_windows_of_a_substitution_have_the_same_flanks():
    assert variant_windows(CONTIG, 10, b"A", b"G", 4) == (b"AGGCATTTT", b"AGGCGTTTT")


def test_flanks_end_where_the_contig_ends():
    assert variant_windows(CONTIG, 1, b"A", b"C", 4) == (b"GATTAC", b"GCTTAC")


def test_deletion_in_a_repeat_has_flanks_around_the_whole_repeat():
    assert variant_windows(CONTIG, 10, b"ATT", b"A", 5) == (b"AGGCATTTTTCCGAA", b"AGGCATTTCCGAA")


def test_change_longer_than_the_flank_has_no_windows():
    assert variant_windows(CONTIG, 10, b"ATT", b"A", 4) is None


@st.composite
def indels(draw):
    """A contig full of repeats, and an insertion or a deletion: (contig, start, end, inserted)."""
    contig = draw(st.lists(st.sampled_from([b"A", b"C", b"AC", b"AAC", b"G"]), min_size=6, max_size=20).map(b"".join))
    start = draw(st.integers(1, len(contig) - 2))
    if draw(st.booleans()):
        return contig, start, start, draw(st.text("ACG", min_size=1, max_size=4)).encode()
    return contig, start, draw(st.integers(start + 1, min(len(contig) - 1, start + 4))), b""


def written_everywhere(contig, start, end, inserted):
    """All (position, REF, ALT) with the base before as anchor that give the same sequence; some with more context."""
    changed = contig[:start] + inserted + contig[end:]
    for first in range(1, len(contig)):
        removed, added = end - start, len(inserted)
        if contig[:first] + changed[first : first + added] + contig[first + removed :] == changed:
            ref = contig[first - 1 : first + removed]
            alt = contig[first - 1 : first] + changed[first : first + added]
            if len(ref) == removed + 1:
                yield first - 1, ref, alt
                yield first - 1, ref + contig[first + removed :], alt + contig[first + removed :]


@given(indels())
def test_windows_do_not_depend_on_how_an_indel_is_written(indel):
    contig = indel[0]
    windows = {variant_windows(contig, *written, flank=100) for written in written_everywhere(*indel)}
    assert windows == {(contig, contig[: indel[1]] + indel[3] + contig[indel[2] :])}
    near = {variant_windows(contig, *written, flank=6) for written in written_everywhere(*indel)}
    assert len(near) == 1


@given(indels())
def test_windows_of_the_other_strand_are_the_reverse_complements(indel):
    contig, start, end, inserted = indel
    length, anchor = len(contig), contig[start - 1 : start]
    forward = variant_windows(contig, start - 1, anchor + contig[start:end], anchor + inserted, 6)
    other = reverse_complement(contig)
    anchor = other[length - end - 1 : length - end]
    removed = reverse_complement(contig[start:end])
    backward = variant_windows(
        other, length - end - 1, anchor + removed, anchor + reverse_complement(inserted), 6
    )  # fmt: skip
    assert backward == (None if forward is None else tuple(map(reverse_complement, forward)))


@pytest.mark.parametrize(
    "ref, alt, status",
    [
        ("G", "A", "scored"),
        ("g", "a", "scored"),
        ("G", "GATC", "scored"),
        ("C", "A", "REF mismatch"),
        ("G", "<DEL>", "symbolic allele"),
        ("G", "*", "overlapping deletion"),
        ("G", "G]1:5]", "breakend"),
        ("G", "R", "letters other than ACGT"),
        ("G", "G", "ALT equals REF"),
        ("G", "A" * 30, "longer than the flank"),
    ],
)
def test_every_allele_is_scored_or_says_why_not(tmp_path, genome, ref, alt, status):
    path = vcf(tmp_path, record(2, "A", "C"), record(1, ref, alt))
    assert [allele.status for allele in read_alleles(path, genome, 20)] == ["scored", status]


@pytest.mark.parametrize(
    "position, ref, contig, status",
    [
        (28, "N", "1", "letters other than ACGT"),
        (28, "A", "1", "reference is N"),
        (900, "A", "1", "beyond contig end"),
        (0, "A", "1", "beyond contig end"),
        (1, "G", "7", "contig not in genome"),
    ],
)
def test_alleles_outside_of_the_genome_are_not_scored(tmp_path, genome, position, ref, contig, status):
    path = vcf(tmp_path, *[record(2, "A", "C")] * 3, record(position, ref, "C", contig))
    assert [allele.status for allele in read_alleles(path, genome, 20)] == ["scored"] * 3 + [status]


@pytest.mark.parametrize("name", ["1", "chr1"])
@pytest.mark.parametrize("mitochondrion", ["M", "MT", "chrM", "chrMT"])
def test_contig_names_with_and_without_chr_match(tmp_path, genome, name, mitochondrion):
    path = vcf(tmp_path, record(1, "G", "C", name), record(2, "C", "A", mitochondrion))
    assert [allele.status for allele in read_alleles(path, genome, 3)] == ["scored"] * 2


def test_each_alt_of_a_record_is_an_allele_and_a_missing_alt_is_none(tmp_path, genome):
    path = vcf(tmp_path, record(1, "G", "A,<DEL>,T"), record(2, "A", "."))
    alleles = list(read_alleles(path, genome, 3))
    assert [(allele.alt, allele.status) for allele in alleles] == [
        ("A", "scored"), ("<DEL>", "symbolic allele"), ("T", "scored"),
    ]  # fmt: skip


def test_gzip_bgzip_and_bcf_are_read_like_text(tmp_path, genome):
    path = tmp_path / "calls.vcf"
    header = "##fileformat=VCFv4.2\n##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path.write_text(header + "1\t2\trs1\tA\tC,AG\t.\t.\t.\n")
    expected = [(a.name, a.sequence, a.pair, a.id) for a in read_alleles(path, genome, 9)]
    (tmp_path / "calls.vcf.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    pysam.tabix_compress(str(path), str(tmp_path / "calls.vcf.bgz"))
    with (
        pysam.VariantFile(str(path)) as source,
        pysam.VariantFile(str(tmp_path / "calls.bcf"), "wb", header=source.header) as bcf,
    ):
        for entry in source:
            bcf.write(entry)
    for name in ("calls.vcf.gz", "calls.vcf.bgz", "calls.bcf"):
        assert [(a.name, a.sequence, a.pair, a.id) for a in read_alleles(tmp_path / name, genome, 9)] == expected


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty file"),
        (b">1\nACGT\n", "neither VCF nor BCF"),
        (HEADER.encode(), "no variants"),
        (b"##fileformat=VCFv4.2\n1\t2\t.\tA\tC\t.\t.\t.\n", "line 2: no line '#CHROM"),
        (HEADER.encode() + b"1\t2\t.\tA\n", "line 3: 4 columns"),
        (HEADER.encode() + b"1 2 . A C . . .\n", "separated by tabs"),
        (HEADER.encode() + b"1\tx\t.\tA\tC\t.\t.\t.\n", "line 3: POS is 'x'"),
        (HEADER.encode() + b"1\t2\t.\t\tC\t.\t.\t.\n", "line 3: REF or ALT is empty"),
        (HEADER.encode() + b"9\t2\t.\tA\tC\t.\t.\t.\n", "none of its contigs (9"),
        (HEADER.encode() + b"1\t1\t.\tA\tC\t.\t.\t.\n1\t2\t.\tT\tC\t.\t.\t.\n", "another assembly"),
        (
            HEADER.encode() + b"1\t1\t.\tG\tC\t.\t.\t.\n1\t900\t.\tT\tC\t.\t.\t.\n1\t2\t.\tT\tC\t.\t.\t.\n",
            "2 of 3 alleles have a REF that differs from",
        ),
        (HEADER.encode() + b"1\t900\t.\tT\tC\t.\t.\t.\n", "line 3, 1:900: REF T, genome ends at 37 bp. The variants"),
    ],
)
def test_bad_files_are_named_with_line_and_reason(tmp_path, genome, content, words):
    path = tmp_path / "bad.vcf"
    path.write_bytes(content)
    with pytest.raises(VariantError) as error:
        list(read_alleles(path, genome, 5))
    assert words in str(error.value) and "bad.vcf" in str(error.value)


def test_truncated_bgzip_is_refused(tmp_path, genome):
    path = tmp_path / "cut.vcf.gz"
    with pysam.BGZFile(str(path), "w") as file:
        file.write(HEADER.encode() + b"1\t2\t.\tA\tC\t.\t.\t.\n")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(VariantError, match="truncated"):
        list(read_alleles(path, genome, 5))


def test_ambiguous_contig_name_is_refused(tmp_path):
    (tmp_path / "two.fa").write_bytes(b">chrM\nACGT\n>MT\nACGT\n")
    with pytest.raises(VariantError, match="could be any of"):
        list(read_alleles(vcf(tmp_path, record(1, "A", "C", "M")), Genome(tmp_path / "two.fa"), 5))


def test_real_variants_all_fit_their_reference(shared_data):
    folder = shared_data("data/vcf/g1k_chr20_1mb_grch37")
    genome = Genome(folder / "ref.z.fa.gz")
    alleles = list(read_alleles(folder / "z.300samples.phased.derived.vcf.gz", genome, 200))
    assert len(alleles) >= 7568 and {allele.status for allele in alleles} == {"scored"}
    for allele in alleles[::50]:
        change = len(allele.alt) - len(allele.ref)
        assert len(allele.pair) - len(allele.sequence) == change
        assert allele.sequence[:200] == allele.pair[:200] and allele.sequence[-200:] == allele.pair[-200:]
