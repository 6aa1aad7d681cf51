"""
Gradients of dense attention over short sequences in bf16 on a CPU, by matrix products of heads or sequences together.

torch's fused CPU kernel is made for long sequences: forward and backward of 128 tokens take it twice as long, and that
is a quarter of the time in which a small model trains. Logits and softmax are in fp32; probabilities are rounded to
bf16 before they meet the values, as in torch's kernel; the backward pass computes them anew.
"""

import torch
from torch import Tensor

LONGEST = 256  # tokens; from about 512 on torch's kernel is as fast
CACHED_LOGITS = 2**18  # fp32 logits worked on at a time: 1 MiB


def longest_short_sequence(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> int:
    """Tokens up to which gradients through (..., heads, head_dim) tensors are faster here than by torch's kernel."""
    faster = (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and dropout_p == 0
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad or value.requires_grad)
    )
    return LONGEST if faster else 0


def short_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, lengths: Tensor | None = None) -> Tensor:
    """
    softmax(query key^T / sqrt(head_dim) + bias) value.

    Args:
        query, key, value: (sequences, length, heads, head_dim), bf16, finite also beyond `lengths`.
        bias: (heads, length, length), fp32, of which no gradient is taken.
        lengths: (sequences,), keys that count in each sequence; None for all.

    Returns:
        (sequences, length, heads, head_dim)
    """
    if lengths is not None:
        is_padding = torch.arange(query.shape[1]) >= lengths[:, None]
        padding = torch.zeros(is_padding.shape).masked_fill(is_padding, -torch.inf)[:, None, None]
        return _ShortAttention.apply(query, key, value, bias, padding)
    return _ShortAttention.apply(query, key, value, bias, None)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, bias, padding):
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for part in _parts(query):
                probabilities = _probabilities(query, key, bias, padding, part)
                output[part] = (probabilities.to(value.dtype) @ _by_head(value[part])).transpose(1, 2)
        ctx.save_for_backward(query, key, value, bias, padding, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        query, key, value, bias, padding, output = ctx.saved_tensors
        grads = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        grad_query, grad_key, grad_value = grads
        # Sum over keys of dP * P, which the softmax gradient subtracts, equals the sum of dO * O over head_dim.
        delta = (grad.float() * output.float()).sum(-1, keepdim=True)
        for part in _parts(query):
            probabilities = _probabilities(query, key, bias, padding, part)
            grad_output = _by_head(grad[part])
            grad_value[part] = (probabilities.to(grad.dtype).transpose(2, 3) @ grad_output).transpose(1, 2)
            grad_logits = (grad_output @ _by_head(value[part]).transpose(2, 3)).float()
            grad_logits = grad_logits.sub_(_by_head(delta[part])).mul_(probabilities).mul_(query.shape[-1] ** -0.5)
            grad_logits = grad_logits.to(query.dtype)
            grad_query[part] = (grad_logits @ _by_head(key[part])).transpose(1, 2)
            grad_key[part] = (grad_logits.transpose(2, 3) @ _by_head(query[part])).transpose(1, 2)
        return grad_query, grad_key, grad_value, None, None


def _parts(query):
    """Index of some heads of one sequence, or of all heads of some sequences: about CACHED_LOGITS logits."""
    sequences, length, heads, _ = query.shape
    together = max(1, CACHED_LOGITS // max(1, length * length))
    for sequence in range(0, sequences, max(1, together // heads)):
        for head in range(0, heads, together):
            yield slice(sequence, sequence + max(1, together // heads)), slice(None), slice(head, head + together)


def _by_head(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2)


def _probabilities(query, key, bias, padding, part) -> Tensor:
    """(sequences, heads, length, length) in fp32."""
    scaled = _by_head(query[part]).float() * query.shape[-1] ** -0.5
    logits = (scaled @ key[part].permute(0, 2, 3, 1).float()).add_(bias[part[2]])
    if padding is not None:
        logits.add_(padding[part[0]])
    return logits.softmax(dim=-1)
