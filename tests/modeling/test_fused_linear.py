"""Linear layers through oneDNN equal torch's own, forward and backward, and step aside where they must."""

import copy
import time

import pytest
import torch
from torch import nn

from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertModel, fused_linear
from modeling.fused_linear import gated_linear, linear

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def onednn_for_every_size(monkeypatch):
    """The products of these tests are small; oneDNN is to take them all the same."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN linear operator")
    monkeypatch.setattr(fused_linear, "SMALLEST_PRODUCT", 0)
    monkeypatch.setattr(fused_linear, "onednn_is_better", lambda dtype: True)


def close(output, expected, dtype):
    return (output - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()


def layer(dtype, bias=True, out_features=33):
    torch.manual_seed(0)
    return nn.Linear(40, out_features, bias=bias).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 63, 100, 333])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_every_fused_form_equals_torch(dtype, tokens, bias):
    module, x, other = layer(dtype, bias), torch.randn(tokens, 40).to(dtype), torch.randn(tokens, 33).to(dtype)
    expected = nn.functional.linear(x.float(), module.weight.float(), module.bias.float() if bias else None)
    forms = {
        "plain": (linear(module, x), expected),
        "gelu": (linear(module, x, activation="gelu"), nn.functional.gelu(expected)),
        "silu": (linear(module, x, activation="silu"), nn.functional.silu(expected)),
        "times": (linear(module, x, times=other), expected * other.float()),
        "plus": (linear(module, x, plus=other), expected + other.float()),
    }
    for name, (output, reference) in forms.items():
        assert output.shape == (tokens, 33) and output.dtype == dtype
        assert tokens == 0 or close(output.float(), reference, dtype), name


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@torch.no_grad()
def test_gated_product_equals_torch(activation):
    module, x = layer(torch.float32, bias=False, out_features=64), torch.randn(77, 40)
    assert close(gated_linear(module, x, activation), gated_linear(module, x, activation, fused=False), torch.float32)


@pytest.mark.parametrize("form", ["plain", "gelu", "silu", "times", "plus", "gated"])
def test_gradients_equal_torch(form):
    module = layer(torch.float32, bias=form != "gated", out_features=34)
    gradients = []
    for fused in (True, False):
        x, other = (torch.randn(65, size, generator=torch.Generator().manual_seed(size)) for size in (40, 34))
        x.requires_grad_(), other.requires_grad_()
        if form == "gated":
            output = gated_linear(module, x, "gelu", fused)
        else:
            options = {"plain": {}, "times": {"times": other}, "plus": {"plus": other}}
            output = linear(module, x, **options.get(form, {"activation": form}), fused=fused)
        module.zero_grad()
        output.square().sum().backward()
        wanted = [x.grad, module.weight.grad, other.grad, None if module.bias is None else module.bias.grad]
        gradients.append([gradient for gradient in wanted if gradient is not None])
    assert len(gradients[0]) == len(gradients[1]) >= 2
    for fused, expected in zip(*gradients, strict=True):
        assert close(fused, expected, torch.float32)


def test_frozen_weights_get_no_gradient():
    module, x = layer(torch.float32), torch.randn(65, 40, requires_grad=True)
    module.weight.requires_grad_(False)
    linear(module, x).sum().backward()
    assert module.weight.grad is None and x.grad is not None and module.bias.grad is not None


@torch.no_grad()
def test_views_and_poisoned_memory_around_the_input():
    module = layer(torch.float32)
    buffer = torch.full((70, 90), torch.nan)
    buffer[3:68, 20:60] = torch.randn(65, 40)
    x = buffer[3:68, 20:60]
    assert close(linear(module, x), nn.functional.linear(x, module.weight, module.bias), torch.float32)


@pytest.fixture
def calls(monkeypatch):
    """What reaches oneDNN."""
    seen, original = [], fused_linear._onednn_linear
    monkeypatch.setattr(fused_linear, "_onednn_linear", lambda *args: seen.append(1) or original(*args))
    return seen


def test_plain_layers_go_to_onednn(calls):
    linear(layer(torch.float32), torch.randn(5, 40))
    assert calls


def test_modules_that_are_more_than_a_linear_layer_are_called(calls):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    adapted = Adapted(40, 33)
    x = torch.randn(5, 40, requires_grad=True)
    assert torch.equal(linear(adapted, x), adapted(x))
    hooked, fired = layer(torch.float32), []
    hooked.register_forward_hook(lambda *_: fired.append("forward"))
    linear(hooked, x)
    hooked = layer(torch.float32)
    hooked.register_full_backward_pre_hook(lambda *_: fired.append("backward"))
    linear(hooked, x).sum().backward()
    assert fired == ["forward", "backward"] and not calls


def test_lora_adapters_stay_in_effect():
    from peft import LoraConfig, get_peft_model

    config = StrandBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    model = StrandBertModel(config).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).last_hidden_state
    targets = ["Wqkv", "dense", "gated_layers", "wo"]
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False)).eval()
    after = adapted(ids).last_hidden_state
    assert (after - before).abs().max() > 1e-3
    merged = adapted.merge_and_unload()
    assert (merged(ids).last_hidden_state - after).abs().max() < 1e-4


def test_autocast_and_reference_leave_it_out(calls):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(layer(torch.float32), torch.randn(5, 40)).dtype == torch.bfloat16
    linear(layer(torch.float32), torch.randn(5, 40), fused=False)
    assert not calls


@pytest.mark.parametrize(
    ("vendor", "capability", "mkl", "slow"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True, True),
        ("vendor_id : AuthenticAMD", "AVX2", True, False),
        ("vendor_id : AuthenticAMD", "AVX512", False, False),
        ("vendor_id : GenuineIntel", "AVX512", True, False),
        ("", "DEFAULT", False, False),
    ],
)
def test_the_processor_and_no_clock_decides(monkeypatch, vendor, capability, mkl, slow):
    monkeypatch.undo()
    monkeypatch.setattr(fused_linear, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("the answer would change from process to process"))
    assert fused_linear.mkl_is_slow() is slow
    assert fused_linear.onednn_is_better.__wrapped__(torch.float32) is slow


def test_an_inaccurate_or_absent_operator_is_not_used(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(fused_linear, "mkl_is_slow", lambda: True)
    check = fused_linear.onednn_is_better.__wrapped__
    with monkeypatch.context() as patch:
        patch.setattr(fused_linear, "_onednn_linear", lambda x, w, *_: nn.functional.linear(x, w) + 1)
        assert check(torch.float32) is False
    with monkeypatch.context() as patch:

        def absent(*_):
            raise AttributeError("no such operator")

        patch.setattr(fused_linear, "_onednn_linear", absent)
        assert check(torch.float32) is False


def test_the_check_leaves_the_random_stream_alone(monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    monkeypatch.setattr(fused_linear, "mkl_is_slow", lambda: True)
    fused_linear.onednn_is_better.__wrapped__(torch.float32)
    assert torch.equal(torch.randn(3), expected)


def test_training_a_model_gives_the_loss_curve_of_eager():
    config = StrandBertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    first = StrandBertForMaskedLM(config)
    curves = []
    for backend in ("eager", "sdpa", "alibi_banded"):
        model = copy.deepcopy(first).train()
        model.set_attn_implementation(backend)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator, losses = torch.Generator().manual_seed(1), []
        for _ in range(50):
            ids = torch.randint(5, 64, (1, 400), generator=generator)
            loss = model(ids, labels=torch.where(ids % 4 == 0, ids, -100)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert curves[0][-1] < curves[0][0] - 0.3
    assert (curves[1] - curves[0]).abs().max() < 1e-4
    assert (curves[2] - curves[0]).abs().max() < 1e-4


@torch.no_grad()
def test_feed_forward_in_chunks_changes_nothing(monkeypatch):
    from modeling import modeling_strandbert

    config = StrandBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    model = StrandBertModel(config).eval()
    ids = torch.randint(5, 4096, (1, 101))
    expected = model(ids).last_hidden_state
    monkeypatch.setitem(modeling_strandbert.FEED_FORWARD_CHUNK, "cpu", 7)
    assert (model(ids).last_hidden_state - expected).abs().max() < 1e-5


def test_second_derivatives_equal_torch():
    module = layer(torch.float32)
    penalties = []
    for fused in (True, False):
        x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(linear(module, x, fused=fused).tanh().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    assert close(*penalties, torch.float32)
