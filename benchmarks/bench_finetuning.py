"""
Fine-tuning on long rows, those of the species task for example: seconds and peak memory.

    python -m benchmarks.bench_finetuning genome.fa.gz
    python -m benchmarks.bench_finetuning genome.fa.gz --lengths 12000 120000 --model hub_configs/strandbert-tiny

For each length four training and four validation rows are cut from the genome, always at the same places, and
run_classification.py takes one step of the four rows in a process of its own, then reads the validation rows. The
labels are made up; they change neither time nor memory. Rows go to benchmarks/results/finetuning.csv.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import append_rows, machine
from corpus.fasta import FastaError
from inference.reading import SequenceInputError, read_records

SCRIPT = Path(__file__).parents[1] / "run_classification.py"
ROWS = 4  # of training, as many of validation


def write_rows(path: Path, contigs: list[bytes], length: int, source: random.Random):
    """A table of `ROWS` pieces of the contigs, labelled 0 and 1 in turn."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sequence", "label"))
        for number in range(ROWS):
            (contig,) = source.choices(contigs, [len(contig) for contig in contigs])
            start = source.randrange(len(contig) - length + 1)
            writer.writerow((contig[start : start + length].decode(), number % 2))


def measure(contigs: list[bytes], length: int, options: argparse.Namespace) -> dict:
    """One row of the results."""
    source = random.Random(length)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "validation"):
            write_rows(folder / f"{split}.csv", contigs, length, source)
        command = [sys.executable, SCRIPT, "--model", options.model, "--output_dir", folder / "model",
                   "--train_file", folder / "train.csv", "--validation_file", folder / "validation.csv",
                   "--max_steps", 1, "--global_batch_size", ROWS, "--use_cpu"]  # fmt: skip
        output = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if output.returncode:
            raise SystemExit(output.stderr)
        results = json.loads((folder / "model" / "all_results.json").read_text())
    return {
        **machine(), "case": "one step, evaluations during and after it", "model": options.model, "bp": length,
        "training_rows": ROWS, "validation_rows": ROWS, "step_s": round(results["train_runtime"], 1),
        "peak_memory_gb": round(results["peak_memory_mb"] * (1 << 20) / 1e9, 2),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genome", help="FASTA, plain or compressed")
    parser.add_argument("--model", default="hub_configs/strandbert-tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[120_000], help="bp of a row")
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    options = parser.parse_args()
    try:
        sequences = [record.sequence for record in read_records(options.genome)]
    except (FastaError, SequenceInputError) as error:
        raise SystemExit(error) from None
    for length in options.lengths:
        contigs = [sequence for sequence in sequences if len(sequence) >= length]
        if not contigs:
            raise SystemExit(f"{options.genome}: no sequence of {length:,} bp or more")
        row = measure(contigs, length, options)
        print(f"{length:>9,} bp {row['step_s']:8.1f} s {row['peak_memory_gb']:6.2f} GB")
        if not options.dry_run:
            append_rows("finetuning", [row])


if __name__ == "__main__":
    main()
