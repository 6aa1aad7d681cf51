"""
Metrics of classification and regression, from scikit-learn and scipy; what cannot be computed is None.

Names: mcc, f1 (macro, as the DNABERT-2 authors' script computes it), accuracy, precision and recall (macro), auroc,
auprc, brier, calibration_error, loss; for regression mse, mae, r2, pearson, spearman, and loss, the mean squared error
of labels in units of their standard deviation over the training rows, so that every column weighs the same.
"""

import math
from collections.abc import Callable

import numpy as np

from training.classification_data import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Labels

CALIBRATION_BINS = 10


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """
    Logits (rows, outputs) -> float64 (rows, outputs): softmax for classes, sigmoid for multi-label, unchanged for
    regression.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if problem_type == SINGLE_LABEL:
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
    if problem_type == MULTI_LABEL:
        return 0.5 * (1 + np.tanh(logits / 2))
    return logits


def label_scale(values: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (outputs,) of the labels of a regression; 0 and 1 for classes."""
    outputs = len(labels.names)
    if labels.problem_type != REGRESSION:
        return np.zeros(outputs, dtype=np.float32), np.ones(outputs, dtype=np.float32)
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation > 0, deviation, 1).astype(np.float32)


def compute_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    deviation: np.ndarray | float = 1.0,
    class_weights: np.ndarray | None = None,
) -> dict[str, float | None]:
    """
    All metrics of one split.

    Args:
        logits: (rows, outputs).
        labels: (rows,) class ids; (rows, outputs) of 0 and 1 for multi-label, numbers for regression.
        deviation: of the training rows' labels (outputs,), for the loss of a regression.
        class_weights: (outputs,) of the loss, as in training: of the classes, or of the ones in each label column.
    """
    if not np.isfinite(logits).all():
        raise ValueError("the model's outputs are not finite")
    scores = probabilities(logits, problem_type)
    if problem_type == SINGLE_LABEL:
        metrics = _single_label(scores, labels, class_weights)
    elif problem_type == MULTI_LABEL:
        metrics = _multi_label(scores, labels, class_weights)
    else:
        metrics = _regression(scores, labels, deviation)
    return {name: None if value is None or math.isnan(value) else float(value) for name, value in metrics.items()}


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Reliability diagram: (mean confidence, share correct, rows) of each of CALIBRATION_BINS equal bins that holds rows.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = count > 0
    sums = (np.bincount(bins, weights=values, minlength=CALIBRATION_BINS)[used] for values in (confidence, correct))
    mean_confidence, share_correct = (values / count[used] for values in sums)
    return mean_confidence, share_correct, count[used]


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): mean of |confidence - share correct|, weighted by rows."""
    mean_confidence, share_correct, count = calibration(confidence, correct)
    return float((np.abs(mean_confidence - share_correct) * count).sum() / count.sum())


def constant_loss(
    labels: np.ndarray,
    problem_type: str,
    num_labels: int,
    deviation: np.ndarray | float = 1.0,
    class_weights: np.ndarray | None = None,
) -> float:
    """
    Loss of the best prediction that does not look at the sequence: the entropy of the labels in nats, weighted by class
    as the loss is (mean over label columns for multi-label), or the variance for regression, in units of `deviation`.
    """
    if problem_type == REGRESSION:
        return float(np.var(labels / deviation, axis=0).mean())
    weights = np.ones(num_labels) if class_weights is None else class_weights
    if problem_type == MULTI_LABEL:
        weighted = np.stack([labels.mean(axis=0) * weights, 1 - labels.mean(axis=0)])
    else:
        weighted = np.bincount(labels, minlength=num_labels)[:, None] / len(labels) * weights[:, None]
    shares = weighted / weighted.sum(axis=0)
    return float(-(weighted * np.log(np.where(shares > 0, shares, 1))).sum(axis=0).mean())


def _single_label(
    scores: np.ndarray, labels: np.ndarray, class_weights: np.ndarray | None = None
) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

    predicted = scores.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    one_hot = np.eye(scores.shape[1])[labels]
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    auroc, auprc = _ranking(scores[:, columns], one_hot[:, columns])
    weights = 1 if class_weights is None else class_weights[labels]
    return {
        "loss": (weights * -np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-45))).mean(),
        "mcc": matthews_corrcoef(labels, predicted),
        "f1": f1,
        "accuracy": accuracy_score(labels, predicted),
        "precision": precision,
        "recall": recall,
        "auroc": auroc,
        "auprc": auprc,
        "brier": ((scores - one_hot) ** 2)[:, columns].sum(axis=1).mean(),  # of two classes that of the second
        "calibration_error": calibration_error(scores.max(axis=1), predicted == labels),
    }


def _multi_label(
    scores: np.ndarray, labels: np.ndarray, class_weights: np.ndarray | None = None
) -> dict[str, float | None]:
    from sklearn.metrics import f1_score, matthews_corrcoef

    predicted = (scores >= 0.5).astype(int)
    truth = labels.astype(int)
    auroc, auprc = _ranking(scores, truth)
    likelihood = np.where(truth == 1, scores, 1 - scores)
    weights = 1 if class_weights is None else np.where(truth == 1, class_weights, 1)
    return {
        "loss": (weights * -np.log(np.maximum(likelihood, 1e-45))).mean(),
        "mcc": np.mean([matthews_corrcoef(*columns) for columns in zip(truth.T, predicted.T, strict=True)]),
        "f1": f1_score(truth, predicted, average="macro", zero_division=0),
        "f1_micro": f1_score(truth, predicted, average="micro", zero_division=0),
        "accuracy": (predicted == truth).mean(),
        "exact_match": (predicted == truth).all(axis=1).mean(),
        "auroc": auroc,
        "auprc": auprc,
        "brier": ((scores - truth) ** 2).mean(),
        "calibration_error": calibration_error(np.maximum(scores, 1 - scores).ravel(), (predicted == truth).ravel()),
    }


def _regression(scores: np.ndarray, labels: np.ndarray, deviation: np.ndarray | float) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr

    difference = scores - labels
    variance = np.var(labels, axis=0)
    r2 = np.where(variance > 0, 1 - (difference**2).mean(axis=0) / np.where(variance > 0, variance, 1), np.nan)
    return {
        "loss": ((difference / deviation) ** 2).mean(),
        "mse": (difference**2).mean(),
        "mae": np.abs(difference).mean(),
        "r2": r2.mean(),
        "pearson": _correlation(pearsonr, scores, labels),
        "spearman": _correlation(spearmanr, scores, labels),
    }


def _correlation(function: Callable, scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean over the columns; None where predictions or labels are constant."""
    if len(labels) < 2 or (np.ptp(scores, axis=0) == 0).any() or (np.ptp(labels, axis=0) == 0).any():
        return None
    return float(np.mean([function(*columns).statistic for columns in zip(scores.T, labels.T, strict=True)]))


def _ranking(scores: np.ndarray, truth: np.ndarray) -> tuple[float | None, float | None]:
    """Mean area under the ROC and the precision-recall curve over the columns in which both values occur."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    columns = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]
    if not columns:
        return None, None
    both = [(truth[:, column], scores[:, column]) for column in columns]
    return (
        float(np.mean([roc_auc_score(*pair) for pair in both])),
        float(np.mean([average_precision_score(*pair) for pair in both])),
    )
