"""corpus.variants: what the haplotypes of a sample carry, and what is wrong with a file that cannot say."""

import gzip
import os
import shutil
from collections import Counter

import pysam.bcftools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import vcf_files
from corpus.fasta import read_fasta
from corpus.variants import PhasedVariants, Variant, VariantError
from tests.corpus.vcf import vcf_text, write_indexed

FORMAT = '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">'
RECORDS = [
    ("chr1", 3, "A", "C", ".", "0|1", "1|1"),
    ("chr1", 7, "AC", "A,ACG", ".", "2|1", "0|0"),
    ("chr2", 5, "G", "T", ".", "1|0", ".|."),
]


@pytest.fixture
def write(tmp_path):
    def write_vcf(records, name="small.vcf", **header):
        path = tmp_path / name
        if isinstance(records, list):
            records = vcf_text(records, header.pop("samples", ("HG1", "HG2")), **header)
        if name.endswith(".gz"):
            return write_indexed(path, records)
        path.write_text(records)
        return path

    return write_vcf


def read(path, sample="HG1", contig="chr1", start=0, end=1000):
    with PhasedVariants(path) as variants:
        return variants.read(contig, start, end, sample)


def one_genotype(write, genotype):
    """What two haplotypes carry at one site with that genotype."""
    return read(write([("chr1", 3, "A", "C", ".", genotype, "0|0")]))


