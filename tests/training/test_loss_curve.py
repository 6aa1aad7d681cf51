"""training.loss_curve: the table holds every entry of the log; the picture is a PNG."""

import csv

from training.loss_curve import write_loss_curve

LOG = [
    {"loss": 6.5, "learning_rate": 1e-4, "step": 10, "num_input_tokens_seen": 1000, "tokens_per_second": 50.0},
    {"eval_loss": 6.25, "eval_accuracy": 0.1, "step": 10, "num_input_tokens_seen": 1000},
    {"train_runtime": 3.0, "step": 10},
]


def test_table_and_picture(tmp_path):
    write_loss_curve(LOG, {"unigram_entropy": 6.0}, tmp_path)
    with open(tmp_path / "loss_curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["tokens"], row["train_loss"], row["eval_loss"]) for row in rows] == [
        ("10", "1000", "6.5", ""),
        ("10", "1000", "", "6.25"),
    ]
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "speed_curve.png").read_bytes().startswith(b"\x89PNG")
    names = ["loss_curve.csv", "loss_curve.png", "speed_curve.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_run_without_any_entry_still_writes_all(tmp_path):
    write_loss_curve([], {}, tmp_path)
    assert (tmp_path / "loss_curve.csv").read_text().startswith("step,tokens,train_loss")
    assert (tmp_path / "loss_curve.png").stat().st_size > 0
