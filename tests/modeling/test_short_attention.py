"""Gradients of short sequences in bf16: as exact as torch's own kernel, alone and batched, with NaN in nobody's way."""

import pytest
import torch

from modeling import alibi_attention as attention
from modeling import short_attention as short
from modeling.unpadding import layout_from_cu_seqlens


def gradients(lengths, dtype, heads=4, head_dim=16, seed=0, backend=attention.sdpa_attention):
    """Output and gradients of attention over packed sequences, of one random objective."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    qkv = torch.randn(total, 3, heads, head_dim, generator=generator).bfloat16()
    weights = torch.randn(total, heads, head_dim, generator=generator).bfloat16().to(dtype)
    qkv = qkv.to(dtype).requires_grad_()
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    layout = layout_from_cu_seqlens(1, total, boundaries, None, "cpu")
    slopes = torch.tensor(attention.alibi_slopes(heads))
    output = backend(*qkv.unbind(1), slopes, layout)
    (output * weights).sum().backward()
    return output.detach(), qkv.grad


def error(result, exact):
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    "lengths", [[1], [2, 63], [64, 64, 64], [100, 7, 100, 97, 110], [60, 300, 57], [200, 220, 209], [short.LONGEST]]
)
@pytest.mark.parametrize("backend", [attention.sdpa_attention, attention.banded_attention])
def test_at_most_twice_the_error_of_torchs_kernel(lengths, backend, monkeypatch):
    exact = gradients(lengths, torch.float64, backend=backend)
    ours = gradients(lengths, torch.bfloat16, backend=backend)
    monkeypatch.setattr(attention, "longest_short_sequence", lambda *_: 0)
    theirs = gradients(lengths, torch.bfloat16, backend=backend)
    for mine, other, reference in zip(ours, theirs, exact, strict=True):
        assert error(mine, reference) <= 2 * max(error(other, reference), 1e-3)


def test_a_sequence_gets_the_same_gradient_alone_and_among_others():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(5, 33, 2, 16, generator=generator).bfloat16() for _ in range(3))
    bias = torch.randn(2, 33, 33, generator=generator)

    def run(some):
        tensors = [tensor[some].clone().requires_grad_() for tensor in (query, key, value)]
        short.short_attention(*tensors, bias).square().sum().backward()
        return [tensor.grad for tensor in tensors]

    for together, alone in zip(run(slice(None)), run(slice(2, 3)), strict=True):
        assert torch.equal(together[2:3], alone)


def test_heads_in_parts_give_what_all_at_once_give(monkeypatch):
    whole = gradients([40, 40], torch.bfloat16)
    monkeypatch.setattr(short, "CACHED_LOGITS", 40 * 40)
    for part, all_at_once in zip(gradients([40, 40], torch.bfloat16), whole, strict=True):
        assert error(part, all_at_once.double()) < 1e-3


def test_sequences_of_nearly_one_length_read_nothing_of_each_other():
    """Grouped together, 49 .. 56 tokens, and one of them NaN: the others' outputs and gradients are what they were."""
    lengths = [50, 56, 49, 53]
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(sum(lengths), 3, 2, 16, generator=generator).bfloat16()
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    layout = layout_from_cu_seqlens(1, len(qkv), boundaries, None, "cpu")
    assert len(layout.by_length(short.LONGEST).shapes) == 1

    def run(tokens):
        tokens = tokens.clone().requires_grad_()
        output = attention.sdpa_attention(*tokens.unbind(1), torch.tensor(attention.alibi_slopes(2)), layout)
        output.square().sum().backward()
        return output.detach(), tokens.grad

    poisoned = qkv.clone()
    poisoned[50:106] = torch.nan
    for clean, found in zip(run(qkv), run(poisoned), strict=True):
        others = torch.cat([found[:50], found[106:]])
        assert torch.equal(others, torch.cat([clean[:50], clean[106:]]))
        assert found[50:106].isnan().all()


def test_taken_only_for_bf16_gradients_of_short_sequences_without_dropout():
    def takes(length=64, dtype=torch.bfloat16, requires_grad=True, dropout_p=0.0):
        tensors = [torch.zeros(1, length, 2, 16, dtype=dtype, requires_grad=requires_grad) for _ in range(3)]
        return length <= short.longest_short_sequence(*tensors, dropout_p)

    assert takes(length=short.LONGEST)
    assert not takes(length=short.LONGEST + 1)
    assert not takes(dtype=torch.float32)
    assert not takes(requires_grad=False)
    assert not takes(dropout_p=0.1)
    with torch.no_grad():
        assert not takes()


def test_under_autocast_logits_stay_in_fp32():
    """autocast must not turn the fp32 products into bf16 ones: results equal those without it, bit for bit."""
    plain = gradients([50], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients([50], torch.bfloat16)
    assert torch.equal(plain[0], cast[0])
