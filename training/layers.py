"""Ways to compute the layers of a model in training: LayerNorm in low precision, compiled feed-forward blocks."""

import torch
from torch import Tensor, nn


class LowPrecisionLayerNorm(nn.LayerNorm):
    """
    LayerNorm in the precision of autocast, where torch's runs in float32 (DNABERT-2 section 3.2).

    As in Composer, which DNABERT-2 was trained with. Weights stay float32.
    """

    dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(input.device.type):  # evaluation in float32
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(self.dtype), self.bias.to(self.dtype)
            return nn.functional.layer_norm(input.to(self.dtype), self.normalized_shape, weight, bias, self.eps)


def use_low_precision_layernorm(model: nn.Module, dtype: torch.dtype):
    """Let every LayerNorm of a model follow autocast; parameters keep their names and values."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = LowPrecisionLayerNorm
            module.dtype = dtype


def compile_feed_forward(model: nn.Module):
    """
    Compile the feed-forward block of every layer with torch.compile, for any number of tokens.

    The rest stays as it is: attention has kernels of its own, and a whole compiled graph would compute padding and the
    logits of tokens that are not predicted.
    """
    for layer in model.bert.encoder.layer:
        layer.mlp.compile(dynamic=True)