def error_of(path, *arguments, **options):
    with pytest.raises(VariantError) as caught:
        read(path, *arguments, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_each_haplotype_has_the_allele_that_its_genotype_names(write):
    first, second = read(write(RECORDS))
    assert first.variants == [Variant(6, 8, "AC", "ACG")]
    assert second.variants == [Variant(2, 3, "A", "C"), Variant(6, 8, "AC", "A")]
    assert (first.reference, second.reference) == (1, 0)


def as_plain(path, text):
    path.write_text(text)


def as_crlf(path, text):
    path.write_bytes(text.replace("\n", "\r\n").encode())


def as_gzip(path, text):
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def as_bgzip(path, text):
    with pysam.BGZFile(str(path), "w") as file:
        file.write(text.encode())


def as_indexed(path, text):
    write_indexed(path, text)


def as_bcf(path, text):
    plain = path.with_suffix(".txt")
    plain.write_text(text)
    pysam.bcftools.view("-Ob", "-o", str(path), str(plain), catch_stdout=False)


def as_indexed_bcf(path, text):
    as_bcf(path, text)
    pysam.bcftools.index(str(path), catch_stdout=False)


@pytest.mark.parametrize("form", [as_plain, as_crlf, as_gzip, as_bgzip, as_indexed, as_bcf, as_indexed_bcf])
def test_every_form_of_file_reads_the_same(tmp_path, form):
    header = ["##contig=<ID=chr0>", "##contig=<ID=chr1,length=900>", "##contig=<ID=chr2>", "##contig=<ID=chr3>", FORMAT]
    path = tmp_path / "small.vcf.gz"
    form(path, vcf_text(RECORDS, ("HG1", "HG2"), header))
    with PhasedVariants(path) as variants:
        assert (variants.samples, variants.contigs) == (["HG1", "HG2"], ["chr1", "chr2"])
        assert variants.lengths == {"chr1": 900}
        assert [v.position for v in variants.read("chr1", 0, 900, "HG1")[1].variants] == [2, 6]
        assert variants.read("chr2", 0, 900, "HG1")[0].variants == [Variant(4, 5, "G", "T")]


def test_a_file_without_index_gets_no_new_neighbours(write, tmp_path):
    path = write(RECORDS)
    read(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", [as_indexed, as_indexed_bcf])
def test_an_index_older_than_its_file_is_not_used(tmp_path, form):
    header = ["##contig=<ID=chr1>", FORMAT]
    path, other = tmp_path / "small.vcf.gz", tmp_path / "other.vcf.gz"
    form(path, vcf_text([("chr1", 3, "A", "C", ".", "0|1")], header=header))
    index = next(file for file in tmp_path.iterdir() if file.suffix in (".tbi", ".csi"))
    form(other, vcf_text([("chr1", 3, "A", "C", ".", "0|1"), ("chr1", 40_000, "A", "C", ".", "0|1")], header=header))
    os.replace(other, path)
    os.utime(path, (later := index.stat().st_mtime + 1, later))
    assert read(path, start=39_000, end=50_000)[1].records == 1


def test_a_region_holds_the_records_that_overlap_it(write):
    path = write([("chr1", 3, "A", "<DEL>", "END=20", "1|1", "0|0"), ("chr1", 15, "A", "C", ".", "1|1", "0|0")])
    assert [v.position for v in read(path, start=10, end=14)[0].variants] == [2]
    assert [v.position for v in read(path, start=14, end=15)[0].variants] == [2, 14]
    assert read(path, start=20, end=30)[0].records == 0


@pytest.mark.parametrize(
    ("genotype", "outcome"),
    [
        ("0|0", ("reference", "reference")),
        ("0|1", ("reference", "C")),
        ("1|0", ("C", "reference")),
        ("1/1", ("C", "C")),
        ("0/1", ("reference", "C")),
        (".|1", ("missing genotype", "C")),
        ("./.", ("missing genotype", "missing genotype")),
        (".", ("missing genotype", "missing genotype")),
        ("1", ("C", "haploid genotype")),
        ("0", ("reference", "haploid genotype")),
        ("2|1", ("no such allele", "C")),
        ("|0|1", ("reference", "C")),
    ],
)
def test_genotypes(write, genotype, outcome):
    for alleles, expected in zip(one_genotype(write, genotype), outcome, strict=True):
        assert alleles.records == 1
        if expected == "reference":
            assert alleles.reference == 1
        elif expected == "C":
            assert alleles.variants == [Variant(2, 3, "A", "C")]
        else:
            assert alleles.skipped == Counter([expected])


@pytest.mark.parametrize(("genotype", "count"), [("0/1", 1), ("1/0", 1), ("1/1", 0), ("./.", 0), ("0|1", 0)])
def test_unphased_heterozygous_genotypes_are_taken_as_written_and_counted(write, genotype, count):
    assert [alleles.unphased for alleles in one_genotype(write, genotype)] == [count, count]


def test_a_second_haplotype_of_haploid_genotypes_is_absent(write):
    path = write([("chrX", 3, "A", "C", ".", "1", "0|1"), ("chrX", 9, "A", "C", ".", "0", "1|1")])
    assert [alleles.absent for alleles in read(path, "HG1", "chrX")] == [False, True]
    assert [alleles.absent for alleles in read(path, "HG2", "chrX")] == [False, False]


def test_a_missing_genotype_makes_no_second_haplotype(write):
    records = [("chrX", 3, "A", "C", ".", "1", "."), ("chrX", 9, "A", "C", ".", ".", "0|1")]
    path = write([*records, ("chrX", 15, "A", "C", ".", "0", ".")])
    assert [alleles.absent for alleles in read(path, "HG1", "chrX")] == [False, True]
    assert [alleles.absent for alleles in read(path, "HG2", "chrX")] == [False, False]


@pytest.mark.parametrize(
    ("start", "absent"), [(20, True), (10_500, True), (50_000, True), (295_000, False), (150_000, False)]
)
def test_a_region_that_tells_nothing_is_as_haploid_as_what_lies_around(write, start, absent):
    records = [("chrY", 5, "A", "C", ".", "1", "."), ("chrY", 10_510, "A", "C", ".", ".", ".")]
    path = write([*records, ("chrY", 300_010, "A", "C", ".", "0|1", ".")])
    first, second = read(path, "HG1", "chrY", start, start + 20)
    assert (first.absent, second.absent) == (False, absent)
    assert not read(path, "HG2", "chrY", start, start + 20)[1].absent
    assert second.records == (start == 10_500)


def test_a_genotype_is_found_among_other_fields(write):
    text = vcf_text(RECORDS, ("HG1", "HG2")).replace("\tGT\t0|1\t1|1", "\tDP:GT:AD\t12:0|1:3,4\t7:1|1")
    assert read(write(text), "HG1")[1].variants[0].position == 2
    assert read(write(text), "HG2")[0].variants[0].position == 2


def test_a_record_without_genotypes_among_others_is_counted(write):
    text = vcf_text(RECORDS, ("HG1", "HG2")).replace("\tGT\t2|1\t0|0", "\tDP\t12\t7")
    assert read(write(text))[0].skipped == Counter(["no genotype field"])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["0|0", "0|1", "1", "10|1", "1|10", "11|11", "."]), min_size=1, max_size=8))
