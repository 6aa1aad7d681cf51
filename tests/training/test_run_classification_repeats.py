"""run_classification.py: seeds, processes, interrupted runs, and what is not gone on from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import run_classification
from tests.training.classification_runs import (
    error_of,
    interrupt,
    losses,
    numbers,
    predictions,
    run,
)
from tests.training.runs import ROOT, assert_same_weights, results, weights
from training.classification_trainer import ClassificationTrainer

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def settings(classification_settings) -> dict:
    return classification_settings


@pytest.fixture
def varied(settings) -> dict:
    """With every source of random numbers."""
    return settings | {"dropout": 0.1, "augment_reverse_complement": True, "augment_tokens": 0.2, "augment_crop": 4}


def test_a_seed_gives_the_same_numbers_twice_and_another_one_other_order_and_head(varied, tmp_path):
    first = run(varied, seed=1)
    again = run(varied, seed=1, output_dir=str(tmp_path / "again"))
    other = run(varied, seed=2, output_dir=str(tmp_path / "other"))
    assert numbers(first) == numbers(again) and losses(first) == losses(again)
    assert_same_weights(again, first)
    assert losses(first)[0] != losses(other)[0]


def test_seeds_change_the_head_on_the_same_encoder(settings, tmp_path):
    base = run(settings, max_steps=1, learning_rate=1e-9)
    stripped = weights(base)
    for name in list(stripped):
        if "classifier" in name or "pooler" in name:
            del stripped[name]
    safetensors.torch.save_file(stripped, base / "model.safetensors", metadata={"format": "pt"})
    saved = []
    for seed in (1, 2):
        changes = {"config_name": None, "model": str(base), "output_dir": str(tmp_path / f"seed{seed}")}
        saved.append(weights(run(settings, max_steps=1, learning_rate=1e-9, seed=seed, **changes)))
    assert not torch.allclose(saved[0]["classifier.weight"], saved[1]["classifier.weight"], atol=1e-3)
    name = "bert.encoder.layer.0.mlp.wo.weight"
    torch.testing.assert_close(saved[0][name], saved[1][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("step", [6, 11])
def test_interrupted_and_resumed_equals_uninterrupted(varied, tmp_path, monkeypatch, step):
    whole = run(varied)
    broken = varied | {"output_dir": str(tmp_path / "broken")}
    interrupt(broken, monkeypatch, step)
    resumed = run(broken)
    assert numbers(resumed) == numbers(whole)
    assert_same_weights(resumed, whole)


def test_interrupted_after_the_last_step_only_the_end_is_repeated(settings, tmp_path, monkeypatch):
    whole = run(settings)
    with monkeypatch.context() as patch:
        patch.setattr(run_classification, "write_results", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(settings, output_dir=str(tmp_path / "broken"))
    resumed = run(settings, output_dir=str(tmp_path / "broken"))
    assert numbers(resumed) == numbers(whole) and results(resumed)["evaluations"] == 3
    assert results(resumed)["train_runtime"] > 0.1  # of the session before


def test_time_before_an_interruption_counts(settings, monkeypatch):
    interrupt(settings, monkeypatch)
    lap = ClassificationTrainer.lap
    monkeypatch.setattr(ClassificationTrainer, "lap", lambda self: lap(self) + 1000)
    log = Path(settings["output_dir"]) / "checkpoint-4/trainer_state.json"
    before = sum(entry.get("seconds", 0) for entry in json.loads(log.read_text())["log_history"])
    found = results(run(settings))["train_runtime"]  # two more evaluations and the end, 1,000 s each
    assert before > 0 and 3000 + before < found < 3000 + before + 600


def test_a_collapsed_run_that_is_interrupted_while_saving_stays_collapsed(settings, tmp_path, monkeypatch):
    options = settings | {"max_steps": 400, "eval_steps": 4, "collapse_patience": 3, "learning_rate": 3.0}
    whole = run(options)
    broken = options | {"output_dir": str(tmp_path / "broken")}
    with monkeypatch.context() as patch:
        patch.setattr(run_classification, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    resumed = run(broken)
    assert numbers(resumed) == numbers(whole)
    assert results(resumed)["collapsed"] == results(whole)["collapsed"] is not None
    assert results(resumed)["global_step"] == results(whole)["global_step"]


def test_interrupted_lora_resumes(settings, tmp_path, monkeypatch):
    base = run(settings, max_steps=4)
    adapted = settings | {"config_name": None, "tokenizer_name": None, "model": str(base), "use_lora": True}
    whole = run(adapted, output_dir=str(tmp_path / "whole"))
    broken = adapted | {"output_dir": str(tmp_path / "broken")}
    interrupt(broken, monkeypatch, step=9)
    assert numbers(run(broken)) == numbers(whole)


def test_interrupted_averages_of_weights_resume(varied, tmp_path, monkeypatch):
    varied |= {"ema_decay": 0.9}
    whole = run(varied)
    broken = varied | {"output_dir": str(tmp_path / "broken")}
    interrupt(broken, monkeypatch, step=9)
    resumed = run(broken)
    assert numbers(resumed) == numbers(whole) and losses(resumed) == losses(whole)
    assert_same_weights(resumed, whole)


def test_early_stopping_counts_on_after_an_interruption(settings, tmp_path, monkeypatch):
    options = settings | {"max_steps": 400, "eval_steps": 4, "early_stopping": 2, "learning_rate": 2e-2}
    found = results(run(options))
    broken = options | {"output_dir": str(tmp_path / "broken")}
    interrupt(broken, monkeypatch, step=found["best_step"] + 6)  # one evaluation after the best has been waited for
    resumed = results(run(broken))
    assert resumed["global_step"] == found["global_step"] == found["best_step"] + 8


def test_two_processes_take_the_same_global_batches_as_one(settings, tmp_path):
    one = run(settings, seed=3)
    changed = settings | {"seed": 3, "output_dir": str(tmp_path / "two")}
    words = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
    port = str(20000 + os.getpid() % 20000)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    completed = subprocess.run([*launcher, "run_classification.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr[-3000:]
    two = Path(changed["output_dir"])
    assert results(two)["global_batch_size"] == results(one)["global_batch_size"] == 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=1e-4, rtol=1e-3)
    assert predictions(two) == pytest.approx(predictions(one), abs=1e-4)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-3),
        ("seed", 7),
        ("max_train_samples", 40),
        ("pooling", "mean"),
        ("augment_crop", 3),
        ("metric_for_best_model", "eval_mcc"),
        ("bf16", True),
        ("max_grad_norm", 0.5),
        ("early_stopping", 3),
        ("collapse_patience", 9),
        ("optim_args", "x=1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(settings, monkeypatch, name, value):
    interrupt(settings, monkeypatch)
    found = error_of(settings, **{name: value})
    assert "checkpoint-4 was saved with --" + name in found and f"now it is {value}" in found


def test_a_checkpoint_of_other_rows_is_not_gone_on_from(settings, tmp_path, monkeypatch):
    table = shutil.copy(settings["train_file"], tmp_path / "train.csv")
    settings = settings | {"train_file": str(table)}
    interrupt(settings, monkeypatch)
    with open(table, "a") as file:
        file.write("ACGTACGT,1\r\n")
    assert "checkpoint-4 was saved with other train rows: the content of the data has changed" in error_of(settings)


def test_a_checkpoint_is_not_gone_on_from_when_the_weights_it_began_with_have_changed(settings, tmp_path, monkeypatch):
    base = run(settings, max_steps=1, output_dir=str(tmp_path / "base"))
    settings = settings | {"config_name": None, "model": str(base)}
    interrupt(settings, monkeypatch)
    changed = weights(base)
    changed["classifier.bias"] += 1
    safetensors.torch.save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    assert "checkpoint-4 was saved with other weights to start from: those of --model" in error_of(settings)


def test_a_named_checkpoint_is_not_deleted(settings, monkeypatch):
    interrupt(settings, monkeypatch)
    checkpoint = Path(settings["output_dir"]) / "checkpoint-4"
    found = error_of(settings, resume_from_checkpoint=checkpoint, overwrite_output_dir=True)
    assert "--overwrite_output_dir would delete" in found and "give one of the two" in found
    assert (checkpoint / "checkpoint_complete.json").is_file()


def test_a_finished_run_is_not_overwritten_by_going_on_from_another_folder(settings, tmp_path, monkeypatch):
    finished = run(settings, max_steps=2, output_dir=str(tmp_path / "finished"))
    before = weights(finished)
    interrupt(settings, monkeypatch)
    changes = {"resume_from_checkpoint": Path(settings["output_dir"]) / "checkpoint-4", "output_dir": str(finished)}
    assert "finished holds a finished run" in error_of(settings, **changes)
    assert all(torch.equal(value, before[name]) for name, value in weights(finished).items())


def test_a_run_without_its_best_step_is_not_gone_on_from(settings, tmp_path, monkeypatch):
    interrupt(settings, monkeypatch)
    os.rename(settings["output_dir"], tmp_path / "moved")
    data = {"output_dir": str(tmp_path / "moved")}
    assert "its best step is" in error_of(settings, **data) and not (tmp_path / "moved/all_results.json").exists()


def test_a_finished_run_is_not_overwritten(settings):
    run(settings, max_steps=2)
    assert "holds a finished run; choose another --output_dir, or start over with" in error_of(settings)
    run(settings, max_steps=2, overwrite_output_dir=True)
