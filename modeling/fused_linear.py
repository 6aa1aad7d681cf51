"""
Linear layers on the CPU at the machine's speed: oneDNN, with activation, gate product or residual fused in.

torch sends fp32 `F.linear` to MKL, slow on AMD's CPUs with AVX-512; oneDNN, part of every torch build for x86, is
clearly faster there. It is used where it is present and accurate and, in fp32, where MKL is slow; everywhere else, and
for modules that are not plain `nn.Linear` (LoRA, quantised, hooked), the module itself is called. Nothing is timed, so
that every process of a machine computes alike. No global setting of torch is touched.
"""

import functools
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}
ONEDNN_ACTIVATIONS = {None: ("none", ""), "gelu": ("gelu", "none"), "silu": ("swish", "")}

SMALLEST_PRODUCT = 2**20  # multiply-adds below which the call costs more than it saves
CHECKED_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to the largest output


def linear(
    module: nn.Module,
    x: Tensor,
    times: Tensor | None = None,
    plus: Tensor | None = None,
    activation: str | None = None,
    fused: bool = True,
) -> Tensor:
    """
    activation(module(x)), then times a tensor or plus a tensor, in one pass over memory where possible.

    Args:
        module: a linear layer, out_features x in_features.
        x: (tokens, in_features).
        times, plus: (tokens, out_features); at most one of activation, times and plus.
        activation: "gelu", "silu" or None.
        fused: False calls the module and torch's own operators, the arithmetic of the reference.

    Returns:
        (tokens, out_features)
    """
    if fused and _is_plain(module) and uses_onednn(x, module.weight):
        return _onednn_linear(x, module.weight, module.bias, activation, times, plus)
    output = module(x)
    if activation is not None:
        output = ACTIVATIONS[activation](output)
    if times is not None:
        output = output * times
    return output if plus is None else output + plus


def gated_linear(module: nn.Module, x: Tensor, activation: str, fused: bool = True) -> Tensor:
    """
    GEGLU or SwiGLU (Shazeer 2020): activation(gate) * up, gate and up being the two halves of `module`'s outputs.

    Args:
        module: linear layer without bias, 2 * width x in_features.
        x: (tokens, in_features).

    Returns:
        (tokens, width)
    """
    if fused and _is_plain(module) and uses_onednn(x, module.weight):
        gate_weight, up_weight = module.weight.chunk(2)
        gate = _onednn_linear(x, gate_weight, None, activation, None, None)
        return _onednn_linear(x, up_weight, None, None, gate, None)
    gate, up = module(x).chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether this product goes to oneDNN: by device, dtype, size and the check made once for the dtype."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in CHECKED_ERROR
        and x.numel() * weight.shape[0] >= SMALLEST_PRODUCT
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not (x.dtype == torch.bfloat16 and torch.is_grad_enabled())  # bf16 F.linear is oneDNN already
        and onednn_is_better(x.dtype)
    )


@functools.cache
def onednn_is_better(dtype: torch.dtype) -> bool:
    """Whether the operators exist and agree with `F.linear`, and in fp32 `F.linear` is slow; found out once."""
    if dtype == torch.float32 and not mkl_is_slow():
        return False
    random = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        x, weight = random(512, 256).to(dtype), random(512, 256).to(dtype)
        bias, other = random(512).to(dtype), random(512, 512).to(dtype)
        try:
            pairs = [
                (_onednn_linear(x, weight, bias, name, None, None), ACTIVATIONS[name](F.linear(x, weight, bias)))
                for name in ACTIVATIONS
            ]
            pairs.append((_onednn_linear(x, weight, None, None, other, None), F.linear(x, weight) * other))
            pairs.append((_onednn_linear(x, weight, bias, None, None, other), F.linear(x, weight, bias) + other))
        except (AttributeError, RuntimeError, NotImplementedError):  # not in this build, or not on this CPU
            return False
        return all(bool((a - b).abs().max() <= CHECKED_ERROR[dtype] * b.abs().max()) for a, b in pairs)


def mkl_is_slow() -> bool:
    """Whether torch sends fp32 products to MKL on an AMD CPU with AVX-512, where oneDNN is faster."""
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.backends.mkl.is_available() and has_avx512 and "AuthenticAMD" in _cpu_vendor()


def _cpu_vendor() -> str:
    """Text that names the vendor of an x86 CPU: AuthenticAMD, GenuineIntel."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()  # on Windows "... Family 25 Model 33 ..., AuthenticAMD"


def _is_plain(module: nn.Module) -> bool:
    """A bare nn.Linear: nothing that a call of this module would do is lost by reading its weight (accelerate's
    offloading replaces `forward` on the instance). Hooks on all modules at once are not looked at."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def _onednn_linear(x, weight, bias, activation, times, plus) -> Tensor:
    inputs = (x, weight, bias, times, plus)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        output = _OneDnnLinear.apply(x, weight, bias)
        if activation is not None:
            output = ACTIVATIONS[activation](output)
        if times is not None:
            output = output * times
        return output if plus is None else output + plus
    if times is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, times, weight, bias, "mul")
    if plus is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")
    name, algorithm = ONEDNN_ACTIVATIONS[activation]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


class _OneDnnLinear(torch.autograd.Function):
    """x @ weight.T + bias with both gradients by oneDNN; differentiable any number of times."""

    @staticmethod
    def forward(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _OneDnnLinear.apply(grad, weight.t().contiguous(), None)
        if ctx.needs_input_grad[1]:
            grad_weight = _OneDnnLinear.apply(grad.t().contiguous(), x.t().contiguous(), None)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_x, grad_weight, grad_bias
