"""run_classification.py end to end, with a minuscule model: what it learns, writes and saves."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, pipeline

import run_classification
from inference import predict
from tests.training.classification_runs import (
    error_of,
    losses,
    outputs,
    planted,
    predictions,
    run,
    write_table,
)
from tests.training.conftest import random_dna
from tests.training.runs import results, weights
from training.classification_batches import SequenceDataset, View
from training.classification_data import MULTI_LABEL, REGRESSION, Columns, Labels, read_labelled
from training.classification_trainer import (
    ClassificationTrainer,
    CollapseDetector,
    CollapseError,
    balanced_weights,
    distinct_predictions,
)
from training.kmer_logistic import KmerLogistic

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def settings(classification_settings) -> dict:
    return classification_settings


def test_a_run_learns_and_its_folder_classifies_in_a_pipeline(settings, monkeypatch):
    monkeypatch.undo()  # this one draws
    folder = run(settings, max_steps=60, eval_steps=20)
    found = results(folder)
    assert found["test_mcc"] > 0.6 and found["test_accuracy"] > 0.8 and found["collapsed"] is None
    assert found["best_step"] in (20, 40, 60) and found["global_step"] == 60
    assert {"test_f1", "test_auroc", "test_auprc", "test_calibration_error", "eval_loss"} <= found.keys()
    for name in ("confusion_matrix.png", "curves.png", "training_curve.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("checkpoint-*")) and not list(folder.rglob("*.bin")) and not list(folder.glob(".*"))
    classify = pipeline("text-classification", model=str(folder), trust_remote_code=True)
    with open(settings["test_file"], newline="") as file:
        rows = list(csv.DictReader(file))
    answers = classify([row["sequence"] for row in rows])
    right = sum(answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) == pytest.approx(found["test_accuracy"])


def test_the_results_are_those_of_the_step_with_the_lowest_validation_loss(settings):
    folder = run(settings, max_steps=20, eval_steps=4, learning_rate=2e-2)
    evaluations = {
        entry["step"]: entry["eval_loss"]
        for entry in json.loads((folder / "training_log.json").read_text())
        if "eval_loss" in entry
    }
    best = min(evaluations, key=evaluations.get)
    assert results(folder)["best_step"] == best
    assert results(folder)["eval_loss"] == pytest.approx(evaluations[best], abs=1e-6)


def test_the_best_step_may_be_that_of_the_highest_mcc(settings):
    folder = run(settings, max_steps=20, eval_steps=4, learning_rate=2e-2, metric_for_best_model="eval_mcc")
    log = json.loads((folder / "training_log.json").read_text())
    evaluations = {entry["step"]: entry["eval_mcc"] for entry in log if "eval_mcc" in entry}
    best = max(evaluations, key=evaluations.get)  # the first of equal ones
    assert results(folder)["best_step"] == best
    assert results(folder)["eval_mcc"] == pytest.approx(evaluations[best])


def test_without_a_validation_file_a_part_is_held_out(settings):
    found = results(run(settings, validation_file=None, validation_split_percentage=25))
    assert found["data"]["validation_held_out"]
    assert found["data"]["rows"] == {"train": 48, "validation": 16, "test": 32}


def test_label_names_are_stored(settings, tmp_path):
    rows = [(sequence, ("background", "bound")[label]) for sequence, label in planted(32, 0)]
    table = write_table(tmp_path / "named.csv", rows)
    folder = run(settings, train_file=table, validation_file=None, test_file=None)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "background", "1": "bound"}
    with open(folder / "validation_predictions.csv", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} <= {"background", "bound"}


def test_rows_shared_between_splits_are_warned_of(settings, caplog):
    folder = run(settings, test_file=settings["train_file"], max_steps=1)
    assert results(folder)["data"]["shared_rows"][0]["identical"] == 64
    assert "64 rows of test are also in train" in caplog.text


def test_rows_left_out_are_not_counted(settings):
    assert results(run(settings, max_steps=1, max_train_samples=40))["data"]["rows"]["train"] == 40


def test_predictions_of_an_earlier_run_are_deleted(settings):
    run(settings, max_steps=2)
    folder = run(settings, max_steps=2, test_file=None, overwrite_output_dir=True)
    assert (folder / "validation_predictions.csv").is_file() and not (folder / "test_predictions.csv").exists()


# -- heads and kinds of labels -------------------------------------------------------------------------------------


OVERFIT = {"max_steps": 100, "eval_steps": 100, "learning_rate": 1e-2, "test_file": None, "logging_steps": 25}


@pytest.fixture
def one_layer(tmp_path, config_file) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(Path(config_file).read_text()) | {"num_hidden_layers": 1}))
    return str(path)


def overfitted(settings, one_layer, table, **changes) -> Path:
    """Train on 16 rows in one batch and evaluate on the same."""
    changes = OVERFIT | changes | {"config_name": one_layer, "global_batch_size": 16}
    return run(settings, train_file=table, validation_file=table, **changes)


@pytest.mark.parametrize(
    ("head", "pooling"),
    [("pooler", "first"), ("pooler", "mean"), ("pooler", "max"), ("mlp", "first"), ("mlp", "mean"), ("mlp", "max")],
)
def test_every_head_overfits_16_rows(settings, one_layer, tmp_path, head, pooling):
    table = write_table(tmp_path / "few.csv", [(random_dna(30, seed), seed % 3) for seed in range(16)])
    found = results(overfitted(settings, one_layer, table, classifier_head=head, pooling=pooling))
    assert found["eval_accuracy"] == 1 and found["eval_loss"] < 0.05


def test_regression_overfits_16_rows_in_the_units_of_the_labels(settings, one_layer, tmp_path):
    rows = [(random_dna(30, seed), 5000 + 100 * random_dna(30, seed).count("G")) for seed in range(16)]
    table = write_table(tmp_path / "numbers.csv", rows)
    folder = overfitted(settings, one_layer, table, problem_type="regression", pooling="mean")
    found = results(folder)
    assert found["eval_r2"] > 0.95 and found["eval_spearman"] > 0.95
    saved = outputs(folder, table, problem_type="regression").ravel()
    assert np.abs(saved - [label for _, label in rows]).mean() == pytest.approx(found["eval_mae"], rel=1e-3)
    variance = np.var([label for _, label in rows])
    assert found["eval_loss"] == pytest.approx(found["eval_mse"] / variance, rel=1e-4)  # in the units of training
    first = next(entry for entry in json.loads((folder / "training_log.json").read_text()) if "eval_loss" in entry)
    assert first["eval_loss"] < 10


def test_a_regression_goes_on_from_one(settings, one_layer, tmp_path):
    rows = [(random_dna(30, seed), 5000 + 100 * random_dna(30, seed).count("G")) for seed in range(16)]
    table = write_table(tmp_path / "numbers.csv", rows)
    kind = {"problem_type": "regression", "pooling": "mean"}
    first = overfitted(settings, one_layer, table, **kind, output_dir=str(tmp_path / "first"))
    changes = {"train_file": table, "validation_file": table, "test_file": None, "model": str(first)}
    again = run(settings, **changes, **kind, config_name=None, max_steps=1, learning_rate=1e-9)
    assert results(again)["eval_mae"] == pytest.approx(results(first)["eval_mae"], rel=1e-3)


def test_a_model_of_other_classes_gets_a_new_head(settings, tmp_path, caplog):
    caplog.set_level("INFO", "run_classification")
    base = run(settings, max_steps=1, output_dir=str(tmp_path / "base"))
    rows = [(random_dna(30, seed), seed % 3) for seed in range(12)]
    table = write_table(tmp_path / "three.csv", rows)
    files = {"train_file": table, "validation_file": table, "test_file": None, "config_name": None}
    folder = run(settings, **files, model=str(base), max_steps=1, learning_rate=1e-9)
    assert weights(folder)["classifier.weight"].shape[0] == 3
    assert "head: new: classifier.bias, classifier.weight" in caplog.text
    name = "bert.pooler.dense.weight"
    torch.testing.assert_close(weights(folder)[name], weights(base)[name], atol=1e-6, rtol=0)
    run(settings, config_name=None, model=str(base), max_steps=1, overwrite_output_dir=True)
    assert f"head: that of {base}, trained further" in caplog.text


def test_regression_without_a_bias_in_the_head_is_refused_before_training(settings, tmp_path):
    sizes = {"vocab_size": 4096, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 3}
    GPT2Config(**sizes, architectures=["GPT2ForSequenceClassification"]).save_pretrained(tmp_path / "gpt2")
    changes = {"config_name": str(tmp_path / "gpt2"), "problem_type": "regression", "pooling": None}
    assert "no last linear layer with a bias, which regression needs" in error_of(settings, **changes)
    assert not list(Path(settings["output_dir"]).glob("checkpoint-*"))


def test_multi_label_overfits_16_rows(settings, one_layer, tmp_path):
    rows = [
        ("AACGTTACG" * (seed % 2) + random_dna(20, seed) + "CGCGCG" * (seed // 8), seed % 2, seed // 8)
        for seed in range(16)
    ]
    table = write_table(tmp_path / "several.csv", rows, ("sequence", "motif", "island"))
    folder = overfitted(settings, one_layer, table, label_column=["motif", "island"], pooling="mean")
    found = results(folder)
    assert found["eval_exact_match"] == 1 and found["eval_auroc"] == 1 and found["eval_loss"] < 0.05
    with open(folder / "validation_predictions.csv", newline="") as file:
        assert csv.DictReader(file).fieldnames[1:] == [
            "label_motif",
            "label_island",
            "probability_motif",
            "probability_island",
        ]
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_pairs_are_learnt_by_their_order(settings, one_layer, tmp_path):
    first, second = random_dna(30, 1), random_dna(30, 2)
    rows = [(first, second, 0), (second, first, 1)] * 8
    table = write_table(tmp_path / "pairs.csv", rows, ("a", "b", "label"))
    folder = overfitted(settings, one_layer, table, sequence_column="a", pair_column="b")
    assert results(folder)["eval_accuracy"] == 1
    logits = outputs(folder, table, Columns("a", "b"))
    assert logits[0].argmax() == 0 and logits[1].argmax() == 1


def test_balanced_weights_make_a_rare_class_count_as_much_as_the_other(settings, tmp_path):
    rows = [row for row in planted(200, 5) if row[1] == 0] + [row for row in planted(20, 6) if row[1] == 1]
    table = write_table(tmp_path / "rare.csv", rows)
    changes = {"train_file": table, "max_steps": 24, "eval_steps": 24, "learning_rate": 3e-3, "collapse_patience": 0}
    plain = predictions(run(settings, **changes))[:, 1].mean()
    balanced = predictions(run(settings, **changes, class_weights="balanced", overwrite_output_dir=True))[:, 1].mean()
    assert plain < 0.25 and 0.4 < balanced < 0.6


def test_balanced_weights_leave_a_column_alone_that_never_varies():
    values = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 0, 1]], dtype=np.float32)
    weights = balanced_weights(values, Labels(MULTI_LABEL, ("always", "never", "often")))
    assert weights == pytest.approx([1, 1, 1 / 3])


def test_a_rare_class_is_learnt_with_balanced_weights_and_not_taken_for_a_collapse(settings, tmp_path):
    rows = [row for row in planted(368, 5) if row[1] == 0] + [row for row in planted(32, 6) if row[1] == 1]
    table = write_table(tmp_path / "rare.csv", rows)
    changes = {"train_file": table, "validation_file": table, "test_file": None, "pooling": "mean"}
    changes |= {"learning_rate": 2e-3, "max_steps": 40, "collapse_patience": 2, "class_weights": "balanced"}
    found = results(run(settings, **changes))
    assert found["collapsed"] is None and found["global_step"] == 40
    log = json.loads((Path(settings["output_dir"]) / "training_log.json").read_text())
    assert any(entry.get("eval_distinct_predictions") == 1 for entry in log)  # all of the frequent class at first
    assert found["eval_auroc"] > 0.9


def test_scores_that_rank_rows_are_no_collapse(settings):
    metrics = {"eval_loss": 0.3, "eval_distinct_predictions": 1, "eval_auroc": 0.75}
    detector = CollapseDetector.__new__(CollapseDetector)
    detector.constant_loss = 0.29
    assert not detector.is_constant(metrics)
    assert detector.is_constant(metrics | {"eval_auroc": 0.5}) and detector.is_constant(metrics | {"eval_auroc": None})


@pytest.mark.parametrize(("offset", "deviation"), [(0, 1), (1000, 10), (100_000, 10)])
def test_answers_of_a_regression_are_counted_in_units_of_its_labels(offset, deviation):
    logits = (offset + deviation * np.random.default_rng(0).normal(size=(200, 1))).astype(np.float32)
    labels, scale = Labels(REGRESSION, ("label",)), np.array([deviation], dtype=np.float32)
    assert distinct_predictions(logits, labels, scale) > 150
    assert distinct_predictions(np.full_like(logits, offset), labels, scale) == 1


# -- LoRA ----------------------------------------------------------------------------------------------------------


def test_full_lora_and_merged_lora_predict_the_same_after_loading(settings, tmp_path):
    base = run(settings, max_steps=8, eval_steps=8)
    changes = {"config_name": None, "tokenizer_name": None, "model": str(base), "learning_rate": 1e-2}
    lora = run(settings, **changes, use_lora=True, output_dir=str(tmp_path / "lora"))
    merged = run(settings, **changes, use_lora=True, merge_lora=True, output_dir=str(tmp_path / "merged"))
    assert (lora / "adapter_model.safetensors").is_file() and not (lora / "model.safetensors").exists()
    assert not (merged / "adapter_model.safetensors").exists()
    assert results(lora)["trainable_parameters"] < results(lora)["parameters"] / 2
    assert predictions(lora) == pytest.approx(predictions(merged), abs=1e-6)
    for folder in (base, lora, merged):
        logits = outputs(folder, settings["test_file"])
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert probabilities == pytest.approx(predictions(folder), abs=1e-5)


def test_a_whole_model_replaces_an_adapter(settings, tmp_path):
    base = run(settings, max_steps=2, output_dir=str(tmp_path / "base"))
    changes = {"config_name": None, "tokenizer_name": None, "model": str(base), "max_steps": 2}
    run(settings, **changes, use_lora=True)
    folder = run(settings, **changes, overwrite_output_dir=True)
    assert not list(folder.glob("adapter_*"))
    logits = outputs(folder, settings["test_file"])
    assert np.exp(logits) / np.exp(logits).sum(1, keepdims=True) == pytest.approx(predictions(folder), abs=1e-5)


def test_an_adapter_loads_from_any_folder(settings, tmp_path, monkeypatch):
    base = run(settings, max_steps=2, output_dir=str(tmp_path / "base"))
    monkeypatch.chdir(tmp_path)
    changes = {"config_name": None, "tokenizer_name": None, "model": "base", "use_lora": True, "max_steps": 2}
    folder = run(settings, **changes)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert predicted(folder, settings["test_file"]) == pytest.approx(predictions(folder), abs=1e-5)
    saved = sum(value.numel() for value in safetensors.torch.load_file(folder / "adapter_model.safetensors").values())
    assert results(folder)["trainable_parameters"] == saved
    assert results(folder)["parameters"] == results(base)["parameters"] + saved - head_size(base)
    changed = weights(base)
    changed["bert.embeddings.word_embeddings.weight"] += 1
    safetensors.torch.save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="is an adapter of the model in .*base, whose weights have changed since"):
        predicted(folder, settings["test_file"])
    assert "is an adapter, and a training starts from a whole model" in error_of(
        settings, config_name=None, model=str(folder), output_dir=str(tmp_path / "further")
    )
    base.rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match="is an adapter of the model in .*base, which is not there; put that"):
        predicted(folder, settings["test_file"])


def head_size(folder: Path) -> int:
    return sum(value.numel() for name, value in weights(folder).items() if "pooler" in name or "classifier" in name)


# -- training options ----------------------------------------------------------------------------------------------


def test_averaging_strands_makes_both_strands_equal(settings, tmp_path):
    from inference.reading import reverse_complement

    with open(settings["test_file"], newline="") as file:
        rows = [(reverse_complement(row["sequence"].encode()).decode(), row["label"]) for row in csv.DictReader(file)]
    turned = write_table(tmp_path / "turned.csv", rows)
    changes = {"average_strands": True, "average_tokens": 1}
    one = run(settings, **changes)
    other = run(settings, **changes, test_file=turned, output_dir=str(tmp_path / "other"))
    assert predictions(one) == pytest.approx(predictions(other), abs=1e-5)


def test_views_are_averaged_at_the_end_and_not_while_training(settings, monkeypatch):
    seen, sample = [], SequenceDataset.sample

    def noted(self, row, view=None):
        seen.append(view)
        return sample(self, row, view)

    monkeypatch.setattr(SequenceDataset, "sample", noted)
    found = results(run(settings, average_strands=True, augment_tokens=0.2, average_tokens=2))
    assert found["evaluations"] == 3
    assert set(seen[: 3 * 32]) == {View(cut_probability=0.2)}  # 32 validation rows, as they are
    assert len(seen) == 3 * 32 + 4 * (32 + 32) and len(set(seen[3 * 32 :])) == 4


def predicted(folder: Path, table: str, *options: str) -> np.ndarray:
    """Probabilities of the rows of a table by `python -m inference.predict`."""
    output = folder / "again.csv"
    predict.main([table, "--model", str(folder), "--output", str(output), "--cpu", "--overwrite", *options])
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[name]) for name in row if name.startswith("probability_")] for row in rows])


def test_predictions_of_the_saved_folder_repeat_the_averages(settings):
    folder = run(settings, average_strands=True, augment_tokens=0.2, average_tokens=3)
    options = ["--reverse-complement", "average", "--average-tokens", "3", "--augment-tokens", "0.2"]
    assert predicted(folder, settings["test_file"], *options) == pytest.approx(predictions(folder), abs=1e-5)


def test_predictions_cut_rows_as_the_training_did(settings):
    folder = run(settings, max_seq_length=12, truncate=True)
    again = predicted(folder, settings["test_file"], "--truncate")
    assert again == pytest.approx(predictions(folder), abs=1e-5)
    with pytest.raises(SystemExit, match="more than the 12 that fit; add --truncate"):
        predicted(folder, settings["test_file"])


@pytest.mark.parametrize("model", ["strandbert", "kmer-logistic"])
def test_predictions_need_pairs_where_the_training_had_them(settings, tmp_path, model):
    rows = [(random_dna(30, seed), random_dna(40, seed + 99), seed % 2) for seed in range(40)]
    table = write_table(tmp_path / "pairs.csv", rows, ("a", "b", "label"))
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), table)
    if model == "kmer-logistic":
        files |= {"model": model, "config_name": None, "tokenizer_name": None}
    folder = run(settings, **files, sequence_column="a", pair_column="b", max_steps=2)
    again = predicted(folder, table, "--sequence-column", "a", "--pair-column", "b")
    assert again == pytest.approx(predictions(folder), abs=1e-5)
    with pytest.raises(SystemExit, match="pairs of sequences; name the column of the second one with --pair-column"):
        predicted(folder, table, "--sequence-column", "a")
    files = {name: value for name, value in files.items() if name not in ("train_file", "validation_file", "test_file")}
    single = run(settings, **files, max_steps=2, output_dir=str(tmp_path / "single"))
    with pytest.raises(SystemExit, match="single sequences; leave out --pair-column"):
        predicted(single, table, "--sequence-column", "a", "--pair-column", "b")


def test_layers_learn_more_slowly_the_deeper_they_lie(settings, monkeypatch):
    seen = {}

    def train(self, **_):
        self.create_optimizer_and_scheduler(10)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group in self.optimizer.param_groups:
            seen.update({names[parameter]: group["initial_lr"] for parameter in group["params"]})
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationTrainer, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run(settings, layer_decay=0.5, learning_rate=0.8)
    assert seen["classifier.weight"] == seen["bert.pooler.dense.bias"] == 0.8
    assert seen["bert.encoder.layer.1.mlp.wo.weight"] == 0.4 and seen["bert.encoder.layer.0.mlp.wo.bias"] == 0.2
    assert seen["bert.embeddings.word_embeddings.weight"] == 0.1


def test_averaged_weights_are_those_that_are_evaluated_and_kept(settings, tmp_path):
    plain = run(settings, output_dir=str(tmp_path / "plain"))
    averaged = run(settings, ema_decay=0.9)
    assert losses(averaged) == losses(plain)  # training itself is the same
    name = "bert.encoder.layer.0.mlp.wo.weight"
    assert not torch.equal(weights(averaged)[name], weights(plain)[name])
    log = json.loads((averaged / "training_log.json").read_text())
    evaluations = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    found = results(averaged)
    assert found["eval_loss"] == pytest.approx(evaluations[found["best_step"]], abs=1e-6)
    logits = outputs(averaged, settings["test_file"])
    assert np.exp(logits) / np.exp(logits).sum(1, keepdims=True) == pytest.approx(predictions(averaged), abs=1e-5)


def test_early_stopping_ends_a_run_that_no_longer_improves(settings):
    found = results(run(settings, max_steps=400, eval_steps=4, early_stopping=2, learning_rate=2e-2))
    assert found["global_step"] < 400 and found["global_step"] - found["best_step"] == 8


def test_a_collapsed_run_is_stopped_and_says_why(settings, caplog):
    found = results(run(settings, max_steps=400, eval_steps=4, collapse_patience=3, learning_rate=3.0))
    assert found["global_step"] < 400
    assert "the same answer for every sequence in 3 evaluations in a row" in found["collapsed"]
    assert "--learning_rate 3 is high: try 0.03, or 3e-5 as both papers do" in caplog.text
    assert found["test_mcc"] == 0


def test_validation_rows_of_one_class_are_warned_of_and_no_collapse(settings, tmp_path, caplog):
    table = write_table(tmp_path / "ones.csv", [row for row in planted(32, 9) if row[1] == 1])
    assert results(run(settings, validation_file=table, max_steps=2, eval_steps=2))["collapsed"] is None
    assert "no row of validation is of class 0" in caplog.text


def test_a_sweep_keeps_the_learning_rate_with_the_lowest_validation_loss(settings):
    folder = run(settings, learning_rate=None, learning_rate_sweep=[1e-6, 1e-2], max_steps=40, eval_steps=40)
    found = results(folder)
    assert found["learning_rate"] == 0.01 and set(found["sweep_eval_loss"]) == {"1e-06", "0.01"}
    assert found["eval_loss"] == min(found["sweep_eval_loss"].values())
    assert torch.equal(weights(folder)["classifier.weight"], weights(folder / "lr-0.01")["classifier.weight"])


def test_a_sweep_may_keep_the_learning_rate_with_the_highest_mcc(settings):
    changes = {"learning_rate": None, "learning_rate_sweep": [1e-6, 1e-2], "metric_for_best_model": "mcc"}
    found = results(run(settings, **changes, max_steps=40, eval_steps=40))
    assert found["eval_mcc"] == max(found["sweep_eval_mcc"].values()) and "sweep_eval_loss" not in found


def test_a_finished_part_of_a_sweep_is_taken_only_with_the_same_settings(settings, monkeypatch):
    changes = {"learning_rate": None, "learning_rate_sweep": [1e-3, 1e-2]}
    fine_tune, rates = run_classification.fine_tune, []

    def interrupted(model_args, data_args, args, data):
        rates.append(args.learning_rate)
        if len(rates) == 2:
            raise KeyboardInterrupt
        return fine_tune(model_args, data_args, args, data)

    monkeypatch.setattr(run_classification, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings, **changes)
    assert "lr-0.001 was saved with --seed 42, now it is 7" in error_of(settings, **changes, seed=7)
    run(settings, **changes)
    assert rates == [1e-3, 1e-2, 1e-2]


def test_a_learning_rate_that_diverges_does_not_end_a_sweep(settings, monkeypatch, caplog):
    fine_tune = run_classification.fine_tune

    def diverging(model_args, data_args, args, data):
        if args.learning_rate > 1:
            raise CollapseError("step 3: the loss is nan")
        return fine_tune(model_args, data_args, args, data)

    monkeypatch.setattr(run_classification, "fine_tune", diverging)
    changes = {"learning_rate": None, "learning_rate_sweep": [3.0, 1e-2]}
    found = results(run(settings, **changes))
    assert found["learning_rate"] == 0.01 and found["sweep_eval_loss"]["3"] is None
    assert "learning rate 3 is left out: step 3: the loss is nan" in caplog.text
    changes |= {"learning_rate_sweep": [3.0, 4.0], "overwrite_output_dir": True}
    assert "none of the learning rates trains to the end. The last one, 4: step 3" in error_of(settings, **changes)


# -- the baseline and the benchmark --------------------------------------------------------------------------------


def test_kmer_logistic_writes_the_same_results_and_can_be_loaded(settings):
    folder = run(settings, config_name=None, tokenizer_name=None, model="kmer-logistic", learning_rate=None)
    assert results(folder)["test_accuracy"] > 0.9
    examples, _ = read_labelled({"train": [settings["test_file"]]}, Columns())
    logits = KmerLogistic.load(folder).logits(examples["train"])
    assert (logits.argmax(1) == predictions(folder).argmax(1)).all()
    assert predicted(folder, settings["test_file"]) == pytest.approx(predictions(folder), abs=1e-5)
    assert results(folder)["parameters"] == 4**3 + 4**4 + 4**5 + 4**6 + 1  # of the second class; the first one's are 0
    (folder / "kmer_logistic.npy").unlink()
    with pytest.raises(SystemExit, match="holds no whole kmer-logistic model"):
        predicted(folder, settings["test_file"])


@pytest.mark.shared
@pytest.mark.parametrize(("task", "mcc"), [("mouse/2", 77.4), ("prom_core_tata", 51.8)])
def test_kmer_logistic_on_the_benchmark(settings, shared_data, tmp_path, task, mcc):
    data = shared_data("data/GUE")
    words = ["--model", "kmer-logistic", "--task_name", task, "--data_dir", str(data), "--output_dir", str(tmp_path)]
    run_classification.main(words)
    assert 100 * results(tmp_path)["test_mcc"] == pytest.approx(mcc, abs=0.3)
