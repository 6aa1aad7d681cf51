"""
Speed and memory of corpus preparation beside the plain ways to do it, in one process.

    python -m benchmarks.bench_corpus GENOMES           # folder with the genomes of corpus/recipes/small.csv
    python -m benchmarks.bench_corpus GENOMES --rounds 5 --only speed

Every tool reads the same gzipped genome, cuts windows of 1,000 bp without N and writes them with their coordinates to
Parquet (zstd). Rivals: a line-by-line FASTA parser as in Biopython's SimpleFastaParser, and pysam.FastxFile (htslib).
Ours also keeps soft-masking, samples 32-mers, and hashes input and output. Numbers are per second of CPU time, of all
threads. Memory is the peak of a fresh process. Rows go to benchmarks/results/corpus.csv.
"""

import argparse
import csv
import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pysam

from benchmarks.harness import append_rows, interleave, machine, median_ratio
from corpus.contigs import read_contigs
from corpus.genome_task import make_genome
from corpus.recipe import Dnabert2Recipe, DnagrinderRecipe, Genome

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 1000  # bp
GENOMES = {
    "human, soft-masked": "vertebrates_softmasked/hg38.cgp12way.fa.gz",
    "yeast": "fungi/scerevisiae_S288C_R64-2-1.fa.gz",
}

# VmHWM and not ru_maxrss, which begins with the size of the process that started this one.
REPORT_PEAK = """
import sys, time
from corpus.build import main
main(sys.argv[1:])
status = dict(line.split(":") for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0], round(time.process_time(), 2))
"""


def simple_fasta_parser(path: Path):
    """(name, sequence) of each record: the loop of Biopython's SimpleFastaParser."""
    with gzip.open(path, "rt") as file:
        for line in file:
            if line[0] == ">":
                title = line[1:].rstrip()
                break
        lines = []
        for line in file:
            if line[0] == ">":
                yield title.split()[0], "".join(lines).replace(" ", "").replace("\r", "")
                lines = []
                title = line[1:].rstrip()
                continue
            lines.append(line.rstrip())
        yield title.split()[0], "".join(lines).replace(" ", "").replace("\r", "")


def pysam_records(path: Path):
    with pysam.FastxFile(str(path)) as file:
        for record in file:
            yield record.name, record.sequence


def plain_windows(records, output: Path) -> int:
    """Windows without N to Parquet, one contig after the other; returns their number."""
    schema = pa.schema([("sequence", pa.string()), ("contig", pa.string()), ("start", pa.int64()), ("end", pa.int64())])
    count = 0
    with pq.ParquetWriter(output, schema, compression="zstd", compression_level=1, use_dictionary=["contig"]) as writer:
        for name, sequence in records:
            sequence = sequence.upper()
            rows = {"sequence": [], "contig": [], "start": [], "end": []}
            for start in range(0, len(sequence) - WINDOW + 1, WINDOW):
                window = sequence[start : start + WINDOW]
                if "N" not in window:
                    rows["sequence"].append(window)
                    rows["contig"].append(name)
                    rows["start"].append(start)
                    rows["end"].append(start + WINDOW)
            writer.write_table(pa.table(rows, schema))
            count += len(rows["start"])
    return count


