"""
Short comparable pre-training runs of as many steps each: sequence order, packing, activation, vocabulary size.

    python -m benchmarks.compare_pretraining GENOME.fa.gz ... --heldout OTHER.fa.gz --output runs/comparison

Every genome gives the same number of segments of 600 bp without ambiguous bases, evenly spaced; the held-out genomes
give 200 each. A small model (4 layers, hidden 128) sees about 4,096 tokens a step, fewer where the length schedule cuts
the sequences; the table says how many in all. Results are compared in bits per base at masked tokens of the held-out
genomes. Run the same command again to go on after an interruption. Rows go to benchmarks/results/pretraining.csv,
curves to OUTPUT/curves.png, a table is printed.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from benchmarks.harness import RESULTS, append_rows, machine
from corpus.fasta import read_fasta
from tokenization.alphabet import acgt_runs, normalize

ROOT = Path(__file__).parents[1]
SEGMENT = 600  # bp
HELDOUT_SEGMENTS = 200
MODEL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
TOKENS_PER_STEP = 4096
VOCABULARY = 4096
RUNS = {  # name: (vocabulary, changes of the model, changes of the flags)
    "baseline": (VOCABULARY, {}, {}),
    "sequence-length warm-up": (VOCABULARY, {}, {"sequence_order": "length"}),
    "length schedule 32, 64, all": (VOCABULARY, {}, {"sequence_length_schedule": "0:32 {third}:64 {two_thirds}:602"}),
    "padded": (VOCABULARY, {}, {"packing": False}),
    "swiglu": (VOCABULARY, {"glu_activation": "silu"}, {}),
    "vocabulary 256": (256, {}, {}),
    "vocabulary 32768": (32768, {}, {}),
}


def segments(path: Path, count: int) -> list[str]:
    """Evenly spaced segments without ambiguous bases."""
    found = []
    for record in read_fasta(path):
        letters = normalize(record.sequence)
        for start, end in acgt_runs(letters, SEGMENT):
            found += [letters[place : place + SEGMENT].decode() for place in range(start, end - SEGMENT + 1, SEGMENT)]
    return [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]


def write_data(genomes: list[Path], heldout: list[Path], per_genome: int, folder: Path):
    """train.parquet and heldout.parquet with the columns sequence and species."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, files, count in (("train", genomes, per_genome), ("heldout", heldout, HELDOUT_SEGMENTS)):
        rows = [(sequence, path.name.split(".")[0]) for path in files for sequence in segments(path, count)]
        table = pyarrow.table({"sequence": [row[0] for row in rows], "species": [row[1] for row in rows]})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
        text = "".join(f">{number}\n{sequence}\n" for number, (sequence, _) in enumerate(rows))
        (folder / f"{name}.fa").write_text(text)


def call(*command):
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def tokenizer(vocabulary: int, data: Path) -> Path:
    folder = data / f"tokenizer-{vocabulary}"
    if not (folder / "tokenizer.json").exists():
        call("-m", "tokenization.train", data / "train.fa", "--vocab-size", vocabulary, "--output", folder)
    return folder


