"""Runs of run_classification.py with a minuscule model, for the tests: tables, calls, and what came out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import run_classification
from tests.training.runs import results
from training.classification_batches import ClassificationCollator, SequenceDataset
from training.classification_data import Columns, read_labelled
from training.classification_model import load_finetuned
from training.classification_trainer import ClassificationTrainer

MOTIF = "AACGTTACGAACGTTACG"


def planted(rows: int, seed: int) -> list[tuple[str, int]]:
    """Random sequences of 40 to 90 bp; those of class 1 hold the motif."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        sequence = "".join(rng.choice(list("ACGT"), rng.integers(40, 91)))
        place = rng.integers(0, len(sequence) - len(MOTIF))
        found.append((sequence[:place] + MOTIF + sequence[place + len(MOTIF) :] if row % 2 else sequence, row % 2))
    return found


def write_table(path: Path, rows, header=("sequence", "label")) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def run(settings: dict, **changes) -> Path:
    """Run the script in this process and return the output folder; a setting None is left out."""
    settings = settings | changes
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    run_classification.main(words)
    return Path(settings["output_dir"])


def error_of(settings: dict, **changes) -> str:
    with pytest.raises(SystemExit) as caught:
        run(settings, **changes)
    return str(caught.value.code)


def interrupt(settings: dict, monkeypatch, step: int = 6, **changes):
    """Begin a run and stop it at a step; the first checkpoint is that of step 4."""
    training_step = ClassificationTrainer.training_step

    def interrupted(self, *arguments):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(settings, **changes)


def numbers(folder: Path) -> dict:
    """The results that must repeat."""
    return {name: value for name, value in results(folder).items() if name.startswith(("test_", "eval_", "best_"))}


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "training_log.json").read_text()) if "loss" in entry]


def predictions(folder: Path) -> np.ndarray:
    """Probabilities, or predicted numbers, of the test rows."""
    with open(folder / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array(
        [[float(row[name]) for name in row if name.startswith(("probability_", "predicted_"))] for row in rows]
    )


def outputs(folder: Path, table: str, columns: Columns = Columns(), problem_type=None) -> np.ndarray:  # noqa: B008
    """Logits of the saved model for the rows of a table."""
    classifier = load_finetuned(folder)
    files = {"train": [table]}
    examples, labels = read_labelled(files, columns, problem_type)
    dataset = SequenceDataset(examples["train"], classifier.sequences)
    collate = ClassificationCollator(classifier.tokenizer, classifier.packed, classifier.reads_mask)
    batch = collate([dataset.sample(row) for row in range(len(dataset))])
    batch.pop("labels")
    with torch.no_grad():
        return classifier.model(**batch).logits.numpy()
