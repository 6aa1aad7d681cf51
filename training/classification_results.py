"""What a fine-tuning leaves behind: results, predictions, pictures."""

import csv
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gue.tasks import Task
from tokenization.peak_memory import peak_memory_bytes
from tokenization.tokenizer_files import write_text_atomically
from training.checkpoints import write_json
from training.classification_data import MULTI_LABEL, SINGLE_LABEL, Examples, Labels
from training.classification_trainer import CollapseDetector
from training.metric_plots import draw_predictions
from training.metrics import probabilities

logger = logging.getLogger(__name__)

RESULTS_FILE = "all_results.json"
REPORTS = (
    RESULTS_FILE,
    "test_predictions.csv",
    "validation_predictions.csv",
    "confusion_matrix.png",
    "curves.png",
    "predicted_against_true.png",
    "training_curve.png",
    "training_log.json",
)  # what a run writes besides its model
RESULTS_SHOWN = ("loss", "mcc", "f1", "accuracy", "auroc", "auprc", "calibration_error", "mae", "r2", "spearman")


@dataclass
class Data:
    """The splits (train, validation, perhaps test), the labels, the task if it is one, and what the results report."""

    splits: dict[str, Examples]
    labels: Labels
    task: Task | None
    report: dict


def write_results(
    logits: dict[str, np.ndarray],
    data: Data,
    folder: Path,
    learning_rate: float | None,
    results: dict,
    metrics: Callable[[np.ndarray, np.ndarray], dict],
    collapse: CollapseDetector | None = None,
) -> dict:
    """
    Write all_results.json, test_predictions.csv and the pictures; returns the results.

    metrics: of the outputs and the labels of a split.
    """
    results = {"task": data.task.name if data.task else None} | results
    for split, outputs in logits.items():
        prefix = {"validation": "eval"}.get(split, split)
        found = metrics(outputs, data.splits[split].labels)
        results |= {f"{prefix}_{name}": value for name, value in found.items()}
    if collapse is not None:
        if collapse.reason is None and collapse.is_constant(results):
            collapse.reason = collapse.explain(results, learning_rate, "even at the best step")
        results["collapsed"] = collapse.reason
    memory = peak_memory_bytes()
    results["peak_memory_mb"] = memory and memory / (1 << 20)
    if torch.cuda.is_available():
        results["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / (1 << 20)
    results["data"] = data.report
    shown = "test" if "test" in logits else "validation"
    write_predictions(folder / f"{shown}_predictions.csv", logits[shown], data.splits[shown], data.labels)
    draw_predictions(logits[shown], data.splits[shown].labels, data.labels, folder)
    write_json(folder / RESULTS_FILE, results)
    return results


def write_predictions(path: Path, logits: np.ndarray, examples: Examples, labels: Labels):
    """
    Write one row per example: where it stands, the true label, and the predicted class and every probability; the
    probabilities of the columns of a multi-label; the predicted numbers of a regression.
    """
    scores = probabilities(logits, labels.problem_type)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    if labels.problem_type == SINGLE_LABEL:
        writer.writerow(["row", "label", "predicted", *(f"probability_{name}" for name in labels.names)])
    else:
        kind = "probability" if labels.problem_type == MULTI_LABEL else "predicted"
        writer.writerow(
            ["row", *(f"label_{name}" for name in labels.names), *(f"{kind}_{name}" for name in labels.names)]
        )
    for where, truth, row in zip(examples.where, examples.labels, scores, strict=True):
        numbers = [f"{value:.6g}" for value in row]
        if labels.problem_type == SINGLE_LABEL:
            writer.writerow([where, labels.names[truth], labels.names[row.argmax()], *numbers])
        else:
            writer.writerow([where, *(f"{value:g}" for value in truth), *numbers])
    write_text_atomically(path, table.getvalue())


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """All parameters, and those that are trained; without the copy of the head that peft puts aside."""
    parameters = [each for name, each in model.named_parameters() if ".original_module." not in name]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def show_results(results: dict, folder: Path):
    """Log the main numbers, and loudly a collapse."""
    for prefix in ("eval", "test"):
        for name in RESULTS_SHOWN:
            value = results.get(f"{prefix}_{name}")
            if value is not None:
                logger.info("%-24s %.4f", f"{prefix}_{name}", value)
    if results.get("collapsed"):
        logger.error("%s", results["collapsed"])
    logger.info("everything is in %s", folder)
