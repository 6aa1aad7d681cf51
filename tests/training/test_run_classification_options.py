"""run_classification.py: tasks, recipes and settings, and the settings it refuses."""

import json
import shutil
from pathlib import Path

import pytest

import run_classification
from tests.training.classification_runs import (
    error_of,
    run,
    write_table,
)
from tests.training.conftest import random_dna
from training.storage import alone_in

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def settings(classification_settings) -> dict:
    return classification_settings


@pytest.fixture
def seen(monkeypatch) -> dict:
    """What a run would have trained with."""
    found = {}
    monkeypatch.setattr(
        run_classification, "fine_tune", lambda model, _, args, data: found.update(model=model, args=args, data=data)
    )
    return found


@pytest.fixture
def mouse_task(settings, tmp_path, tables) -> dict:
    """Settings for a task of the benchmark that says itself how long to train."""
    folder = tmp_path / "GUE" / "mouse" / "2"
    folder.mkdir(parents=True)
    for split, name in (("train", "train_file"), ("dev", "validation_file"), ("test", "test_file")):
        shutil.copy(tables[name], folder / f"{split}.csv")
    none = dict.fromkeys(("train_file", "validation_file", "test_file", "max_steps", "learning_rate"))
    return settings | none | {"task_name": "mouse/2", "data_dir": str(tmp_path)}


def test_a_task_brings_its_files_labels_and_length_of_training(mouse_task, seen):
    run(mouse_task)
    assert seen["args"].max_steps == 1000 and len(seen["data"].labels.names) == 2
    assert seen["args"].learning_rate == 3e-5 and seen["args"].weight_decay == 0.01
    assert seen["args"].get_warmup_steps(1000) == 50 and seen["args"].metric_for_best_model == "eval_loss"


@pytest.mark.parametrize(("task", "either"), [("mouse/2", True), ("prom/prom_core_tata", False)])
def test_auto_reads_both_strands_where_the_task_has_none(mouse_task, tmp_path, seen, task, either):
    if task != "mouse/2":
        shutil.copytree(tmp_path / "GUE" / "mouse" / "2", tmp_path / "GUE" / task)
    run(mouse_task, task_name=task, augment_reverse_complement="auto", average_strands="auto")
    assert seen["args"].augment_reverse_complement is either and seen["args"].average_strands is either


def test_strands_are_chosen_as_any_switch_is(mouse_task, seen):
    run(mouse_task, augment_reverse_complement=[])  # the flag alone
    assert seen["args"].augment_reverse_complement is True and seen["args"].average_strands is False
    run(mouse_task, augment_reverse_complement="no", average_strands="yes")
    assert seen["args"].augment_reverse_complement is False and seen["args"].average_strands is True


def test_long_rows_go_through_the_model_few_at_a_time(settings, tmp_path, seen):
    table = write_table(tmp_path / "long.csv", [(random_dna(50_000, seed), seed % 2) for seed in range(4)])
    run(settings, train_file=table)
    assert seen["args"].per_device_train_batch_size == 2 and seen["args"].gradient_accumulation_steps == 4
    run(settings, train_file=table, per_device_train_batch_size=8)
    assert seen["args"].per_device_train_batch_size == 8 and seen["args"].gradient_accumulation_steps == 1


def test_a_recipe_gives_settings_that_flags_override(mouse_task, seen):
    run(mouse_task, recipe="dnagrinder", classifier_dropout=0.3)
    assert seen["args"].num_train_epochs == 10 and seen["args"].max_steps <= 0
    assert seen["model"].classifier_head == "mlp" and seen["model"].classifier_dropout == 0.3
    run(mouse_task, recipe="dnabert2", num_train_epochs=2)
    assert seen["args"].num_train_epochs == 2 and seen["model"].classifier_head == "pooler"


@pytest.mark.parametrize(("kind", "rate"), [("yaml", "5e-5"), ("json", "3e-05")])
def test_a_file_of_settings_reads_as_flags_do(settings, tmp_path, seen, kind, rate):
    content = settings | {"model": "anything", "config_name": None, "lr_scheduler_kwargs": {"num_cycles": 2}}
    del content["learning_rate"]
    lines = [f'"{name}": {json.dumps(value)}' for name, value in content.items()] + [f'"learning_rate": {rate}']
    path = tmp_path / f"settings.{kind}"
    path.write_text("\n".join(lines) if kind == "yaml" else "{" + ",\n".join(lines) + "}")
    run_classification.main([str(path)])
    assert seen["args"].learning_rate == float(rate) and seen["args"].lr_scheduler_kwargs == {"num_cycles": 2}
    assert seen["model"].model_name_or_path == "anything" and seen["model"].config_name is None


def test_lora_has_a_learning_rate_of_its_own(mouse_task, seen):
    run(mouse_task, use_lora=True, model="anything", config_name=None)
    assert seen["args"].learning_rate == 1e-4


def test_warm_up_may_be_a_share_of_the_run(mouse_task, seen):
    run(mouse_task, warmup_ratio=0.5)
    assert seen["args"].get_warmup_steps(1000) == 500


def test_only_the_default_warm_up_is_a_tenth_of_a_short_run(mouse_task, seen):
    run(mouse_task, recipe="dnabert2")
    assert seen["args"].get_warmup_steps(1000) == 50 and seen["args"].get_warmup_steps(200) == 20
    run(mouse_task, warmup_steps=50)
    assert seen["args"].get_warmup_steps(200) == 50