def measure_speed(genomes: Path, rounds: int) -> list[dict]:
    """Mbp per second of CPU time for each genome and tool."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        plain = Dnabert2Recipe("dnabert2", "", window=WINDOW, validation_species=("another",))
        vocabulary = str(ROOT / "tokenization" / "vocabulary")
        others = {
            "dnabert2 with token ids": Dnabert2Recipe("dnabert2", "", window=WINDOW, tokenizer=vocabulary),
            "dnagrinder": DnagrinderRecipe("dnagrinder", ""),
            "dnagrinder with token ids, in their order": DnagrinderRecipe("dnagrinder", "", tokenizer=vocabulary),
        }
        for case, relative in GENOMES.items():
            path = genomes / relative
            genome = Genome("species", "category", path, relative)
            bases = sum(len(contig) for contig in read_contigs(path))

            def ours(recipe, genome=genome):
                return make_genome(recipe, genome, 0, folder / "out", folder / "work")

            functions = {
                "corpus: dnabert2": lambda ours=ours: ours(plain),
                "line-by-line parser": lambda path=path: plain_windows(simple_fasta_parser(path), folder / "plain"),
                "pysam": lambda path=path: plain_windows(pysam_records(path), folder / "plain"),
                **{f"corpus: {name}": lambda ours=ours, recipe=recipe: ours(recipe) for name, recipe in others.items()},
            }
            seconds = interleave(functions, rounds)
            cpu = {name: [(cpu, cpu) for _, cpu in times] for name, times in seconds.items()}
            for name in functions:
                best = min(times[0] for times in cpu[name])
                rows.append(
                    {
                        "measure": "speed",
                        "case": case,
                        "tool": name,
                        "mbp": round(bases / 1e6, 2),
                        "rounds": rounds,
                        "cpu_s": round(best, 3),
                        "mbp_per_cpu_s": round(bases / 1e6 / best, 1),
                        "dnabert2_is_faster_by": round(median_ratio(cpu[name], cpu["corpus: dnabert2"]), 2),
                    }
                )
    return rows


def measure_memory(genomes: Path) -> list[dict]:
    """Peak memory of `python -m corpus.build` from 5 to 330 Mbp, in many contigs and in one."""
    with open(ROOT / "corpus" / "recipes" / "small.csv", newline="") as file:
        paths = [genomes / row["path"] for row in csv.DictReader(file)]
    cases = {
        "E. coli, one contig": [genomes / "bacteria/ecoli_K12_MG1655.fna.gz"],
        "human, 17 contigs": [genomes / GENOMES["human, soft-masked"]],
        "all genomes": paths,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        cases["all genomes joined to one contig"] = [_join(paths, folder / "joined.fa")]
        for case, files in cases.items():
            table = "species,category,path\n" + "".join(f"{i},any,{path}\n" for i, path in enumerate(files))
            (folder / "table.csv").write_text(table)
            (folder / "recipe.yaml").write_text("recipe: dnabert2\ngenomes: table.csv\n")
            shutil.rmtree(folder / "out", ignore_errors=True)
            command = [sys.executable, "-c", REPORT_PEAK, str(folder / "recipe.yaml"), "--output", str(folder / "out")]
            finished = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            peak, cpu = finished.stdout.splitlines()[-1].split()
            rows.append(
                {
                    "measure": "memory",
                    "case": case,
                    "tool": "corpus: dnabert2",
                    "mbp": round(sum(len(c) for path in files for c in read_contigs(path)) / 1e6, 2),
                    "cpu_s": cpu,
                    "peak_memory_mb": round(int(peak) * 1024 / 1e6),
                }
            )
    return rows


def _join(paths: list[Path], output: Path) -> Path:
    with open(output, "wb") as file:
        file.write(b">joined\n")
        for path in paths:
            for contig in read_contigs(path):
                file.write(contig.letters + b"\n")
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genomes", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["speed", "memory"])
    args = parser.parse_args()
    pa.set_cpu_count(1)
    rows = measure_speed(args.genomes, args.rounds) if args.only != "memory" else []
    rows += measure_memory(args.genomes) if args.only != "speed" else []
    columns = "measure case tool mbp rounds cpu_s mbp_per_cpu_s dnabert2_is_faster_by peak_memory_mb".split()
    for row in rows:
        print({name: value for name, value in row.items() if value != ""})
    here = {key: value for key, value in machine().items() if key in ("date", "machine")}
    append_rows("corpus", [here | {name: row.get(name, "") for name in columns} for row in rows])


if __name__ == "__main__":
    main()
