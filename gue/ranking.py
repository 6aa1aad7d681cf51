"""Comparing models over tasks: top-2 counts, average ranks, the Nemenyi test and its critical-difference plot."""

import math
from pathlib import Path

import numpy as np


def top_two(scores: dict[str, list[float]]) -> dict[str, tuple[int, int]]:
    """
    Count how often each model is first and second, as in table 2 of both papers.

    Models of equal score share their place. `scores`: for each model one score per task, the same tasks for all.
    """
    places = {model: [0, 0] for model in scores}
    for values in zip(*scores.values(), strict=True):
        best = sorted(set(values), reverse=True)[:2]
        for model, value in zip(scores, values, strict=True):
            if value in best:
                places[model][best.index(value)] += 1
    return {model: (first, second) for model, (first, second) in places.items()}


def average_ranks(scores: dict[str, list[float]]) -> dict[str, float]:
    """Mean over tasks of each model's rank, 1 the best; equal scores get the mean of their ranks."""
    from scipy.stats import rankdata

    ranks = rankdata(-np.array(list(scores.values())), axis=0)  # (models, tasks)
    return dict(zip(scores, ranks.mean(axis=1).tolist(), strict=True))


def critical_difference(models: int, tasks: int, alpha: float = 0.05) -> float:
    """Difference of average ranks from which two models differ (Nemenyi test; Demšar 2006, section 3.2.2)."""
    from scipy.stats import studentized_range

    quantile = studentized_range.isf(alpha, models, math.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(models * (models + 1) / (6 * tasks)))


def friedman_p(scores: dict[str, list[float]]) -> float:
    """p-value of the Friedman test that all models rank alike; NaN for fewer than three models."""
    from scipy.stats import friedmanchisquare

    return float(friedmanchisquare(*scores.values()).pvalue) if len(scores) > 2 else math.nan


def alike(ranks: dict[str, float], difference: float) -> list[tuple[float, float]]:
    """Widest spans of ranks, of two models or more, whose ends are closer than the critical difference."""
    values = sorted(ranks.values())
    spans = [(low, max(high for high in values if high - low < difference)) for low in values]
    return [
        span
        for span in dict.fromkeys(spans)
        if sum(span[0] <= value <= span[1] for value in values) > 1
        and not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in spans)
    ]


def plot_critical_difference(scores: dict[str, list[float]], path: Path, highlight: set[str]):
    """Draw average ranks on one axis, best left; a bar joins models that do not differ; `highlight` in bold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranks = average_ranks(scores)
    tasks = len(next(iter(scores.values())))
    difference = critical_difference(len(scores), tasks)
    ordered = sorted(ranks, key=ranks.get)
    left = math.ceil(len(ordered) / 2)
    spans = alike(ranks, difference)
    below = 0.25 + 0.1 * len(spans)
    height = 1 + below + 0.25 * left
    figure = Figure(figsize=(9, height), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.3, 0, 0.4, 1))
    axes.set(xlim=(1, len(ordered)), ylim=(0.9 - height, 0.9))
    axes.axis("off")
    axes.plot([1, len(ordered)], [0, 0], color="black", lw=1)
    for tick in range(1, len(ordered) + 1):
        axes.plot([tick, tick], [0, 0.08], color="black", lw=1)
        axes.text(tick, 0.12, str(tick), ha="center", va="bottom", fontsize=8)
    axes.plot([1, 1 + difference], [0.55, 0.55], color="black", lw=2, clip_on=False)
    axes.text(1, 0.62, f"critical difference {difference:.2f}  ({tasks} tasks, p < 0.05)", fontsize=8)
    for number, (low, high) in enumerate(spans):
        y = -0.1 - 0.1 * number
        axes.plot([low - 0.04, high + 0.04], [y, y], color="black", lw=3, solid_capstyle="butt")
    for place, model in enumerate(ordered):
        on_left = place < left
        y = -below - 0.25 * (place if on_left else len(ordered) - 1 - place)
        end = 1 - 0.02 * len(ordered) if on_left else len(ordered) + 0.02 * len(ordered)
        axes.plot([ranks[model], ranks[model], end], [0, y, y], color="grey", lw=0.8, clip_on=False)
        label = f"{model}  {ranks[model]:.2f}" if on_left else f"{ranks[model]:.2f}  {model}"
        weight = "bold" if model in highlight else "normal"
        axes.text(end, y, label, ha="right" if on_left else "left", va="center", fontsize=8, weight=weight)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, metadata={"Software": None})
    temporary.replace(path)
