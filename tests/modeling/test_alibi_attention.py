"""Slopes, the backends against an fp64 reference, what band widths promise, and which backend runs when."""

import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling import alibi_attention as attention
from modeling.key_ranges import band_widths
from modeling.unpadding import SequenceLayout, layout_from_cu_seqlens

FAST_BACKENDS = {"sdpa": attention.sdpa_attention, "alibi_banded": attention.banded_attention}


def packed(lengths):
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return layout_from_cu_seqlens(1, int(boundaries[-1]), boundaries, None, "cpu")


def random_qkv(total, heads, head_dim, seed=0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(total, heads, head_dim, generator=generator) for _ in range(3))
    return [tensor.to(dtype) for tensor in (query * scale, key * scale, value)]


def slopes_of(heads):
    return torch.tensor(attention.alibi_slopes(heads))


def exact(query, key, value, layout):
    """fp64 attention, one sequence and one head at a time, straight from the formula."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    output = torch.zeros_like(query)
    for start, end in layout.boundaries():
        for head, slope in enumerate(attention.alibi_slopes(query.shape[1])):
            logits = query[start:end, head] @ key[start:end, head].T / math.sqrt(query.shape[2])
            positions = torch.arange(end - start).double()
            logits -= slope * (positions[:, None] - positions).abs()
            output[start:end, head] = logits.softmax(dim=1) @ value[start:end, head]
    return output


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
        (20, [2 ** (-i / 2) for i in range(1, 17)] + [2**-0.25, 2**-0.75, 2**-1.25, 2**-1.75]),
    ],
)
def test_slopes(heads, expected):
    assert attention.alibi_slopes(heads) == pytest.approx(expected, rel=1e-12)


def test_bias_falls_with_distance_in_both_directions():
    bias = attention.alibi_bias(torch.tensor([0.5]), 3)
    assert bias[0].tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]


@pytest.mark.parametrize("name", ["eager", *FAST_BACKENDS])
@pytest.mark.parametrize("lengths", [[1], [63], [100], [333], [2, 1, 77, 0, 130], [64, 64], [1500, 3]])
def test_output_equals_fp64(name, lengths):
    layout = packed(lengths)
    query, key, value = random_qkv(sum(lengths), heads=6, head_dim=16)
    output = attention.alibi_attention(query, key, value, slopes_of(6), layout, backend=name)
    assert (output - exact(query, key, value, layout)).abs().max() < 5e-6


@pytest.mark.parametrize("name", FAST_BACKENDS)
def test_fp64_input_is_computed_in_fp64_throughout(name):
    layout = packed([1500, 3, 100])
    inputs = random_qkv(1603, heads=12, head_dim=8, dtype=torch.float64)  # slopes that are no powers of 2
    output = attention.alibi_attention(*inputs, slopes_of(12), layout, backend=name)
    expected = attention.alibi_attention(*inputs, slopes_of(12), layout, backend="eager")
    assert (output - expected).abs().max() < 1e-12


@pytest.mark.parametrize("mask", [None, torch.ones(1, 300, dtype=torch.bool)])
def test_traced_fp64_input_is_computed_in_fp64_throughout(mask):
    inputs = random_qkv(300, heads=12, head_dim=8, dtype=torch.float64)
    grid = SequenceLayout(1, 300, torch.tensor([0, 300], dtype=torch.int32), 300, grid_mask=mask)
    output = attention._traced_attention(*inputs, slopes_of(12), grid, 0.0)
    expected = attention.eager_attention(*inputs, slopes_of(12), packed([300]))[0]
    assert (output - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["eager", *FAST_BACKENDS])
def test_gradients_equal_fp64(name):
    layout = packed([300, 1, 210])
    inputs = [tensor.requires_grad_() for tensor in random_qkv(511, heads=4, head_dim=8)]
    upstream = torch.randn(511, 4, 8, generator=torch.Generator().manual_seed(1))
    output = attention.alibi_attention(*inputs, slopes_of(4), layout, backend=name)
    gradients = torch.autograd.grad(output, inputs, upstream)
    reference = torch.autograd.grad(exact(*inputs, layout), inputs, upstream.double())
    for gradient, expected in zip(gradients, reference, strict=True):
        assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FAST_BACKENDS)
def test_bfloat16_error_is_at_most_twice_that_of_the_reference_backend(name):
    layout = packed([500, 37])
    query, key, value = random_qkv(537, heads=4, head_dim=32, dtype=torch.bfloat16)
    expected = exact(query, key, value, layout)
    error = (FAST_BACKENDS[name](query, key, value, slopes_of(4), layout) - expected).abs().max()
    reference_error = (attention.eager_attention(query, key, value, slopes_of(4), layout)[0] - expected).abs().max()
    assert error <= 2 * reference_error


@pytest.mark.parametrize("name", FAST_BACKENDS)
def test_memory_that_is_not_ours_is_never_read(name):
    """Sequences lie inside a NaN-filled buffer; a read beyond either end would show."""
    length, heads, head_dim = 700, 4, 8
    buffer = torch.full((3, length + 200, heads, head_dim), torch.nan)
    buffer[:, 100:-100] = torch.stack(random_qkv(length, heads, head_dim))
    query, key, value = buffer[:, 100:-100]
    layout = packed([650, 50])
    output = FAST_BACKENDS[name](query, key, value, slopes_of(heads), layout)
    assert (output - exact(query, key, value, layout)).abs().max() < 5e-6


@pytest.mark.parametrize("name", FAST_BACKENDS)
def test_attention_dropout_keeps_the_expected_output(name):
    torch.manual_seed(0)
    layout = packed([200])
    query, key, value = random_qkv(200, heads=2, head_dim=8)
    full = FAST_BACKENDS[name](query, key, value, slopes_of(2), layout)
    dropped = torch.stack(
        [FAST_BACKENDS[name](query, key, value, slopes_of(2), layout, dropout_p=0.3) for _ in range(200)]
    )
    assert (dropped[0] - full).abs().max() > 0.1
    assert (dropped.mean(0) - full).abs().mean() < 0.05


DATA_FAMILIES = ("random", "trained-like", "key bias", "sinks")


def family(name, length, heads, head_dim, seed):
    scale = {"random": 0.5, "trained-like": 1.7, "key bias": 1.0, "sinks": 1.0}[name]
    query, key, value = random_qkv(length, heads, head_dim, seed, scale)
    if name == "key bias":
        key = key + 8 * torch.randn(1, heads, head_dim, generator=torch.Generator().manual_seed(seed + 1))
    if name == "sinks":
        positions = [0, length // 2, length - 1]
        key[positions] *= 20
        value[positions] *= 10
    return query, key, value


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(DATA_FAMILIES),
    st.integers(2, 1200),
    st.sampled_from([2**-24, 2**-11, 1e-3]),
    st.integers(0, 2**31),
)
def test_mass_beyond_the_band_is_below_skip_eps(name, length, skip_eps, seed):
    heads, head_dim = 4, 16
    query, key, _ = family(name, length, heads, head_dim, seed)
    widths = band_widths(query, key, slopes_of(heads), skip_eps)
    positions = torch.arange(length)
    distance = (positions[:, None] - positions).abs()
    for head, (width, slope) in enumerate(zip(widths, attention.alibi_slopes(heads), strict=True)):
        logits = query[:, head].double() @ key[:, head].double().T / math.sqrt(head_dim) - slope * distance
        skipped = (logits.softmax(dim=1) * (distance > width)).sum(dim=1)
        assert skipped.max() <= skip_eps


@pytest.mark.parametrize("name", DATA_FAMILIES)
def test_skipping_changes_nothing_that_fp32_can_hold(name):
    layout = packed([4096])
    query, key, value = family(name, 4096, 4, 16, seed=3)
    slopes = slopes_of(4)
    skipping = attention.banded_attention(query, key, value, slopes, layout)
    dense = attention.banded_attention(query, key, value, slopes, layout, skip_eps=0.0)
    assert (skipping - dense).abs().max() <= 1e-6 * value.abs().max()


def test_the_band_is_narrow_for_steep_heads_and_long_sequences():
    query, key, _ = family("trained-like", 8192, 12, 64, seed=0)
    widths = band_widths(query, key, slopes_of(12))
    assert widths[0] < 300
    assert sum(widths) < 0.5 * 12 * 8192


def test_skip_eps_zero_and_norms_that_are_not_finite_skip_nothing():
    query, key, _ = random_qkv(3000, 2, 8)
    assert band_widths(query, key, slopes_of(2), skip_eps=0.0) == [2999, 2999]
    key[7, 0, 0] = torch.inf
    assert band_widths(query, key, slopes_of(2))[0] == 2999


def test_backend_table():
    assert attention.choose_backend("cpu", torch.float32, 512) == "sdpa"
    assert attention.choose_backend("cpu", torch.bfloat16, 5000) == "alibi_banded"
    assert attention.choose_backend("cuda", torch.float32, 512) == "sdpa"


def test_unknown_backend_names_the_choices():
    with pytest.raises(ValueError, match=r"'flash'.*eager, sdpa, alibi_banded"):
        attention.check_backend("flash")


@pytest.fixture
def flash_attn(monkeypatch):
    """Put a stand-in for the flash-attn package in place; the function given becomes flash_attn_varlen_func."""

    def install(function):
        module = types.ModuleType("flash_attn")
        if function is not None:
            module.flash_attn_varlen_func = function
        monkeypatch.setitem(sys.modules, "flash_attn", module)
        attention._flash_attention_2_function.cache_clear()

    yield install
    attention._flash_attention_2_function.cache_clear()


def test_flash_attention_without_the_package_raises_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    attention._flash_attention_2_function.cache_clear()
    with pytest.raises(ImportError, match="flash_attention_2"):
        attention.check_backend("flash_attention_2")
    attention._flash_attention_2_function.cache_clear()


def test_flash_attention_that_would_drop_the_bias_is_refused(flash_attn):
    flash_attn(lambda q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k: q)
    with pytest.raises(ImportError, match="no alibi_slopes"):
        attention.check_backend("flash_attention_2")


def test_broken_flash_attention_is_refused(flash_attn):
    flash_attn(None)
    with pytest.raises(ImportError, match="does not import"):
        attention.check_backend("flash_attention_2")


def test_flash_attention_on_cpu_says_so(flash_attn):
    flash_attn(lambda q, k, v, alibi_slopes=None, **options: q)
    query, key, value = random_qkv(8, 2, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="runs on CUDA only, the tensors are on cpu"):
        attention.alibi_attention(query, key, value, slopes_of(2), packed([8]), backend="flash_attention_2")


def test_triton_that_is_missing_raises_with_the_reason(monkeypatch):
    monkeypatch.setattr(attention, "triton_problem", lambda: "the package triton is not installed")
    with pytest.raises(ImportError, match="'alibi_triton' cannot run: the package triton is not installed"):
        attention.check_backend("alibi_triton")