def pretrain(name: str, output: Path, steps: int, segments_per_step: int, bf16: bool) -> Path:
    """One run; nothing is done when it is finished."""
    vocabulary, model, changes = RUNS[name]
    data, folder = output / "data", output / name.replace(" ", "-").replace(",", "")
    finished = folder / "all_results.json"
    if finished.exists() and json.loads(finished.read_text())["global_step"] == steps:
        return folder
    config = output / f"{folder.name}.json"
    shape = {"model_type": "strandbert", "vocab_size": vocabulary, "hidden_dropout_prob": 0.0, **MODEL, **model}
    config.write_text(json.dumps(shape))
    flags = {
        "config_name": config,
        "tokenizer_name": tokenizer(vocabulary, data),
        "train_file": data / "train.parquet",
        "validation_file": data / "heldout.parquet",
        "output_dir": folder,
        "max_seq_length": 602,
        "packing": True,
        "global_batch_tokens": TOKENS_PER_STEP,
        "per_device_train_batch_tokens": TOKENS_PER_STEP + 3 * 602,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
        "logging_steps": 5,
        "eval_steps": max(1, steps // 4),
        "save_steps": max(1, steps // 3),
        "save_total_limit": 1,
        "max_eval_samples": 200,
        "per_device_eval_batch_size": 16,
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": bf16,
    } | changes
    if not flags["packing"]:  # as many sequences a step as the baseline has on average
        del flags["global_batch_tokens"], flags["per_device_train_batch_tokens"]
        flags |= {"global_batch_size": segments_per_step, "per_device_train_batch_size": segments_per_step}
    words = []
    for flag, value in flags.items():
        text = str(value).format(third=steps // 3, two_thirds=2 * steps // 3)
        words += [f"--{flag}", *(text.split() if flag == "sequence_length_schedule" else [text])]
    call("run_mlm.py", *words)
    return folder


def new_rows(rows: list[dict], path: Path) -> list[dict]:
    """The rows that the file does not hold; a finished run that is given again has the row of its first time."""
    if not path.exists():
        return rows
    names = rows[0].keys() - machine().keys()
    with path.open(newline="") as file:
        there = {tuple(row.get(name) for name in names) for row in csv.DictReader(file)}
    return [row for row in rows if tuple(str(row[name]) for name in names) not in there]


def draw(folders: dict[str, Path], path: Path):
    """Held-out bits per base by tokens seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, folder in folders.items():
        with open(folder / "loss_curve.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["eval_bits_per_base"]]
        axes.plot([int(row["tokens"]) for row in rows], [float(row["eval_bits_per_base"]) for row in rows], label=name)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("held-out bits per base at masked tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genomes", type=Path, nargs="+")
    parser.add_argument("--heldout", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each run, about (%(default)s)")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    parser.add_argument("--bf16", action="store_true", help="faster on CPUs with avx512_bf16 or AMX")
    options = parser.parse_args()
    output, steps = options.output.resolve(), options.tokens // TOKENS_PER_STEP
    baseline = output / "baseline" / "all_results.json"
    if "padded" in options.runs and "baseline" not in options.runs and not baseline.exists():
        parser.error(f"--runs padded takes its batch size from {baseline}, which is missing; add baseline to --runs")
    if not (output / "data" / "heldout.parquet").exists():
        per_genome = -(-options.tokens * 6 // (SEGMENT * len(options.genomes)))  # a token holds 5 to 6 bp at most
        write_data(options.genomes, options.heldout, per_genome, output / "data")
    folders, rows = {}, []
    for name in sorted(options.runs, key=list(RUNS).index):  # the baseline before those that need it
        segments_per_step = 0
        if not RUNS[name][2].get("packing", True):
            splits = json.loads(baseline.read_text())["data"]["splits"]["train"]
            segments_per_step = round(TOKENS_PER_STEP * splits["windows"] / (splits["tokens"] + 2 * splits["windows"]))
        folders[name] = pretrain(name, output, steps, segments_per_step, options.bf16)
        found = json.loads((folders[name] / "all_results.json").read_text())
        split = found["data"]["splits"]["train"]
        seen = found["train_tokens_seen"]
        rows.append({
            **machine(), "run": name, "vocabulary": RUNS[name][0], "steps": found["global_step"], "tokens": seen,
            "base_pairs": round(seen * split["base_pairs"] / (split["tokens"] + 2 * split["windows"])),
            "heldout_bits_per_base": round(found["eval_bits_per_base"], 4),
            "heldout_nats_per_token": round(found["eval_loss"], 4),
            "unigram_bits_per_base": round(found["eval_unigram_bits_per_base"], 4),
            "bigram_bits_per_base": round(found["eval_bigram_bits_per_base"], 4),
            "markov_bits_per_base": round(found["eval_markov_bits_per_base"], 4),
            "accuracy": round(found["eval_accuracy"], 4), "padding_share": round(found["train_padding_share"], 4),
            "tokens_per_second": round(found["train_tokens_per_second"]),
        })  # fmt: skip
        print(rows[-1], flush=True)
    draw(folders, output / "curves.png")
    if fresh := new_rows(rows, RESULTS / "pretraining.csv"):
        append_rows("pretraining", fresh)
    print("\n| run | tokens | bp | bits per base | nats per token | bigram | Markov | padding | tokens/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['run']} | {row['tokens']:,} | {row['base_pairs']:,} | {row['heldout_bits_per_base']:.4f} | "
            f"{row['heldout_nats_per_token']:.3f} | {row['bigram_bits_per_base']:.4f} | "
            f"{row['markov_bits_per_base']:.4f} | {row['padding_share']:.1%} | {row['tokens_per_second']:,} |"
        )
    print(f"\nrows in {RESULTS / 'pretraining.csv'}, curves in {output / 'curves.png'}")


if __name__ == "__main__":
    main()
