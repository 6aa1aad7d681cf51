"""Runs of run_mlm.py with a minuscule model, for the tests: settings, calls, and what came out."""

import csv
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import run_mlm

ROOT = Path(run_mlm.__file__).parent
STEPS = 12  # an epoch of 76 windows has 10 steps of 8: every run crosses its border


# Sequence-length warm-up, packing, token budgets and accumulation together; an epoch has 8 steps.
WARM_UP = {
    "sequence_order": "length",
    "packing": True,
    "global_batch_tokens": 300,
    "per_device_train_batch_tokens": 128,
    "sequence_length_schedule": "0:20 5:32",
}


def without_batch_size(settings: dict) -> dict:
    """For runs whose steps are counted in tokens."""
    return {name: value for name, value in settings.items() if name != "global_batch_size"}


def going_on_from(model: Path | str, settings: dict) -> dict:
    """Settings of a run that takes model and tokenizer from a folder."""
    return {name: value for name, value in settings.items() if name not in ("config_name", "tokenizer_name")} | {
        "model_name_or_path": str(model)
    }


def flags(settings: dict) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]


def run(settings: dict, **changes) -> Path:
    """Run the script in this process and return the output folder."""
    settings = settings | changes
    run_mlm.main(flags(settings))
    return Path(settings["output_dir"])


def error_of(settings: dict, capsys, **changes) -> str:
    with pytest.raises(SystemExit) as caught:
        run(settings, **changes)
    return str(caught.value.code) + capsys.readouterr().err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_same_weights(first: Path, second: Path):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def losses(folder: Path, column: str = "train_loss") -> list[float]:
    with open(folder / "loss_curve.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


KILLED = """
import os, signal, sys
import run_mlm, training.exact_trainer
from training.trainer import MlmTrainer

def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

moment, step = sys.argv[1], int(sys.argv[2])
if moment == "training":
    training_step = MlmTrainer.training_step
    MlmTrainer.training_step = lambda self, *rest: (
        die() if self.state.global_step == step else training_step(self, *rest)
    )
else:  # weights and optimiser are on disk, the mark of completeness is not
    mark_complete = training.exact_trainer.mark_complete
    training.exact_trainer.mark_complete = lambda folder: (
        die() if folder.name.endswith(f"-{step}") else mark_complete(folder)
    )
run_mlm.main(sys.argv[3:])
"""


def assert_same_curve(first: Path, second: Path):
    for column in ("train_loss", "eval_loss"):
        assert losses(first, column) == pytest.approx(losses(second, column), rel=1e-4)
