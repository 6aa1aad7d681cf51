"""What a pre-training run leaves behind for people: result files, curves, report.md."""

import json
import logging
import shlex
import sys
from pathlib import Path

import torch
import transformers
import yaml

from tokenization.tokenizer_files import write_text_atomically
from training.checkpoints import write_json
from training.loss_curve import write_loss_curve

logger = logging.getLogger("run_mlm")

TRAIN_RESULTS = "train_results.json"
EVAL_RESULTS = "eval_results.json"
BASELINES = ("unigram_entropy", "bigram_entropy")
RESULTS_SHOWN = (
    "train_loss",
    "train_tokens_per_second",
    "train_base_pairs_per_second",
    "train_mfu",
    "train_padding_share",
    "eval_loss",
    "eval_unigram_entropy",
    "eval_bigram_entropy",
    "eval_accuracy",
    "eval_unigram_accuracy",
    "eval_bigram_accuracy",
    "eval_perplexity",
    "eval_bits_per_base",
    "eval_unigram_bits_per_base",
    "eval_bigram_bits_per_base",
    "eval_markov_bits_per_base",
)


def write_results(trainer, train_metrics: dict, eval_metrics: dict, data_report: dict):
    """
    Write train_results.json, eval_results.json, all_results.json, the curves and report.md; log the main numbers.

    Args:
        train_metrics: empty when nothing was left to train: those of the earlier session then stay.
        eval_metrics: empty without evaluation: earlier ones are deleted.
    """
    folder = Path(trainer.args.output_dir)
    if train_metrics:
        write_json(folder / TRAIN_RESULTS, train_metrics)
    elif (folder / TRAIN_RESULTS).is_file():
        train_metrics = json.loads((folder / TRAIN_RESULTS).read_text())
    if eval_metrics:
        write_json(folder / EVAL_RESULTS, eval_metrics)
    else:
        (folder / EVAL_RESULTS).unlink(missing_ok=True)
    results = train_metrics | eval_metrics
    results["global_step"] = trainer.state.global_step
    write_json(folder / "all_results.json", results | {"data": data_report})
    baselines = {name: eval_metrics[f"eval_{name}"] for name in BASELINES if f"eval_{name}" in eval_metrics}
    write_loss_curve(trainer.state.log_history, baselines, folder)
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    text = report_text(results, data_report, trainer.settings, parameters)
    write_text_atomically(folder / "report.md", text)
    for name in RESULTS_SHOWN:
        if name in results:
            logger.info("%-32s %s", name, f"{results[name]:,.4f}")
    logger.info("model, results, curves and report.md are in %s", folder)


def report_text(results: dict, data_report: dict, settings: dict, parameters: int) -> str:
    """report.md: held-out results beside baselines, curves, speed, data, settings."""
    command = shlex.join(["python", *sys.argv])
    parts = ["# Pre-training report", f"{parameters:,} parameters, {results['global_step']:,} optimiser steps."]
    if "eval_loss" in results:
        parts.append(_heldout_table(results))
    parts.append("![loss](loss_curve.png)\n\n![speed](speed_curve.png)")
    if "train_tokens_per_second" in results:
        parts.append(_speed_table(results))
    parts += ["## Data", _data_table(data_report)]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    parts += ["## How", f"`{command}`", versions, f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"]
    return "\n\n".join(parts) + "\n"


def _heldout_table(results: dict) -> str:
    rows = [("this model", results["eval_loss"], results["eval_bits_per_base"], f"{results['eval_accuracy']:.2%}")]
    for name, title in (("bigram", "token before (bigram)"), ("unigram", "token frequencies (unigram)")):
        if f"eval_{name}_entropy" in results:
            accuracy = results.get(f"eval_{name}_accuracy")
            shown = "" if accuracy is None else f"{accuracy:.2%}"
            rows.append((title, results[f"eval_{name}_entropy"], results[f"eval_{name}_bits_per_base"], shown))
    lines = ["| held-out masked tokens | nats per token | bits per base | accuracy |", "|---|---|---|---|"]
    lines += [f"| {name} | {nats:.4f} | {bits:.4f} | {accuracy} |" for name, nats, bits, accuracy in rows]
    if "eval_markov_bits_per_base" in results:
        lines.append(f"| 8 bases before (Markov) | | {results['eval_markov_bits_per_base']:.4f} | |")
    count = f"{results['eval_masked_tokens']:,} masked tokens, {results['eval_masked_base_pairs']:,} bp."
    return "\n".join(lines) + f"\n\n{count} Bits per base compare across tokenizers; `training/markov.py` says how."


def _speed_table(results: dict) -> str:
    rows = [
        ("tokens seen, whole run", f"{results['train_tokens_seen']:,}"),
        ("tokens/s", f"{results['train_tokens_per_second']:,.0f}"),
        ("base pairs/s", f"{results['train_base_pairs_per_second']:,.0f}"),
        ("MFU, of the matrix products measured on this machine", f"{results['train_mfu']:.1%}"),
        ("padding", f"{results['train_padding_share']:.1%}"),
    ]
    return "| training, speeds of the last session | |\n|---|---|\n" + "\n".join(
        f"| {name} | {value} |" for name, value in rows
    )


def _data_table(data_report: dict) -> str:
    lines = ["| file | sequences | bp read | held out |", "|---|---|---|---|"]
    for entry in data_report["files"]:
        held_out = "all" if entry["validation_file"] else entry["held_out"]
        lines.append(f"| {entry['file']} | {entry['sequences']:,} | {entry['base_pairs_read']:,} | {held_out} |")
    if "held_out_sequences" in data_report:
        shared = data_report["held_out_sequences"]
        lines.append(
            f"\nsequences held out whole: {shared['total']:,}, of which {shared['also_in_training']:,} also stand in "
            "the training part, as they are or as reverse complements"
        )
    for split, entry in data_report["splits"].items():
        counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in entry.items())
        lines.append(f"\n{split}: {counts}")
    return "\n".join(lines)
