"""Exponential moving average of the weights, which is evaluated and kept in place of the weights themselves."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import TrainerCallback

from hub_configs.folder import write_safetensors

TRAINED_WEIGHTS = "trained_weights.safetensors"  # of a checkpoint whose model.safetensors holds the average


class WeightAverage(TrainerCallback):
    """
    Averages the trained weights after every step; early on over fewer steps, so that the first ones are soon forgotten.

    Args:
        decay: share of the average that a step leaves as it was, at most (1 + step) / (10 + step).

    Attributes:
        checkpoint: folder that was loaded to go on from; the model then holds its average.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self.weights: dict[str, nn.Parameter] = {}  # those of the model that are trained
        self.other: dict[str, torch.Tensor] = {}  # the average; inside `swapped` the weights that are trained
        self.checkpoint: str | None = None

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **kwargs):
        self.weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.other = {name: weight.detach().clone() for name, weight in self.weights.items()}
        if self.checkpoint is not None:
            for name, trained in safetensors.torch.load_file(Path(self.checkpoint) / TRAINED_WEIGHTS).items():
                self.weights[name].copy_(trained)

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, weight in self.weights.items():
            self.other[name].lerp_(weight, 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the model holds the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for name, weight in self.weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.other[name])
            self.other[name].copy_(kept)

    def save(self, folder: str | Path):
        """Inside `swapped`: write the weights that are trained, to go on from."""
        write_safetensors(Path(folder) / TRAINED_WEIGHTS, self.other, {"format": "pt"})
