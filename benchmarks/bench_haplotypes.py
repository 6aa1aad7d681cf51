"""
Speed of haplotype substitution against `bcftools consensus`: from VCF and FASTA to both haplotypes as FASTA.

    python -m benchmarks.bench_haplotypes                    # real 1000 Genomes data beside the checkout
    python -m benchmarks.bench_haplotypes --data FOLDER --rounds 9

Everyone reads the same indexed VCF and the same plain FASTA, and writes FASTA. bcftools is run once for each haplotype,
as its command line asks for: as a process, and, without the start of a process, as the copy inside pysam. StrandBERT
reads the VCF once for both haplotypes of an individual, and the FASTA once for all individuals of a case; opening and
checking the files is in its time. Outputs are compared before anything is timed. Rows go to
benchmarks/results/haplotypes.csv.

Cases: one and 20 individuals of a panel of 300 over 1 Mbp; one individual of 2,504 over 0.5 Mbp (its reference is made
of the REF alleles and random bases between them, symbolic alleles left out: bcftools refuses them); 40 segments of
12,200 bp, each of another individual, which is what the dnaGrinder recipe asks for.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pysam
import pysam.bcftools

from benchmarks.harness import append_rows, interleave, machine, median_ratio
from corpus.fasta import read_fasta
from corpus.haplotypes import haplotype_sequence
from corpus.variants import PhasedVariants

ROOT = Path(__file__).resolve().parents[1]
SEGMENT = 12_200  # bp
Cut = tuple[str, int, int]  # sample, start, end


def write_fasta(path: Path, name: str, sequence: bytes):
    lines = (sequence[i : i + 60] for i in range(0, len(sequence), 60))
    path.write_bytes(b">" + name.encode() + b"\n" + b"\n".join(lines) + b"\n")


def strandbert(vcf: Path, fasta: Path, contig: str, cuts: list[Cut], folder: Path):
    reference = next(iter(read_fasta(fasta))).sequence
    with PhasedVariants(vcf) as variants:
        variants.check_reference(contig, reference)
        for number, (sample, start, end) in enumerate(cuts):
            for which, alleles in enumerate(variants.read(contig, start, end, sample), 1):
                haplotype = haplotype_sequence(reference, alleles.variants, start, end)
                write_fasta(folder / f"{number}.{which}.fa", contig, haplotype.sequence)


def bcftools(run: Callable, vcf: Path, fasta: Path, contig: str, cuts: list[Cut], folder: Path):
    """`fasta` is the whole contig; for cuts of it, regions are written first (that is in the time: samtools faidx)."""
    whole = pysam.FastaFile(os.fspath(fasta))
    for number, (sample, start, end) in enumerate(cuts):
        source = fasta
        if (start, end) != (0, whole.get_reference_length(contig)):
            source = folder / f"{number}.region.fa"
            write_fasta(source, f"{contig}:{start + 1}-{end}", whole.fetch(contig, start, end).encode())
        for which in (1, 2):
            output = folder / f"{number}.{which}.fa"
            run("-H", str(which), "-s", sample, "-f", os.fspath(source), "-o", os.fspath(output), os.fspath(vcf))


def as_process(*options: str):
    subprocess.run(["bcftools", "consensus", *options], check=True, stderr=subprocess.DEVNULL)


def inside_pysam(*options: str):
    pysam.bcftools.consensus(*options, catch_stdout=False)


def copy_indexed(source: Path, target: Path, *options: str) -> Path:
    """A bgzipped and indexed copy, made by `bcftools view` with options."""
    subprocess.run(["bcftools", "view", *options, "-Oz", "-o", target, source], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["bcftools", "index", "-t", target], check=True)
    return target


def made_reference(vcf: Path, contig: str, start: int, end: int) -> bytes:
    """N up to `start`, random bases up to `end`, and in them the REF alleles of a VCF."""
    reference = bytearray(b"N" * start) + bytearray(random.Random(0).choices(b"ACGT", k=end - start))
    for line in pysam.TabixFile(os.fspath(vcf)).fetch(contig):
        _, position, _, ref, _ = line.split("\t", 4)
        reference[int(position) - 1 : int(position) - 1 + len(ref)] = ref.encode()
    return bytes(reference)


def cases(data: Path, folder: Path) -> Iterator[tuple[str, Path, Path, str, list[Cut]]]:
    """Yield name, VCF, FASTA, contig and cuts."""
    panel = data / "data/vcf/g1k_chr20_1mb_grch37"
    fasta, vcf = folder / "z.fa", copy_indexed(panel / "z.300samples.phased.derived.vcf.gz", folder / "z.vcf.gz")
    reference = next(iter(read_fasta(panel / "ref.z.fa.gz"))).sequence
    write_fasta(fasta, "z", reference)
    with PhasedVariants(vcf) as variants:
        samples = variants.samples
    yield "1 of 300 individuals, 1 Mbp", vcf, fasta, "z", [(samples[0], 0, len(reference))]
    yield "20 of 300 individuals, 1 Mbp", vcf, fasta, "z", [(name, 0, len(reference)) for name in samples[::15]]
    starts = range(0, len(reference) - SEGMENT, len(reference) // 40)
    segments = [(name, start, start + SEGMENT) for name, start in zip(samples[::7], starts, strict=False)]
    yield "40 segments of 12,200 bp, 300 individuals", vcf, fasta, "z", segments[:40]
    source = data / "data/vcf/no_reference/chr22_16-16.5mb.g1k_phase3_2504.vcf.gz"
    vcf = copy_indexed(source, folder / "22.vcf.gz", "-e", 'ALT~"<"')
    start, end = 16_050_000, 16_560_000
    fasta = folder / "22.fa"
    write_fasta(fasta, "22", made_reference(vcf, "22", start, end))
    yield "1 of 2504 individuals, 0.5 Mbp", vcf, fasta, "22", [("HG00096", start, end)]


def compare(name: str, arguments: tuple, folder: Path, rounds: int) -> list[dict]:
    """Check that all give the same sequences, then time them; rows, ours first."""
    folders = {tool: folder / tool for tool in ("strandbert", "bcftools", "bcftools_in_process")}
    for tool in folders.values():
        shutil.rmtree(tool, ignore_errors=True)
        tool.mkdir()
    functions = {
        "strandbert": lambda: strandbert(*arguments, folders["strandbert"]),
        "bcftools": lambda: bcftools(as_process, *arguments, folders["bcftools"]),
        "bcftools_in_process": lambda: bcftools(inside_pysam, *arguments, folders["bcftools_in_process"]),
    }
    for function in functions.values():
        function()
    haplotypes = 2 * len(arguments[-1])
    for output in sorted(path.name for path in folders["strandbert"].iterdir()):
        results = {next(iter(read_fasta(folder / output))).sequence for folder in folders.values()}
        if len(results) > 1:
            raise SystemExit(f"{name}: {output} differs between StrandBERT and bcftools")
    seconds = interleave(functions, rounds)
    system = subprocess.run(["bcftools", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    versions = {"bcftools": system, "bcftools_in_process": pysam.version.__bcftools_version__}
    rows = []
    for tool, times in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        by_cpu = statistics.median(a[1] / b[1] for a, b in zip(times, seconds["strandbert"], strict=True))
        is_process = tool == "bcftools"  # its CPU time is not this process's
        rows.append({
            **machine(), "case": name, "tool": tool, "version": versions.get(tool, ""), "haplotypes": haplotypes,
            "rounds": rounds, "wall_s": round(wall, 4), "cpu_s": "" if is_process else round(cpu, 4),
            "ms_per_haplotype": round(1000 * wall / haplotypes, 2),
            "strandbert_is_faster_by": round(median_ratio(times, seconds["strandbert"]), 2),
            "strandbert_is_faster_by_cpu": "" if is_process else round(by_cpu, 2),
        })  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("STRANDBERT_DATA") or ROOT.parent / "shared")
    parser.add_argument("--data", type=Path, default=default, help="folder with data/vcf (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    options = parser.parse_args()
    if not shutil.which("bcftools"):
        raise SystemExit("bcftools is not installed; it is what this benchmark compares with")
    with tempfile.TemporaryDirectory() as folder:
        for name, *arguments in cases(options.data, Path(folder)):
            rows = compare(name, tuple(arguments), Path(folder), options.rounds)
            for row in rows:
                print(
                    f"{name:42} {row['tool']:20} {row['ms_per_haplotype']:9.2f} ms per haplotype; StrandBERT is faster "
                    f"by {row['strandbert_is_faster_by']} (CPU: {row['strandbert_is_faster_by_cpu'] or '-'})",
                    flush=True,
                )
            if not options.dry_run:
                append_rows("haplotypes", rows)


if __name__ == "__main__":
    main()