def test_a_sample_is_found_whatever_the_width_of_the_genotypes_before_it(tmp_path_factory, genotypes):
    samples = [f"HG{i}" for i in range(len(genotypes))]
    alts = ",".join("A" * i for i in range(2, 13))  # allele i is i + 1 bases
    path = tmp_path_factory.mktemp("vcf") / "wide.vcf"
    path.write_text(vcf_text([("1", 5, "A", alts, ".", *genotypes)], samples))
    with PhasedVariants(path) as variants:
        for sample, genotype in zip(samples, genotypes, strict=True):
            for alleles, allele in zip(variants.read("1", 0, 9, sample), genotype.split("|"), strict=False):
                expected = [] if allele in "0." else [int(allele) + 1]
                assert [len(one.alt) for one in alleles.variants] == expected


@pytest.mark.parametrize(
    ("info", "end"),
    [
        ("END=30", 30),
        ("SVLEN=-20", 23),
        ("SVTYPE=DEL;SVLEN=20", 23),
        ("END=30;SVLEN=-20", 30),
        ("SVLEN=-9,-20", 23),
        ("SVTYPE=DEL", None),
        ("SVLEN=.", None),
        ("END=x", None),
    ],
)
def test_the_end_of_a_symbolic_allele_is_end_or_else_pos_plus_svlen(write, info, end):
    path = write([("chr1", 3, "A", "C,<DEL>", info, "2|0", "0|0")])
    assert read(path)[0].variants == [Variant(2, end, "A", "<DEL>")]


def test_the_sequence_of_a_symbolic_insertion_is_read(write):
    path = write([("chr1", 3, "A", "<INS>", "SVTYPE=INS;SVINSSEQ=ACGT", "1|0", "0|0")])
    assert read(path)[0].variants[0].inserted == "ACGT"


class TestContigNames:
    @pytest.fixture
    def contig_for(self, write):
        def find(names, name, length=None, header=()):
            with PhasedVariants(
                write([(contig, 3, "A", "C", ".", "0|1") for contig in names], samples=("HG1",), header=header)
            ) as variants:
                return variants.contig_for(name, length)

        return find

    @pytest.mark.parametrize(
        ("names", "name", "expected"),
        [
            (["chr1", "chr2"], "1", "chr1"),
            (["1", "2"], "chr2", "2"),
            (["MT"], "chrM", "MT"),
            (["chrM"], "MT", "chrM"),
            (["1", "chr1"], "1", "1"),
            (["1"], "3", None),
            (["chr11"], "1", None),
        ],
    )
    def test_chr_in_front_does_not_matter(self, contig_for, names, name, expected):
        assert contig_for(names, name) == expected

    def test_two_that_could_be_meant_are_refused(self, contig_for):
        with pytest.raises(VariantError, match=r"contig 'CHR1' could be any of \['1', 'chr1'\]; rename it"):
            contig_for(["1", "chr1"], "CHR1")

    def test_another_length_means_another_assembly(self, contig_for):
        header = ["##contig=<ID=chr1,length=249250621>"]
        assert contig_for(["chr1"], "1", 249_250_621, header) == "chr1"
        with pytest.raises(VariantError, match="249,250,621 bp in the header, but 248,956,422 bp .* another assembly"):
            contig_for(["chr1"], "1", 248_956_422, header)


def test_a_vcf_without_contig_lines_is_read(write):
    assert "##contig" not in write(RECORDS).read_text()
    assert read(write(RECORDS))[0].records == 2


