#!/usr/bin/env python
"""
From a genome to a model that fills masks, in a few minutes on a laptop: `make quickstart`.

  python quickstart.py                            two small synthetic genomes
  python quickstart.py --fasta genome.fa.gz       your own (plain, .gz or .bgz; several files are allowed)

It trains a tokenizer, pre-trains a tiny model with run_mlm.py, compares the held-out loss with what token frequencies
alone achieve, and loads the result the way anyone would: AutoModelForMaskedLM.from_pretrained(folder,
trust_remote_code=True). Run it again to go on after an interruption. Everything lies in quickstart/synthetic, or in
quickstart/NAME for your genome.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from corpus.fasta import FastaError, read_fasta
from corpus.synthetic import SPECIES, write_synthetic_genomes
from tokenization.tokenizer_files import write_text_atomically

ROOT = Path(__file__).resolve().parent
VOCABULARY = 128  # tokens; small, so that a few minutes are enough to learn something
SEQUENCE_LENGTH = 128  # tokens
BATCH = 16  # sequences
SMALLEST_INPUT = 10_000  # bp; less does not fill a vocabulary, training sequences and a held-out part
LARGEST_INPUT = 20_000_000  # bp; of a larger genome the first part is used
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.06,
}
SHOWN_TOKENS = 60  # length in tokens of the example whose masks are filled
SHOWN_MASKS = 3


class QuickStartError(RuntimeError):
    """A step that failed; the message says which and what to do."""


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(title: str, command: list[str]) -> None:
    """Run a command with its output and progress bars visible. Raises QuickStartError when it fails."""
    print(f"\n== {title}\n$ {shlex.join(['python', *command])}", flush=True)
    # Threads that wait actively for each other stand still when another program takes one of the cores.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(min(8, cores())), **os.environ}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    if done.returncode:
        raise QuickStartError(f"{title} failed with exit code {done.returncode}; the message above says why")


def run_folder(parent: Path, settings: dict) -> Path:
    """
    The folder of this run in `parent`, made when new: that of an earlier run with the same settings, else a fresh one.

    settings: "name" names the folder; an earlier run of that name with other settings is kept and a number appended.
    """
    for number in itertools.count(1):
        folder = parent / (settings["name"] if number == 1 else f"{settings['name']}-{number}")
        path = folder / "settings.json"
        if not folder.exists():
            folder.mkdir(parents=True)
            write_text_atomically(path, json.dumps(settings, indent=2) + "\n")
            return folder
        if path.is_file() and json.loads(path.read_text()) == settings:
            return folder


def identity(files: list[Path]) -> list:
    """What tells one set of input files from another: path, size, time of change. Raises OSError when one is absent."""
    return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def synthetic_genomes(folder: Path) -> list[Path]:
    """Those of an earlier run when all of them are there, else new ones."""
    paths = [folder / f"{name}.fa.gz" for name in SPECIES]
    return paths if all(path.is_file() for path in paths) else write_synthetic_genomes(folder)


def own_genome(files: list[Path], output: Path) -> list[Path]:
    """The files themselves, or one file with the first 20 Mbp of them. Raises FastaError when they cannot be read."""
    path = output / "first_20_Mbp.fa"
    if path.exists():  # by an earlier run on the same files; its time of change must not change
        return [path]
    kept, total = [], 0
    for file in files:
        for record in read_fasta(file):
            if total < LARGEST_INPUT:
                kept.append(b">" + record.name.encode() + b"\n" + record.sequence[: LARGEST_INPUT - total] + b"\n")
            total += len(record.sequence)
            if total > LARGEST_INPUT:
                temporary = path.with_name("." + path.name)
                temporary.write_bytes(b"".join(kept))
                temporary.replace(path)
                print(f"the input is larger than {LARGEST_INPUT:,} bp; the first {LARGEST_INPUT:,} bp are used")
                return [path]
    return files


def check_size(files: list[Path]) -> None:
    """Raise QuickStartError when files hold fewer A, C, G and T (or U) than training needs."""
    found = 0
    for file in files:
        for record in read_fasta(file):
            found += sum(map(record.sequence.upper().count, b"ACGTU"))
            if found >= SMALLEST_INPUT:
                return
    raise QuickStartError(
        f"{', '.join(map(str, files))}: too small, {found:,} bp of A, C, G and T; at least {SMALLEST_INPUT:,} bp are "
        "needed"
    )


def write_config(folder: Path) -> None:
    """config.json of a model smaller still than hub_configs/strandbert-tiny."""
    config = json.loads((ROOT / "hub_configs" / "strandbert-tiny" / "config.json").read_text())
    folder.mkdir(exist_ok=True)
    write_text_atomically(folder / "config.json", json.dumps({**config, **MODEL}, indent=2) + "\n")


def pretrain(genomes: list[Path], output: Path, steps: int) -> None:
    """Pre-train with `accelerate launch run_mlm.py`, resuming when an earlier run was interrupted."""
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision"]
    launch += ["no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(min(8, cores()))]
    settings = {
        "config_name": output / "config",
        "tokenizer_name": output / "tokenizer",
        "output_dir": output / "model",
        "max_seq_length": SEQUENCE_LENGTH,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "max_eval_samples": 400,
        "learning_rate": 2e-3,
        "warmup_ratio": 0.1,
        "logging_steps": max(1, steps // 60),
        "eval_steps": max(1, steps // 5),
        "save_steps": max(1, steps // 5),
        "save_total_limit": 1,
    }
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    run("pre-training", [*launch, "run_mlm.py", "--train_file", *map(str, genomes), *flags])


def results_table(results: dict, parameters: int, seconds: float) -> str:
    """The results as a Markdown table with one sentence that says how far training got."""
    gap = results["eval_bigram_entropy"] - results["eval_loss"]
    rows = [
        ("held-out masked-LM loss", f"{results['eval_loss']:.3f} nats per token"),
        ("the same, token frequencies alone (unigram)", f"{results['eval_unigram_entropy']:.3f}"),
        ("the same, given the token before (bigram)", f"{results['eval_bigram_entropy']:.3f}"),
        ("held-out accuracy at masked tokens", f"{results['eval_accuracy']:.1%}, one of {VOCABULARY} tokens"),
        ("parameters", f"{parameters:,}"),
        ("steps", f"{results['global_step']:,}"),
    ]
    if "train_tokens_per_second" in results:
        rows.append(("training speed", f"{results['train_tokens_per_second']:,.0f} tokens/s"))
        rows.append(("", f"{results['train_base_pairs_per_second']:,.0f} base pairs/s"))
    rows.append(("this run, from genome to results", f"{seconds:.0f} s on {cores()} cores"))
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"| {name:<{width}} | {value} |" for name, value in rows)
    verdict = (
        f"The model is {gap:.3f} nats below the bigram: it uses more of the context than the token before."
        if gap > 0
        else f"The model is still {-gap:.3f} nats above the bigram; train longer: --steps {2 * results['global_step']}"
    )
    return f"| result | value |\n|{'-' * (width + 2)}|---|\n{table}\n\n{verdict}\n"


def example_sequence(genomes: list[Path]) -> tuple[str, bytes]:
    """
    A description and at most 400 bp, from the end of the first record with a stretch of 100 bp without ambiguous bases.

    A repeat (soft-masked: lower case) is preferred, because there a model has something to know. Raises QuickStartError
    when no file has such a stretch.
    """
    for record in itertools.chain.from_iterable(map(read_fasta, genomes)):
        for kind, letters in (("repeat", rb"[acgtu]{100,}"), ("piece", rb"[acgtuACGTU]{100,}")):
            *_, match = [None, *re.finditer(letters, record.sequence)]
            if match:
                start = max(match.start(), match.end() - 400)
                return f"a {kind} of {record.name}, from base {start + 1:,}", match.group()[-400:]
    raise QuickStartError(
        f"{', '.join(map(str, genomes))}: no stretch of 100 bp without ambiguous bases; one is needed, to show "
        "filled masks in it"
    )


def fill_masks(folder: Path, sequence: bytes) -> tuple[int, str]:
    """Load the trained folder as anyone would and fill masks one at a time: (number of parameters, text to show)."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    input_ids = tokenizer(sequence.decode(), return_tensors="pt", truncation=True, max_length=SHOWN_TOKENS)["input_ids"]
    lines = []
    for number in range(1, SHOWN_MASKS + 1):
        position = number * (input_ids.shape[1] - 1) // (SHOWN_MASKS + 1)
        masked = input_ids.clone()
        masked[0, position] = tokenizer.mask_token_id
        with torch.no_grad():
            probabilities = model(masked).logits[0, position].softmax(-1)
        best = probabilities.topk(5)
        left, true, right = (
            "".join(tokenizer.convert_ids_to_tokens(input_ids[0, first:last]))
            for first, last in ((position - 5, position), (position, position + 1), (position + 1, position + 6))
        )
        guesses = zip(tokenizer.convert_ids_to_tokens(best.indices), best.values.tolist(), strict=True)
        predictions = "  ".join(f"{token} {probability:.0%}" for token, probability in guesses)
        lines.append(f"...{left}[MASK]{right}...\n    truth {true}, predicted: {predictions}")
    return model.num_parameters(), "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, nargs="+", help="your genome; default: synthetic ones are written")
    parser.add_argument(
        "--output", type=Path, default=Path("quickstart"), help="where run folders are made (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (%(default)s)")
    options = parser.parse_args()
    options.fasta = options.fasta and [path.absolute() for path in options.fasta]  # the steps run in another folder
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}; at least 1 is needed")
    return options


