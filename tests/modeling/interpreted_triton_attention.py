"""
The Triton attention kernels, run by Triton's interpreter on CPU tensors.

pytest does not collect this file by itself: TRITON_INTERPRET=1 must be set before anything imports triton.
test_triton_attention.py runs it in a process of its own; by hand:

    TRITON_INTERPRET=1 python -m pytest tests/modeling/interpreted_triton_attention.py
"""

import math

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from modeling import StrandBertForMaskedLM
from modeling import triton_attention as kernels
from modeling.alibi_attention import eager_attention
from modeling.triton_attention import triton_attention
from tests.modeling.conftest import build, random_ids
from tests.modeling.test_alibi_attention import exact, family, packed, random_qkv, slopes_of

assert kernels.is_interpreted(), "set TRITON_INTERPRET=1 before starting Python"

FAST_TILES = (64, (64, 4, 1), (64, 4, 1), (64, 4, 1))  # fewer, larger steps: the interpreter's cost is per step


@pytest.fixture
def fast_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "TILES", dict.fromkeys(kernels.TILES, FAST_TILES))
    kernels._dense_work.cache_clear()
    yield
    kernels._dense_work.cache_clear()


def run(inputs, slopes, lengths, upstream=None, **options):
    """Output and, with `upstream`, the three gradients."""
    inputs = [tensor.detach().requires_grad_(upstream is not None) for tensor in inputs]
    output = triton_attention(*inputs, slopes, packed(lengths).boundaries(), **options)
    return output, *(torch.autograd.grad(output, inputs, upstream) if upstream is not None else ())


def reference(function, inputs, upstream):
    """Output and gradients of a differentiable function of query, key and value."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    return output, *torch.autograd.grad(output, inputs, upstream.to(output.dtype))


def random_upstream(like, seed=1):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.dtype)


def relative_error(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("lengths", [[1], [63], [100], [2, 1, 70, 0, 33]])
def test_output_and_gradients_equal_fp64(lengths):
    """With the tiles that a GPU gets. A row written beyond a sequence's end would spoil the next sequence."""
    inputs = random_qkv(sum(lengths), heads=3, head_dim=16)
    upstream = random_upstream(inputs[0])
    found = run(inputs, slopes_of(3), lengths, upstream)
    expected = reference(lambda *qkv: exact(*qkv, packed(lengths)), inputs, upstream)
    for result, truth in zip(found, expected, strict=True):
        assert (result - truth).abs().max() <= 2e-6 * max(1, truth.abs().max())


