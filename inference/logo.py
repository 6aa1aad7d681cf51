"""Letters of variable height: sequence logos of motifs, and of what each base of a sequence contributes."""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

COLOURS = {"A": "#109648", "C": "#255c99", "G": "#f7b32b", "T": "#d62839"}  # the usual ones of sequence logos
_FONT = FontProperties(family="DejaVu Sans", weight="bold")  # comes with matplotlib


def draw_logo(axes, heights: np.ndarray, first: int = 0):
    """
    Stack letters at each position, the largest farthest from the axis; negative heights hang below it.

    heights: (positions, 4) in the order A, C, G, T; 0 and NaN draw nothing. first: the number of the first position.
    """
    for position, column in enumerate(np.nan_to_num(heights)):
        for sign in (1, -1):
            bottom = 0.0
            for base in sorted(range(4), key=lambda base, column=column: abs(column[base])):
                height = column[base]
                if height * sign > 0:
                    axes.add_patch(_letter("ACGT"[base], first + position, bottom, height))
                    bottom += height
    total = np.nan_to_num(heights)
    low, high = total.clip(max=0).sum(1).min(initial=0), total.clip(min=0).sum(1).max(initial=0)
    space = 0.05 * (high - low) or 1
    axes.set_xlim(first - 0.5, first + len(heights) - 0.5)
    axes.set_ylim(low - space * (low < 0), high + space)
    axes.axhline(0, color="black", linewidth=0.5)


def _letter(letter: str, position: float, bottom: float, height: float) -> PathPatch:
    path = TextPath((0, 0), letter, size=1, prop=_FONT)
    box = path.get_extents()
    transform = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, height / box.height)
    path = transform.translate(position - 0.45, bottom).transform_path(path)
    return PathPatch(path, facecolor=COLOURS[letter], edgecolor="none")


def of_sequence(sequence: bytes, values: np.ndarray) -> np.ndarray:
    """Heights (bp, 4) with each base's value (bp,) at its own letter; nothing at N."""
    letters = np.frombuffer(sequence, np.uint8)
    return np.stack([np.where(letters == ord(base), values, 0.0) for base in "ACGT"], axis=1)


def information(probabilities: np.ndarray) -> np.ndarray:
    """Heights (positions, 4) in bits of a motif: probability times 2 bits minus the entropy (Schneider 1990)."""
    entropy = -(probabilities * np.log2(probabilities.clip(min=1e-12))).sum(1, keepdims=True)
    return probabilities * (2 - entropy)


def save(figure: Figure, path: str | Path):
    """Write a PNG; it appears when it is complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
