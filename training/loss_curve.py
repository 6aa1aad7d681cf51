"""The curves of a run, loss and speed, as a table and as pictures."""

import csv
import io
from pathlib import Path

from tokenization.tokenizer_files import write_text_atomically

COLUMNS = {  # in the file: in the log
    "step": "step",
    "tokens": "num_input_tokens_seen",
    "train_loss": "loss",
    "eval_loss": "eval_loss",
    "eval_accuracy": "eval_accuracy",
    "learning_rate": "learning_rate",
    "eval_bits_per_base": "eval_bits_per_base",
    "tokens_per_second": "tokens_per_second",
    "base_pairs_per_second": "base_pairs_per_second",
    "mfu": "mfu",
    "padding_share": "padding_share",
    "grad_norm": "grad_norm",
}


def write_loss_curve(log_history: list[dict], baselines: dict[str, float], folder: str | Path):
    """
    Write loss_curve.csv (one row per log entry: step, tokens, losses, speed), loss_curve.png and speed_curve.png.

    Args:
        log_history: of transformers' TrainerState.
        baselines: name to nats per token, drawn as horizontal lines; e.g. of `training.entropy`.
    """
    entries = [entry for entry in log_history if "loss" in entry or "eval_loss" in entry]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([entry.get(key, "") for key in COLUMNS.values()] for entry in entries)
    write_text_atomically(Path(folder) / "loss_curve.csv", table.getvalue())
    _draw(entries, baselines, Path(folder) / "loss_curve.png")
    _draw_speed(entries, Path(folder) / "speed_curve.png")


def _draw(entries: list[dict], baselines: dict[str, float], path: Path):
    from matplotlib.figure import Figure  # the object interface: no window, no global state

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", {"linewidth": 1}), ("eval_loss", "held out", {"marker": "o"})):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    for (name, value), style in zip(baselines.items(), ("--", ":", "-."), strict=False):
        axes.axhline(value, color="grey", linestyle=style, label=f"{name.replace('_', ' ')} {value:.3f}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per masked token)")
    steps = [entry["step"] for entry in entries if entry.get("num_input_tokens_seen")]
    if steps:
        tokens_per_step = max(entry["num_input_tokens_seen"] for entry in entries) / max(steps)
        tokens = axes.secondary_xaxis("top", functions=(lambda x: x * tokens_per_step, lambda x: x / tokens_per_step))
        tokens.set_xlabel("tokens")
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    _save(figure, path)


def _draw_speed(entries: list[dict], path: Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, keys, label in (
        (upper, ("tokens_per_second",), "tokens/s"),
        (lower, ("mfu", "padding_share"), "share"),
    ):
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in entries if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), linewidth=1, label=key.replace("_", " "))
                axes.legend()
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    lower.set_xlabel("step")
    _save(figure, path)


def _save(figure, path: Path):
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
