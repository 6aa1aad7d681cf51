"""Model cards say what models.toml, the configs and the measured rows say, and nothing else."""

import csv
import json

import pytest
import yaml

from gue.results import COLUMNS
from hub_configs import card as module
from hub_configs.card import CardError, card, gue_table, main, read_models, speed_table

from ..conftest import ROOT
from .test_models import MODELS


def test_the_cards_in_the_checkout_are_what_their_sources_give(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_card_that_someone_edited_is_named(tmp_path, monkeypatch, capsys):
    for name, row in MODELS.items():
        (tmp_path / "hub_configs" / name).mkdir(parents=True)
        (tmp_path / row["config"]).write_text((ROOT / row["config"]).read_text())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "gue").symlink_to(ROOT / "gue")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "read_models", lambda: MODELS)
    assert main([]) == 0 and main(["--check"]) == 0
    edited = tmp_path / "hub_configs" / "strandbert-tiny" / "README.md"
    edited.write_text(edited.read_text().replace("5,065,984", "7,000,000"))
    assert main(["--check"]) == 1
    assert "hub_configs/strandbert-tiny/README.md; run `python -m hub_configs.card`" in capsys.readouterr().err
    assert main([]) == 0 and "5,065,984" in edited.read_text()


def test_the_readme_of_a_model_elsewhere_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((ROOT / MODELS["strandbert-tiny"]["config"]).read_text())
    (tmp_path / "README.md").write_text("my notes")
    row = {**MODELS["strandbert-tiny"], "config": str(tmp_path / "config.json")}
    monkeypatch.setattr(module, "read_models", lambda: {"mine": row})
    assert main([]) == 0 and main(["--check"]) == 0
    assert (tmp_path / "README.md").read_text() == "my notes"


def test_a_config_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert main([]) == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_a_card_names_licence_task_limits_training_and_papers(name):
    text, row = card(name, MODELS[name]), MODELS[name]
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == row["licence"].lower() and front["pipeline_tag"] == "fill-mask"
    assert {"dna", "custom_code"} <= set(front["tags"])
    for heading in ("## Use", "## Intended use and limits", "## Training", "## Citation"):
        assert heading in text
    assert all(f"https://arxiv.org/abs/{paper.removeprefix('arXiv:')}" in text for paper in row["papers"])
    assert f"{row['parameters']:,}" in text


def test_a_card_never_claims_weights_that_are_not_there():
    for name, row in MODELS.items():
        shipped = (ROOT / "hub_configs" / name / "model.safetensors").is_file()
        assert (row["weights"] == "shipped") == shipped
        if row["weights"] == "none":
            assert "There are no weights" in card(name, row) and "from_pretrained" not in card(name, row)


def write_results(folder, name, rows):
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_speed_is_that_of_the_measured_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    row = {"case": "32 x 128", "dtype": "float32", "device": "cpu", "machine": "EPYC", "threads": "2"}
    ours = {**row, "model": "strandbert", "tokens_per_s": "1741.7", "strandbert_is_faster_by": "1.0"}
    rival = {**row, "model": "dnabert2_released", "tokens_per_s": "800.0", "strandbert_is_faster_by": "2.167"}
    write_results(tmp_path, "encoder.csv", [ours, rival])
    assert "| 32 x 128 | EPYC, 2 threads | float32 | 1,742 | 2.17 |" in speed_table("encoder.csv")


def test_the_last_run_of_a_case_counts_and_one_long_sequence_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    row = {"case": "32 x 128", "dtype": "float32", "device": "cpu", "machine": "EPYC", "threads": "2"}
    rows = []
    for speed, ratio in (("1741.7", "2.167"), ("1610.1", "2.007")):
        rows.append({**row, "model": "strandbert", "tokens_per_s": speed, "strandbert_is_faster_by": "1.0"})
        rows.append({**row, "model": "dnabert2_released", "tokens_per_s": "800.0", "strandbert_is_faster_by": ratio})
    long = {"case": "one sequence", "model": "strandbert", "tokens_per_s": "1426.3", "strandbert_is_faster_by": ""}
    write_results(tmp_path, "encoder.csv", [*rows, {**row, **long}])
    lines = [line for line in speed_table("encoder.csv").splitlines() if "EPYC" in line]
    assert lines == ["| 32 x 128 | EPYC, 2 threads | float32 | 1,610 | 2.01 |"]


def test_gue_rows_are_averaged_over_seeds_and_only_those_of_this_model(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    rows = [
        {**dict.fromkeys(COLUMNS, ""), "name": name, "task": "tf/0", "seed": seed, "learning_rate": "3e-05"}
        | {"test_mcc": mcc, "eval_mcc": mcc}
        for name, seed, mcc in (("tiny", 0, 0.60), ("tiny", 1, 0.62), ("other", 0, 0.10))
    ]
    write_results(tmp_path, "results.csv", rows)
    assert "| tf/0 | mcc | 61.00 ± 1.41 | 2 |" in gue_table("results.csv", "tiny")
    with pytest.raises(CardError, match="has no row of nobody"):
        gue_table("results.csv", "nobody")


def test_a_result_file_that_is_missing_is_named():
    with pytest.raises(CardError, match="nowhere.csv: No such file"):
        speed_table("nowhere.csv")


def test_a_paper_of_ones_own_is_cited_by_its_number():
    text = card("strandbert-tiny", {**MODELS["strandbert-tiny"], "papers": ["arXiv:2402.08075"]})
    assert "eprint={2402.08075}" in text and "https://arxiv.org/abs/2402.08075" in text


@pytest.mark.parametrize("line", ['parameters = "5M"', 'papers = ["my paper"]'])
def test_a_value_that_no_card_can_hold_is_named(tmp_path, line):
    key = line.split()[0]
    rows = [row for row in (ROOT / "hub_configs" / "models.toml").read_text().splitlines() if not row.startswith(key)]
    (tmp_path / "models.toml").write_text("\n".join(row for r in rows for row in ([r, line] if r[:1] == "[" else [r])))
    with pytest.raises(CardError, match=key):
        read_models(tmp_path / "models.toml")


def test_a_table_that_lacks_a_key_is_named(tmp_path):
    (tmp_path / "models.toml").write_text('[mine]\ntitle = "x"\n')
    with pytest.raises(CardError, match=r"\[mine\] lacks version, summary"):
        read_models(tmp_path / "models.toml")


def test_the_card_of_a_published_classifier_shows_a_classifier():
    config = json.loads((ROOT / MODELS["strandbert-tiny"]["config"]).read_text())
    config["architectures"] = ["StrandBertForSequenceClassification"]
    text = card("strandbert-tiny", MODELS["strandbert-tiny"], config, "genomes/promoters")
    assert 'pipeline("text-classification", "genomes/promoters", trust_remote_code=True)' in text
