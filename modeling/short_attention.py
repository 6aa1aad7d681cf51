"""
Gradients of dense attention over short sequences in bf16 on a CPU, by matrix products of a few heads at a time.

torch's fused CPU kernel is made for long sequences: forward and backward of 128 tokens take it twice as long, and that
is a quarter of the time in which a small model trains. Logits and softmax are in fp32; probabilities are rounded to
bf16 before they meet the values, as in torch's kernel; the backward pass computes them anew.
"""

import torch
from torch import Tensor

LONGEST = 256  # tokens; from about 512 on torch's kernel is as fast
CACHED_LOGITS = 2**18  # fp32 logits worked on at a time: 1 MiB


def takes_short_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> bool:
    """Whether gradients through (sequences, length, heads, head_dim) tensors are faster here than by torch's kernel."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and query.shape[1] <= LONGEST
        and dropout_p == 0
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad or value.requires_grad)
    )


def short_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """
    softmax(query key^T / sqrt(head_dim) + bias) value.

    Args:
        query, key, value: (sequences, length, heads, head_dim), bf16.
        bias: (heads, length, length), fp32, of which no gradient is taken.

    Returns:
        (sequences, length, heads, head_dim)
    """
    return _ShortAttention.apply(query, key, value, bias)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, bias):
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for part, bias_part in _parts(query, bias):
                probabilities = _probabilities(query[part], key[part], bias_part)
                output[part] = (probabilities.to(value.dtype) @ _by_head(value[part])).transpose(0, 1)
        ctx.save_for_backward(query, key, value, bias, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        query, key, value, bias, output = ctx.saved_tensors
        grads = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        grad_query, grad_key, grad_value = grads
        # Sum over keys of dP * P, which the softmax gradient subtracts, equals the sum of dO * O over head_dim.
        delta = (grad.float() * output.float()).sum(-1, keepdim=True)
        for part, bias_part in _parts(query, bias):
            probabilities = _probabilities(query[part], key[part], bias_part)
            grad_output = _by_head(grad[part])
            grad_value[part] = (probabilities.to(grad.dtype).transpose(1, 2) @ grad_output).transpose(0, 1)
            grad_logits = (grad_output @ _by_head(value[part]).transpose(1, 2)).float()
            grad_logits = grad_logits.sub_(_by_head(delta[part])).mul_(probabilities).mul_(query.shape[-1] ** -0.5)
            grad_logits = grad_logits.to(query.dtype)
            grad_query[part] = (grad_logits @ _by_head(key[part])).transpose(0, 1)
            grad_key[part] = (grad_logits.transpose(1, 2) @ _by_head(query[part])).transpose(0, 1)
        return grad_query, grad_key, grad_value, None


def _parts(query, bias):
    """Index of one sequence and some heads, with the bias of these heads."""
    sequences, length, heads, _ = query.shape
    together = max(1, CACHED_LOGITS // max(1, length * length))
    for sequence in range(sequences):
        for head in range(0, heads, together):
            some = slice(head, head + together)
            yield (sequence, slice(None), some), bias[some]


def _by_head(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)


def _probabilities(query, key, bias) -> Tensor:
    """(heads, length, length) in fp32 of one sequence."""
    query = _by_head(query).float() * query.shape[-1] ** -0.5
    return (query @ key.permute(1, 2, 0).float()).add_(bias).softmax(dim=-1)