def test_many_blocks_equal_fp64(fast_tiles):
    inputs = random_qkv(333, heads=2, head_dim=32)
    upstream = random_upstream(inputs[0])
    found = run(inputs, slopes_of(2), [333], upstream)
    expected = reference(lambda *qkv: exact(*qkv, packed([333])), inputs, upstream)
    assert all(relative_error(*pair) <= 2e-6 for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("head_dim", [8, 48, 80, 96, 128])
def test_head_dims(head_dim):
    inputs = random_qkv(37, heads=1, head_dim=head_dim)
    upstream = random_upstream(inputs[0])
    found = run(inputs, slopes_of(1), [34, 3], upstream)
    expected = reference(lambda *qkv: exact(*qkv, packed([34, 3])), inputs, upstream)
    assert all(relative_error(*pair) <= 2e-6 for pair in zip(found, expected, strict=True))


@pytest.fixture
def rounded_bfloat16(monkeypatch):
    """Conversion to bf16 as on a GPU, to nearest: the interpreter of triton 3.9 cuts the lower bits off."""
    original = interpreter._convert_float

    def convert(numbers, source, target, rounding_mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return original(numbers, source, target, rounding_mode)
        return torch.tensor(numbers).bfloat16().view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_eager(dtype, rounded_bfloat16):
    layout = packed([90, 7])
    inputs = random_qkv(97, heads=2, head_dim=32, dtype=dtype)
    upstream = random_upstream(inputs[0])
    slopes = slopes_of(2)
    found = run(inputs, slopes, [90, 7], upstream)
    eager = reference(lambda *qkv: eager_attention(*qkv, slopes, layout)[0], inputs, upstream)
    truth = reference(lambda *qkv: exact(*qkv, layout), inputs, upstream)
    for result, plain, expected in zip(found, eager, truth, strict=True):
        assert relative_error(result, expected) <= 2 * relative_error(plain, expected)


def test_large_logits_do_not_overflow():
    """Logits of several thousand: a softmax shifted by anything but the maximum would overflow."""
    layout = packed([130])
    query, key, value = random_qkv(130, heads=2, head_dim=16, scale=60.0)
    found = run([query, key, value], slopes_of(2), [130])[0]
    expected = exact(query, key, value, layout)
    plain = eager_attention(query, key, value, slopes_of(2), layout)[0]
    assert (found - expected).abs().max() <= 2 * (plain - expected).abs().max() + 1e-6


def test_views_into_one_fused_tensor_are_read_in_place(fast_tiles):
    """Query, key and value with strides of a fused projection, and a gradient expanded from one number."""
    fused = torch.randn(50, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    inputs = [tensor.detach().requires_grad_() for tensor in fused.unbind(dim=1)]
    copies = [tensor.detach().contiguous().requires_grad_() for tensor in inputs]
    strided, plain = (triton_attention(*qkv, slopes_of(2), [(0, 50)]) for qkv in (inputs, copies))
    assert torch.equal(strided, plain)
    gradients = torch.autograd.grad(strided.sum(), inputs), torch.autograd.grad(plain, copies, torch.ones(50, 2, 16))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_head_dim_that_is_not_contiguous(fast_tiles):
    query, key, value = random_qkv(40, heads=2, head_dim=16)
    transposed = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    assert torch.equal(run(transposed, slopes_of(2), [40])[0], run([query, key, value], slopes_of(2), [40])[0])


def test_addresses_beyond_32_bits(fast_tiles):
    """70 tokens that lie 2^25 numbers apart; only the pages that are touched take memory."""
    query, key, value = random_qkv(70, heads=1, head_dim=16, dtype=torch.float16)
    try:
        buffer = torch.empty(70 * 2**25, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this machine cannot reserve 4.4 GiB of address space")
    far = buffer.as_strided(query.shape, (2**25, 16, 1))
    far.copy_(query)
    assert torch.equal(run([far, key, value], slopes_of(1), [70])[0], run([query, key, value], slopes_of(1), [70])[0])


def test_memory_that_is_not_ours_is_never_read(fast_tiles):
    """Inputs lie inside NaN-filled buffers, and torch fills every new tensor with NaN."""
    lengths, total = [30, 0, 65], 95
    inputs, upstream = random_qkv(total, 2, 24), random_upstream(torch.empty(total, 2, 24))
    expected = reference(lambda *qkv: exact(*qkv, packed(lengths)), inputs, upstream)
    buffer = torch.full((4, total + 200, 2, 40), torch.nan)
    inside = buffer[:, 100:-100, :, 8:-8]
    inside.copy_(torch.stack([*inputs, upstream]))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all(), "new tensors are not filled with NaN; the test would show nothing"
        found = run(inside[:3], slopes_of(2), lengths, inside[3])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(relative_error(*pair) <= 2e-6 for pair in zip(found, expected, strict=True))
    assert buffer.isnan().sum() == buffer.numel() - inside.numel()


def test_results_are_the_same_in_every_run(fast_tiles):
    inputs = random_qkv(100, heads=2, head_dim=16)
    first, second = (run(inputs, slopes_of(2), [100], random_upstream(inputs[0])) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_sequence_gives_the_same_alone_and_in_a_batch():
    inputs = random_qkv(101, heads=2, head_dim=16)
    together = run(inputs, slopes_of(2), [60, 41])[0]
    alone = run([tensor[60:] for tensor in inputs], slopes_of(2), [41])[0]
    assert torch.equal(together[60:], alone)


def test_nan_stays_in_its_own_row(fast_tiles):
    query, key, value = random_qkv(90, heads=2, head_dim=16)
    query[5, 1, 3] = torch.nan
    output = run([query, key, value], slopes_of(2), [90])[0]
    expected = exact(query, key, value, packed([90]))
    assert output[5, 1].isnan().all()
    expected[5, 1], output[5, 1] = 0, 0
    assert (output - expected).abs().max() < 5e-6


def dropout_mask(length, heads, dropout_p, boundaries, seed):
    """The probabilities that are kept, (heads, query, key): where the output for an identity matrix is not zero."""
    query = torch.zeros(length, heads, length)
    identity = torch.eye(length)[:, None, :].expand(length, heads, length)
    torch.manual_seed(seed)
    output = triton_attention(query, query, identity, torch.full((heads,), 1e-3), boundaries, dropout_p=dropout_p)
    return (output > 0).transpose(0, 1)


def test_forward_and_backward_drop_the_same_probabilities(fast_tiles):
    length, heads, dropout_p = 100, 2, 0.3
    mask = dropout_mask(length, heads, dropout_p, [(0, length)], seed=7)
    inputs = random_qkv(length, heads, head_dim=16)
    upstream = random_upstream(inputs[0])
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()

    def explicit(query, key, value):
        query, key, value = (tensor.double().transpose(0, 1) for tensor in (query, key, value))
        logits = query @ key.transpose(1, 2) / math.sqrt(16) - slopes_of(heads).double()[:, None, None] * distance
        return (logits.softmax(dim=2) * mask / (1 - dropout_p) @ value).transpose(0, 1)

    expected = reference(explicit, inputs, upstream)
    torch.manual_seed(7)
    found = run(inputs, slopes_of(heads), [length], upstream, dropout_p=dropout_p)
    assert all(relative_error(*pair) <= 2e-6 for pair in zip(found, expected, strict=True))


def test_dropout_keeps_the_share_it_should_and_differs_everywhere(fast_tiles):
    length, dropout_p = 60, 0.3
    first, second = (dropout_mask(2 * length, 2, dropout_p, [(0, 60), (60, 120)], seed) for seed in (1, 2))
    blocks = [
        mask[head, rows, rows] for mask in (first, second) for head in (0, 1) for rows in (slice(60), slice(60, 120))
    ]
    deviation = math.sqrt(dropout_p * (1 - dropout_p) / length**2)
    for index, block in enumerate(blocks):
        assert abs(block.float().mean() - (1 - dropout_p)) < 5 * deviation
        for other in blocks[:index]:  # independent masks agree with probability p^2 + (1 - p)^2
            assert abs((block == other).float().mean() - 0.58) < 5 * math.sqrt(0.58 * 0.42) / length


def visited_share(inputs, slopes, length):
    *_, low, high, _ = kernels._work(inputs[0], inputs[1], slopes, ((0, length),), None, symmetric=True)
    return float((high - low).float().mean() / length)


@pytest.mark.parametrize("name", ["random", "trained-like", "key bias", "sinks"])
def test_skipping_changes_nothing_that_fp32_can_hold(name, fast_tiles, monkeypatch):
    monkeypatch.setattr(kernels, "SKIP_FROM", 1)
    length, slopes = 256, torch.tensor([0.7, 0.5])
    inputs = family(name, length, 2, 16, seed=3)
    upstream = random_upstream(inputs[0])
    skipping = run(inputs, slopes, [length], upstream)
    dense = run(inputs, slopes, [length], upstream, skip_eps=0.0)
    assert (skipping[0] - dense[0]).abs().max() <= 1e-6 * inputs[2].abs().max()
    assert all(relative_error(*pair) <= 1e-5 for pair in zip(skipping[1:], dense[1:], strict=True))
    if name != "sinks":
        assert visited_share(inputs, slopes, length) < 0.8


def test_inference_skips_by_block_and_agrees_with_training(fast_tiles, monkeypatch):
    monkeypatch.setattr(kernels, "SKIP_FROM", 1)
    slopes = torch.tensor([0.7, 0.5])
    query, key, value = family("trained-like", 256, 2, 16, seed=5)
    inference = run([query, key, value], slopes, [256])[0]
    training = triton_attention(query.requires_grad_(), key, value, slopes, [(0, 256)])
    assert (inference - training).abs().max() <= 1e-6 * value.abs().max()


def loss_curve(backend):
    """50 steps of masked language modelling on a ragged batch."""
    model = build(StrandBertForMaskedLM, backend, num_hidden_layers=1, num_attention_heads=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    curve = []
    for step in range(50):
        input_ids = random_ids(2, 40, seed=step % 5)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1, 21:] = 0
        chosen = torch.rand(2, 40, generator=torch.Generator().manual_seed(step)) < 0.3
        labels = input_ids.masked_fill(~chosen | (attention_mask == 0), -100)
        loss = model(input_ids.masked_fill(labels != -100, 4), attention_mask=attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return torch.tensor(curve)


def test_training_follows_eager(fast_tiles, monkeypatch):
    launched = []
    launch = kernels._launch
    monkeypatch.setattr(kernels, "_launch", lambda *arguments: (launched.append(arguments[1]), launch(*arguments)))
    eager = loss_curve("eager")
    assert launched == []
    triton = loss_curve("alibi_triton")
    assert launched == [1, 2, 3] * 50
    assert eager[-5:].mean() < eager[:5].mean() - 0.1
    assert (eager - triton).abs().max() <= 1e-4


def test_no_tokens_and_only_empty_sequences(fast_tiles):
    empty = torch.zeros(0, 2, 16, requires_grad=True)
    output = triton_attention(empty, empty, empty, slopes_of(2), [(0, 0), (0, 0)])
    assert output.shape == (0, 2, 16)
    output.sum().backward()


def test_the_longest_ranges_start_first():
    query, key, _ = random_qkv(3000, heads=4, head_dim=16)
    boundaries = ((0, 2500), (2500, 2500), (2500, 3000))
    first, end, low, high, order = kernels._work(query, key, slopes_of(4), boundaries, None, symmetric=False)
    assert sorted(order.tolist()) == list(range(low.numel()))
    started = (high - low).flatten()[order.long()]
    assert (started[:-1] >= started[1:]).all()
    assert (low <= first).all() and (high <= end).all() and (high > first).all()
    assert (low[:, first >= 2500] >= 2500).all()
    assert (high - low).sum() < 0.9 * (end - torch.where(first < 2500, 0, 2500)).sum() * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundaries": [(0, 4)]}, "from 0 to 8 tokens"),
        ({"boundaries": [(0, 5), (4, 8)]}, "must follow each other"),
        ({"dropout_p": 1.0}, "below 1"),
        ({"key": torch.zeros(7, 2, 16)}, r"got \(8, 2, 16\), \(7, 2, 16\)"),
        ({"value": torch.zeros(8, 2, 16, dtype=torch.float16)}, "differ in dtype"),
        (dict.fromkeys(("query", "key", "value"), torch.zeros(8, 2, 16).double()), "torch.float64"),
        (dict.fromkeys(("query", "key", "value"), torch.zeros(8, 2, 256)), "up to 128, got 256"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(changes, message):
    arguments = dict.fromkeys(("query", "key", "value"), torch.zeros(8, 2, 16))
    arguments |= {"slopes": slopes_of(2), "boundaries": [(0, 8)]}
    with pytest.raises(ValueError, match=message):
        triton_attention(**{**arguments, **changes})