def main() -> None:
    options = parse_arguments()
    start = time.perf_counter()
    name = options.fasta[0].name.split(".")[0] if options.fasta else "synthetic"
    settings = {"name": name, "fasta": identity(options.fasta or []), "model": MODEL}
    output = run_folder(options.output.resolve(), settings)
    if options.fasta:
        genomes = own_genome(options.fasta, output)
        check_size(genomes)
    else:
        genomes = synthetic_genomes(output / "genomes")
    description, sequence = example_sequence(genomes)
    if not (output / "tokenizer" / "tokenizer.json").is_file():
        arguments = [*map(str, genomes), "--vocab-size", str(VOCABULARY), "--output", str(output / "tokenizer")]
        run("training a tokenizer", ["-m", "tokenization.train", *arguments])
    write_config(output / "config")
    pretrain(genomes, output, options.steps)
    model = output / "model"
    results = json.loads((model / "all_results.json").read_text())
    print(f"\n== filling masks with the trained model in {description}", flush=True)
    parameters, predictions = fill_masks(model, sequence)
    table = results_table(results, parameters, time.perf_counter() - start)
    write_text_atomically(output / "results.md", table)
    print(f"{predictions}\n\n== results\n{table}")
    print(f"loss curve  {model / 'loss_curve.png'}\nresults     {output / 'results.md'}\nmodel       {model}")
    print(f'load it     AutoModelForMaskedLM.from_pretrained("{model}", trust_remote_code=True)')


if __name__ == "__main__":
    try:
        main()
    except (QuickStartError, FastaError, OSError) as error:
        sys.exit(f"quickstart: {error}")
