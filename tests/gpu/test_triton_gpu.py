"""
The Triton attention kernels on a GPU, compiled: errors against fp64 beside those of plain PyTorch in the same dtype.

    python -m pytest tests/gpu -m gpu
"""

import math

import pytest
import torch

from modeling import triton_attention as kernels
from modeling.alibi_attention import alibi_slopes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(kernels.unavailable_reason() is not None, reason=str(kernels.unavailable_reason())),
]

HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def full_precision_matmul():
    """Plain PyTorch in fp32 is measured without tf32; the setting is put back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def random_inputs(total, heads, head_dim, dtype, scale=1.0):
    """Query, key, value as views into one fused tensor, and a gradient of the output."""
    generator = torch.Generator("cuda").manual_seed(0)
    fused = torch.randn(total, 3, heads, head_dim, generator=generator, device="cuda")
    fused[:, :2] *= scale
    upstream = torch.randn(total, heads, head_dim, generator=generator, device="cuda").to(dtype)
    return fused.to(dtype).unbind(dim=1), upstream


def slopes_of(heads):
    return torch.tensor(alibi_slopes(heads), device="cuda")


def intervals(lengths):
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def dense(query, key, value, boundaries, dtype, rows=4096):
    """
    Attention and gradients in `dtype`, straight from the formula, a head and `rows` queries at a time.

    Returns a function of the upstream gradient that gives output, query, key and value gradients.
    """

    def gradients(upstream):
        results = [torch.zeros_like(query, dtype=dtype) for _ in range(4)]
        for start, end in (interval for interval in boundaries if interval[0] < interval[1]):
            for head, slope in enumerate(alibi_slopes(query.shape[1])):
                k, v = (tensor[start:end, head].to(dtype).detach().requires_grad_() for tensor in (key, value))
                positions = torch.arange(end - start, device="cuda", dtype=torch.promote_types(dtype, torch.float32))
                for first in range(start, end, rows):
                    block = slice(first, min(first + rows, end))
                    q = query[block, head].to(dtype).detach().requires_grad_()
                    distance = (positions[block.start - start : block.stop - start, None] - positions).abs()
                    logits = (q @ k.T).to(positions.dtype) / math.sqrt(q.shape[1]) - slope * distance
                    output = logits.softmax(dim=1).to(dtype) @ v
                    output.backward(upstream[block, head].to(dtype))  # sums the gradients of keys and values
                    results[0][block, head], results[1][block, head] = output.detach(), q.grad
                results[2][start:end, head], results[3][start:end, head] = k.grad, v.grad
        return results

    return gradients


def compiled(inputs, upstream, lengths, **options):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = kernels.triton_attention(*inputs, slopes_of(inputs[0].shape[1]), intervals(lengths), **options)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def error(found, truth):
    return float((found.double() - truth).abs().max() / truth.abs().max())


def assert_at_most_twice_plain(inputs, upstream, lengths, dtype):
    boundaries = intervals(lengths)
    truth = dense(*inputs, boundaries, torch.float64)(upstream)
    plain = dense(*inputs, boundaries, dtype)(upstream)
    found = compiled(inputs, upstream, lengths)
    for name, result, other, expected in zip("output query key value".split(), found, plain, truth, strict=True):
        ours, theirs = error(result, expected), error(other, expected)
        assert result.isfinite().all()
        assert ours <= 2 * theirs + 1e-7, f"{name}: error {ours:.2e}, plain PyTorch {theirs:.2e}"


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("lengths", [[128], [1, 63, 100, 0, 333], [2048], [16384]])
def test_error_is_at_most_twice_that_of_plain_pytorch(dtype, lengths):
    heads = 2 if sum(lengths) > 4000 else 4
    inputs, upstream = random_inputs(sum(lengths), heads, 64, dtype)
    assert_at_most_twice_plain(inputs, upstream, lengths, dtype)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 32, 48, 80, 96, 128])
def test_head_dims(dtype, head_dim):
    inputs, upstream = random_inputs(777, 2, head_dim, dtype)
    assert_at_most_twice_plain(inputs, upstream, [700, 77], dtype)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_large_logits(dtype):
    inputs, upstream = random_inputs(3000, 2, 64, dtype, scale=4.0)
    assert_at_most_twice_plain(inputs, upstream, [3000], dtype)


def test_skipping_changes_nothing_that_fp32_can_hold():
    inputs, upstream = random_inputs(8192, 4, 64, torch.float32, scale=1.7)
    skipping = compiled(inputs, upstream, [8192])
    every_key = compiled(inputs, upstream, [8192], skip_eps=0.0)
    assert (skipping[0] - every_key[0]).abs().max() <= 1e-6 * inputs[2].abs().max()
    assert all(error(*pair) <= 1e-5 for pair in zip(skipping[1:], [t.double() for t in every_key[1:]], strict=True))


@pytest.mark.parametrize("dtype", HALF)
def test_forward_and_backward_drop_the_same_probabilities(dtype):
    """Attention over an identity matrix shows the mask; the gradient of the values must use the same one."""
    length, dropout_p = 64, 0.25
    query = torch.zeros(length, 1, length, device="cuda", dtype=dtype, requires_grad=True)
    value = torch.eye(length, device="cuda", dtype=dtype)[:, None].clone().requires_grad_()
    torch.manual_seed(0)
    output = kernels.triton_attention(query, query, value, slopes_of(1), [(0, length)], dropout_p=dropout_p)
    mask = output[:, 0] > 0
    (gradient,) = torch.autograd.grad(output, value, torch.eye(length, device="cuda", dtype=dtype)[:, None])
    assert torch.equal(gradient[:, 0] > 0, mask.T)
    deviation = math.sqrt(dropout_p * (1 - dropout_p)) / length
    assert abs(mask.float().mean() - (1 - dropout_p)) < 5 * deviation


def test_results_are_the_same_in_every_run():
    inputs, upstream = random_inputs(5000, 4, 64, torch.bfloat16)
    first, second = (compiled(inputs, upstream, [3000, 2000]) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_memory_grows_with_the_length_only():
    """147,456 tokens: attention of this length would need 40 GiB for one head's probabilities in bf16."""
    inputs, _ = random_inputs(147_456, 2, 64, torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        output = kernels.triton_attention(*inputs, slopes_of(2), [(0, 147_456)])
    assert output.isfinite().all()
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30