class TestBadInput:
    def test_missing_file(self, tmp_path):
        assert "no such file" in error_of(tmp_path / "absent.vcf.gz")

    def test_folder(self, tmp_path):
        assert "is a folder" in error_of(tmp_path)

    def test_a_file_that_may_not_be_opened(self, write, monkeypatch):
        def fail(*_):
            raise PermissionError(13, "Permission denied")

        path = write(RECORDS)
        monkeypatch.setattr(vcf_files, "open", fail, raising=False)
        assert "cannot be read (Permission denied)" in error_of(path)

    def test_empty_file(self, write):
        assert "empty file" in error_of(write(""))

    def test_only_a_header(self, write):
        assert "no variants, only a header" in error_of(write([]))

    def test_not_a_vcf(self, write):
        assert "neither VCF nor BCF: starts with b'>chr1" in error_of(write(">chr1\nACGT\n"))

    def test_sites_without_samples(self, write):
        text = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t3\t.\tA\tC\t.\t.\t.\n"
        assert "no samples, only sites" in error_of(write(text))

    def test_no_genotypes(self, write):
        text = vcf_text(RECORDS, ("HG1", "HG2")).replace("\tGT\t", "\tDP\t")
        assert "record chr1:3 A>C has no genotypes (FORMAT is 'DP')" in error_of(write(text))

    def test_no_column_line(self, write):
        text = vcf_text(RECORDS, ("HG1", "HG2"))
        assert "line 2: 11 columns, expected 1" in error_of(write(text.replace(text.splitlines()[1] + "\n", "")))

    def test_the_same_sample_twice(self, write):
        assert "sample 'HG1' is there twice" in error_of(write(RECORDS, samples=("HG1", "HG1")))

    def test_unknown_sample_names_near_ones(self, write):
        assert "no sample 'HG11'; did you mean HG1" in error_of(write(RECORDS), "HG11")
        assert "no sample 'xyz'; samples here: HG1, HG2" in error_of(write(RECORDS), "xyz")

    def test_unknown_contig(self, write):
        assert "no records of contig 'chr9'; contigs here: chr1, chr2" in error_of(write(RECORDS), contig="chr9")

    @pytest.mark.parametrize("form", [as_plain, as_gzip, as_bgzip])
    def test_unsorted_positions_name_the_line(self, tmp_path, form):
        form(path := tmp_path / "unsorted.vcf.gz", vcf_text([RECORDS[1], RECORDS[0]], ("HG1", "HG2")))
        assert "line 4: chr1:3 is out of order; use `bcftools sort`" in error_of(path)

    @pytest.mark.parametrize("form", [as_plain, as_bgzip])
    def test_a_contig_in_two_parts_names_the_line(self, tmp_path, form):
        records = [RECORDS[0], RECORDS[2], RECORDS[1]]
        form(path := tmp_path / "unsorted.vcf.gz", vcf_text(records, ("HG1", "HG2")))
        assert "line 5: chr1:7 is out of order" in error_of(path)

    def test_truncated_text_names_the_line(self, write):
        assert "line 5: 4 columns, expected 11; truncated?" in error_of(write(vcf_text(RECORDS, ("HG1", "HG2"))[:-20]))

    def test_truncated_gzip(self, tmp_path):
        path = tmp_path / "cut.vcf.gz"
        path.write_bytes(gzip.compress(vcf_text(RECORDS, ("HG1", "HG2")).encode())[:-30])
        assert "truncated or corrupt compressed file" in error_of(path)

    def test_bgzip_without_its_end_mark(self, write):
        path = write(RECORDS, "cut.vcf.gz")
        path.write_bytes(path.read_bytes()[:-28])
        assert "truncated (the end mark of bgzip is missing)" in error_of(path)

    def test_truncated_bcf(self, tmp_path):
        as_bcf(path := tmp_path / "cut.bcf", vcf_text(RECORDS[:2], ("HG1", "HG2"), ["##contig=<ID=chr1>", FORMAT]))
        path.write_bytes(path.read_bytes()[:-28])
        assert "truncated" in error_of(path)

    def test_damage_in_the_middle_of_an_indexed_file(self, tmp_path):
        records = [("chr1", i, "ACGT"[i % 4], "N", f"AF={i * 7919 % 1000}", "0|1") for i in range(1, 20_000)]
        path = write_indexed(tmp_path / "damaged.vcf.gz", vcf_text(records))
        content = bytearray(path.read_bytes())
        for i in range(len(content) // 2, len(content) // 2 + 40):
            content[i] ^= 0x5A
        path.write_bytes(content)
        (tmp_path / "damaged.vcf.gz.tbi").touch()
        message = error_of(path, end=30_000)
        assert "corrupt or truncated" in message and "or its index is not its own: make it again" in message

    def test_the_index_of_another_file(self, write, tmp_path):
        path = write(RECORDS, "one.vcf.gz")
        (tmp_path / "one.vcf.gz.tbi").write_bytes(b"no index")
        assert "make the index again" in error_of(path)

    @pytest.mark.parametrize("genotype", ["0|1|1", "a|b", "0|-1", "0|"])
    def test_a_genotype_that_cannot_be_read(self, write, genotype):
        path = write([("chr1", 3, "A", "C", ".", genotype, "0|0")])
        assert f"record chr1:3 A>C genotype {genotype!r} of sample 'HG1' is not understood" in error_of(path)

    def test_a_record_with_too_few_genotypes(self, write):
        path = write(vcf_text(RECORDS, ("HG1", "HG2")).replace("\t1|1\n", "\n"), "short.vcf.gz")
        assert "has 1 genotypes, but there are 2 samples" in error_of(path)


class TestCheckReference:
    RECORDS = [("chr1", pos, "ACGT"[pos % 4], "N", ".", "0|1") for pos in range(1, 200)]
    RIGHT = (b"CGTA" * 60)[:220]

    def test_the_right_reference_passes(self, write):
        with PhasedVariants(write(self.RECORDS, samples=("HG1",))) as variants:
            variants.check_reference("chr1", self.RIGHT)
            variants.check_reference("chr1", self.RIGHT.lower())
            variants.check_reference("chr1", b"N" * 100 + self.RIGHT[100:])

    @pytest.mark.parametrize(
        "reference", [b"A" + RIGHT, RIGHT[:50], b"ACGTTGCA" * 30], ids=["shifted", "short", "other"]
    )
    def test_another_assembly_is_refused(self, write, reference):
        with PhasedVariants(write(self.RECORDS, samples=("HG1",))) as variants:
            with pytest.raises(
                VariantError, match=r"contig 'chr1': \d+ of \d+ REF .*position \d+: REF [ACGT], .*GRCh38"
            ):
                variants.check_reference("chr1", reference)

    def test_few_wrong_records_pass(self, write):
        with PhasedVariants(write(self.RECORDS, samples=("HG1",))) as variants:
            variants.check_reference("chr1", b"T" + self.RIGHT[1:])

    def test_nine_wrong_records_pass_and_ten_do_not_however_few_there_are(self, write):
        for count in (9, 10):
            with PhasedVariants(write(self.RECORDS[:count], f"{count}.vcf", samples=("HG1",))) as variants:
                if count == 9:
                    variants.check_reference("chr1", self.RIGHT[1:])
                else:
                    with pytest.raises(VariantError, match="10 of 10 REF alleles"):
                        variants.check_reference("chr1", self.RIGHT[1:])

    def test_records_of_telomeres_are_not_wrong(self, write):
        ends = [("chr1", 0, "N", "N]chr1:5]", ".", "0|1")] * 10
        with PhasedVariants(write([*ends, *self.RECORDS[:5]], samples=("HG1",))) as variants:
            variants.check_reference("chr1", self.RIGHT)


@pytest.mark.shared
def test_real_records_are_each_counted_once(shared_data):
    """2,504 samples of 1000 Genomes with SNV, indels and copy numbers."""
    path = shared_data("data/vcf/no_reference/chr22_16-16.5mb.g1k_phase3_2504.vcf.gz")
    with PhasedVariants(path) as variants:
        assert len(variants.samples) == 2504
        for sample in ("HG00096", "NA21144"):
            for alleles in variants.read("22", 0, 60_000_000, sample):
                assert alleles.records == 6109
                assert 50 < len(alleles.variants) < 400


@pytest.mark.shared
def test_the_real_reference_passes_and_a_shifted_one_does_not(shared_data, tmp_path):
    folder = shared_data("data/vcf/g1k_chr20_1mb_grch37")
    reference = next(iter(read_fasta(folder / "ref.z.fa.gz"))).sequence
    shutil.copy(folder / "z.300samples.phased.derived.vcf.gz", tmp_path / "z.vcf.gz")
    with PhasedVariants(tmp_path / "z.vcf.gz") as variants:
        variants.check_reference("z", reference)
        with pytest.raises(VariantError, match="belong to another assembly"):
            variants.check_reference("z", reference[1:] + b"A")