def test_a_task_that_has_a_dev_split_needs_its_file(mouse_task, seen):
    (Path(mouse_task["data_dir"]) / "GUE/mouse/2/dev.csv").unlink()
    assert "dev.csv of task mouse/2 is not under" in error_of(mouse_task)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_name": None}, "name a model (--model)"),
        ({"train_file": None}, "give either --task_name with --data_dir, or --train_file"),
        ({"task_name": "tf/0"}, "give either --task_name"),
        ({"task_name": "tf/0", "train_file": None}, "needs --data_dir"),
        ({"task_name": "tf/9", "train_file": None, "data_dir": "."}, "did you mean"),
        ({"task_name": "tf/0", "train_file": None, "data_dir": "docs"}, "train.csv of task tf/0 is not under"),
        ({"merge_lora": True}, "add --use_lora"),
        ({"use_lora": True}, "adapts a pre-trained model"),
        ({"learning_rate_sweep": [1e-3]}, "either --learning_rate or --learning_rate_sweep"),
        ({"validation_split_percentage": 0}, "must lie between 0 and 100"),
        ({"learning_rate": "nan"}, "a learning rate of nan trains nothing"),
        ({"train_file": "absent.csv"}, "absent.csv: no such file"),
        ({"label_column": "class"}, "no column 'class'; the columns are 'sequence', 'label'"),
        ({"model": "absent", "config_name": None}, "no model configuration at absent"),
        ({"max_train_samples": -5}, "--max_train_samples -5 leaves nothing to train on"),
        ({"model": "kmer-logistic", "use_lora": True}, "--use_lora is of no use to kmer-logistic"),
        ({"model": "kmer-logistic", "class_weights": "balanced"}, "--class_weights is of no use to kmer-logistic"),
        ({"max_seq_length": 5}, "tokens, more than the 5 that fit; add --truncate"),
        ({"eval_strategy": "no"}, "eval_strategy is 'no'"),
        ({"augment_tokens": 2}, "augment_tokens is 2"),
        ({"average_tokens": 2}, "average_tokens varies tokens by --augment_tokens"),
        ({"average_tokens": 0}, "average_tokens is 0; it must be 1 or more"),
        ({"augment_crop": -3}, "augment_crop is -3; it must be 0 or more"),
        ({"early_stopping": -1}, "early_stopping is -1; it must be 0 or more"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0.0; it must be more than 0"),
        ({"do_train": False}, "do_train is False; a saved model is evaluated by python -m inference.predict"),
        ({"max_seq_length": 0}, "max_seq_length is 0; two special tokens and one of the row are 3"),
        ({"lora_r": 0}, "lora_r is 0 and lora_alpha 16; both must be more than 0"),
        ({"lora_dropout": 2}, "lora_dropout is 2.0; it must lie from 0 to below 1"),
        ({"label_column": ["label", "label"]}, "label_column names a column twice: label label"),
        ({"class_weights": "balanced", "problem_type": "regression"}, "--class_weights balanced is for classes"),
        ({"per_device_train_batch_size": 64}, "or --global_batch_size to 64"),
        ({"metric_for_best_model": "eval_f1"}, "'eval_f1'; it must be one of eval_loss, eval_mcc"),
        ({"metric_for_best_model": "eval_mcc", "problem_type": "regression"}, "eval_mcc is for classes"),
        ({"greater_is_better": True}, "greater_is_better is True; of eval_loss it is False"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; it must lie from 0 to 1"),
        ({"average_strands": "both"}, "average_strands is 'both'; it must be true, false or auto"),
        ({"augment_reverse_complement": "auto"}, "--augment_reverse_complement auto follows the task"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor is 1.5"),
        ({"label_smoothing_factor": 0.1, "problem_type": "regression"}, "--label_smoothing_factor is for classes"),
        ({"config_name": ".", "output_dir": "."}, "is the model's own folder"),
    ],
)
def test_wrong_settings_end_in_one_line(settings, changes, message, capsys):
    found = error_of(settings, **changes) + capsys.readouterr().err
    assert message in found


@pytest.mark.parametrize("split", ["train_file", "validation_file", "test_file"])
def test_a_row_that_is_too_long_is_named_before_training(settings, tmp_path, split, monkeypatch):
    monkeypatch.delattr(run_classification, "train")
    content = Path(settings[split]).read_text()
    (tmp_path / "long.csv").write_text(f"{content}{random_dna(4000, seed=1)},0\n")
    message = error_of(settings, max_seq_length=200, **{split: str(tmp_path / "long.csv")})
    assert f"{tmp_path / 'long.csv'}, line {len(content.splitlines()) + 1}: " in message
    assert "tokens, more than the 200 that fit; add --truncate" in message


@pytest.mark.parametrize(("global_batch", "rows"), [(48, 24), (64, 32), (33, 11), (8, 8), (37, 1)])
def test_rows_of_a_pass_divide_the_global_batch(settings, seen, global_batch, rows):
    run(settings, global_batch_size=global_batch, per_device_train_batch_size=None)
    assert seen["args"].per_device_train_batch_size == rows
    assert seen["args"].gradient_accumulation_steps * rows == global_batch


def test_a_second_run_in_the_same_folder_is_refused(settings):
    with alone_in(settings["output_dir"]):
        assert "another run writes into this folder" in error_of(settings)
        assert not any(Path(settings["output_dir"]).iterdir())


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_weights_that_are_shared_out_are_refused(settings, monkeypatch, name):
    parse_settings = run_classification.parse_settings

    def parsed(*arguments):
        found = parse_settings(*arguments)
        monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # only now: transformers would look for the package
        return found

    monkeypatch.setattr(run_classification, "parse_settings", parsed)
    assert f"which {name} shares out" in error_of(settings)
