"""Pictures of a fine-tuning: the losses; confusion matrix, ROC, precision-recall and calibration of the predictions."""

from pathlib import Path

import numpy as np

from training.classification_data import REGRESSION, SINGLE_LABEL, Labels
from training.metrics import calibration, probabilities

MOST_CURVES = 10  # labels drawn in one picture
MOST_CELLS = 25  # classes up to which the confusion matrix shows numbers


def draw_predictions(logits: np.ndarray, values: np.ndarray, labels: Labels, folder: str | Path):
    """
    Write confusion_matrix.png and curves.png (classes, multi-label), or predicted_against_true.png (regression).

    Args:
        logits, values: outputs (rows, outputs) and true labels as in `compute_metrics`.
    """
    folder = Path(folder)
    if labels.problem_type == REGRESSION:
        _draw_regression(logits, values, labels, folder / "predicted_against_true.png")
        return
    scores = probabilities(logits, labels.problem_type)
    if labels.problem_type == SINGLE_LABEL:
        _draw_confusion(scores.argmax(axis=1), values, labels.names, folder / "confusion_matrix.png")
        truth = np.eye(scores.shape[1], dtype=int)[values]
        confidence, correct = scores.max(axis=1), scores.argmax(axis=1) == values
        columns = [1] if len(labels.names) == 2 else range(len(labels.names))
    else:
        truth = values.astype(int)
        confidence, correct = np.maximum(scores, 1 - scores).ravel(), ((scores >= 0.5) == truth).ravel()
        columns = range(len(labels.names))
    curves = [(labels.names[column], truth[:, column], scores[:, column]) for column in columns]
    _draw_curves(curves, confidence, correct, folder / "curves.png")


def draw_training(log_history: list[dict], baseline: float, best_step: int, folder: str | Path):
    """
    Write training_curve.png: training and validation loss by step.

    Args:
        log_history: of transformers' TrainerState.
        baseline: validation loss of a constant answer, drawn as a line.
    """
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", {"linewidth": 1}), ("eval_loss", "validation", {"marker": "o"})):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.axhline(baseline, color="grey", linestyle="--", label=f"constant answer {baseline:.3f}")
    axes.axvline(best_step, color="grey", linestyle=":", label=f"kept: step {best_step:,}")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, Path(folder) / "training_curve.png")


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # the object interface: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: Path):
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _draw_confusion(predicted: np.ndarray, truth: np.ndarray, names: tuple[str, ...], path: Path):
    matrix = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(matrix, (truth, predicted), 1)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(4 + 0.3 * len(names), 14)
    figure = _figure(size + 1, size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_CELLS:
        for row, column in np.ndindex(matrix.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, label="share of the true class")
    _save(figure, path)


def _draw_curves(curves: list[tuple[str, np.ndarray, np.ndarray]], confidence, correct, path: Path):
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = _figure(13, 4.2)
    roc, precision_recall, reliability = figure.subplots(1, 3)
    for name, truth, scores in [curve for curve in curves if 0 < curve[1].sum() < len(curve[1])][:MOST_CURVES]:
        false_positives, true_positives, _ = roc_curve(truth, scores)
        roc.plot(false_positives, true_positives, label=name)
        precision, recall, _ = precision_recall_curve(truth, scores)
        precision_recall.plot(recall, precision, label=name)
    for axes, title, x, y in (
        (roc, "ROC", "false positive rate", "true positive rate"),
        (precision_recall, "precision-recall", "recall", "precision"),
        (reliability, "calibration", "confidence", "share correct"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    mean_confidence, share_correct, _ = calibration(confidence, correct)
    reliability.plot(mean_confidence, share_correct, marker="o")
    for axes in (roc, reliability):
        axes.plot((0, 1), (0, 1), color="grey", linestyle="--", linewidth=1)
    if len(roc.get_lines()) > 1:
        roc.legend()
    _save(figure, path)


def _draw_regression(predictions: np.ndarray, truth: np.ndarray, labels: Labels, path: Path):
    shown = min(len(labels.names), MOST_CURVES)
    figure = _figure(4.2 * shown, 4.2)
    for column, axes in enumerate(np.atleast_1d(figure.subplots(1, shown))):
        axes.scatter(truth[:, column], predictions[:, column], s=6, alpha=0.5)
        both = np.concatenate([truth[:, column], predictions[:, column]])
        ends = [both.min(), both.max()]
        axes.plot(ends, ends, color="grey", linestyle="--", linewidth=1)
        axes.set(title=labels.names[column], xlabel="true", ylabel="predicted")
        axes.grid(alpha=0.3)
    _save(figure, path)
