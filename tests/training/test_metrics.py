"""Metrics against scikit-learn and by hand, on classes, several labels and numbers; what cannot be computed is None."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from training.classification_data import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Labels
from training.metric_plots import draw_predictions
from training.metrics import calibration_error, compute_metrics, constant_loss, probabilities

RNG = np.random.default_rng(0)


def random_case(classes: int, rows: int = 300):
    labels = RNG.integers(0, classes, rows)
    logits = RNG.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return logits, labels


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_agree_with_scikit_learn(classes):
    logits, labels = random_case(classes)
    found = compute_metrics(logits, labels, SINGLE_LABEL)
    predicted, scores = logits.argmax(1), softmax(logits, axis=1)
    assert found["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predicted))
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    assert found["accuracy"] == pytest.approx((labels == predicted).mean())
    assert found["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, scores))
    brier = sklearn.metrics.brier_score_loss(labels, scores[:, 1] if classes == 2 else scores, labels=range(classes))
    assert found["brier"] == pytest.approx(brier)
    options = {} if classes == 2 else {"multi_class": "ovr", "average": "macro"}
    assert found["auroc"] == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, **options)
    )


def test_several_labels_agree_with_scikit_learn():
    labels = RNG.integers(0, 2, (200, 3)).astype(np.float32)
    logits = RNG.normal(size=(200, 3)) + 2 * labels
    found = compute_metrics(logits, labels, MULTI_LABEL)
    scores = expit(logits)
    assert found["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores, average="macro"))
    assert found["auprc"] == pytest.approx(sklearn.metrics.average_precision_score(labels, scores, average="macro"))
    assert found["f1_micro"] == pytest.approx(sklearn.metrics.f1_score(labels, scores > 0.5, average="micro"))
    assert found["exact_match"] == pytest.approx((labels == (scores > 0.5)).all(1).mean())


def test_numbers_by_hand():
    truth = np.array([[1.0], [2.0], [3.0], [4.0]])
    found = compute_metrics(2 * truth + 1, truth, REGRESSION)
    assert found["spearman"] == pytest.approx(1) and found["pearson"] == pytest.approx(1)
    assert found["mse"] == pytest.approx((4 + 9 + 16 + 25) / 4) and found["mae"] == pytest.approx(3.5)
    assert found["r2"] == pytest.approx(1 - found["mse"] / 1.25)


def test_columns_of_numbers_weigh_the_same_in_the_loss():
    truth = RNG.normal(size=(50, 2)) * [1, 1000]
    found = compute_metrics(np.zeros((50, 2)), truth, REGRESSION, truth.std(axis=0))
    assert found["loss"] == pytest.approx(((truth / truth.std(axis=0)) ** 2).mean()) and found["mse"] > 1e5


def test_what_cannot_be_computed_is_none_and_nothing_is_nan():
    found = compute_metrics(RNG.normal(size=(10, 2)), np.zeros(10, dtype=int), SINGLE_LABEL)
    assert found["auroc"] is None and found["mcc"] == 0
    constant = compute_metrics(np.ones((10, 1)), RNG.normal(size=(10, 1)), REGRESSION)
    assert constant["pearson"] is None and constant["spearman"] is None
    assert all(value is None or math.isfinite(value) for value in (found | constant).values())


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        compute_metrics(np.array([[np.nan, 0.0]]), np.array([0]), SINGLE_LABEL)


@given(st.floats(-900, 900), st.floats(-900, 900))
def test_probabilities_of_huge_logits_stay_probabilities(first, second):
    for kind in (SINGLE_LABEL, MULTI_LABEL):
        found = probabilities(np.array([[first, second]]), kind)
        assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()


def test_calibration_error_is_0_for_honest_and_large_for_boastful_confidence():
    confidence = np.full(1000, 0.7)
    correct = np.arange(1000) < 700
    assert calibration_error(confidence, correct) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.full(1000, 0.99), correct) == pytest.approx(0.29)


def test_constant_loss_is_what_the_frequencies_alone_reach():
    labels = np.array([0] * 75 + [1] * 25)
    logits = np.log(np.tile([0.75, 0.25], (100, 1)))
    assert constant_loss(labels, SINGLE_LABEL, 2) == pytest.approx(
        compute_metrics(logits, labels, SINGLE_LABEL)["loss"]
    )
    numbers = RNG.normal(size=(50, 2))
    mean = np.tile(numbers.mean(0), (50, 1))
    assert constant_loss(numbers, REGRESSION, 2) == pytest.approx(compute_metrics(mean, numbers, REGRESSION)["loss"])


def test_weighted_losses_are_those_of_the_training_and_their_best_constant():
    labels, weights = np.array([0] * 92 + [1] * 8), np.array([0.54, 6.25], dtype=np.float32)
    logits = RNG.normal(size=(100, 2))
    expected = F.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights, dtype=torch.float64), reduction="none"
    ).mean()
    found = compute_metrics(logits, labels, SINGLE_LABEL, class_weights=weights)
    assert found["loss"] == pytest.approx(float(expected))
    constants = np.linspace(0.01, 0.99, 99)
    losses = [
        compute_metrics(np.log([[1 - p, p]] * 100), labels, SINGLE_LABEL, class_weights=weights)["loss"]
        for p in constants
    ]
    assert constant_loss(labels, SINGLE_LABEL, 2, 1.0, weights) == pytest.approx(min(losses), abs=1e-4)

    columns, weights = RNG.integers(0, 2, (50, 2)), np.array([3.0, 1.0])
    logits = RNG.normal(size=(50, 2))
    expected = F.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(columns, dtype=torch.float64), pos_weight=torch.tensor(weights)
    )
    found = compute_metrics(logits, columns, MULTI_LABEL, class_weights=weights)
    assert found["loss"] == pytest.approx(float(expected))
    shares = columns.mean(0) * weights / (columns.mean(0) * weights + 1 - columns.mean(0))
    best = compute_metrics(np.tile(np.log(shares / (1 - shares)), (50, 1)), columns, MULTI_LABEL, class_weights=weights)
    assert constant_loss(columns, MULTI_LABEL, 2, 1.0, weights) == pytest.approx(best["loss"])


@pytest.mark.parametrize(
    ("problem_type", "outputs", "files"),
    [
        (SINGLE_LABEL, 3, {"confusion_matrix.png", "curves.png"}),
        (MULTI_LABEL, 2, {"curves.png"}),
        (REGRESSION, 2, {"predicted_against_true.png"}),
    ],
)
def test_pictures_are_drawn(tmp_path, problem_type, outputs, files):
    values = RNG.integers(0, outputs, 40) if problem_type == SINGLE_LABEL else RNG.integers(0, 2, (40, outputs))
    labels = Labels(problem_type, tuple(f"class {index}" for index in range(outputs)))
    draw_predictions(RNG.normal(size=(40, outputs)), values, labels, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
