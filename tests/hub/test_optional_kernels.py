"""Attention kernels from elsewhere run only where they honour ALiBi; all others are refused with the reason."""

import sys
import types

import pytest
import torch

from modeling import StrandBertConfig, StrandBertModel, alibi_attention
from modeling.unpadding import SequenceLayout

from .conftest import SIZES

WITHOUT_ALIBI = ("flash_attention_3", "flash_attention_4", "flex_attention")
HUB_KERNELS = ("kernels-community/flash-attn2", "kernels-community/flash-attn3@v1:flash_attn_func")


@pytest.mark.parametrize("name", [*WITHOUT_ALIBI, *HUB_KERNELS])
def test_a_backend_that_would_leave_alibi_out_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="is refused: .*(equally near|one bias for all heads).*; use 'auto'"):
        alibi_attention.check_backend(name)


@pytest.mark.parametrize("name", [WITHOUT_ALIBI[0], HUB_KERNELS[0]])
def test_it_is_refused_while_loading_and_when_set_later(tmp_path, name, monkeypatch):
    kernels = types.ModuleType("kernels")  # the package is there, and must not even be asked
    kernels.get_kernel = lambda *a, **o: pytest.fail("a kernel was fetched")
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    model = StrandBertModel(StrandBertConfig(**SIZES))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is refused"):
        StrandBertModel.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises(ValueError, match="is refused"):
        model.set_attn_implementation(name)


def varlen_function(alibi):
    """A stand-in for flash_attn_varlen_func, with its signature: exact, with or without the bias."""

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, alibi_slopes, **options
    ):
        layout = SequenceLayout(1, len(q), cu_seqlens_q, max_seqlen_q, packed=True)
        slopes = alibi_slopes if alibi else torch.zeros_like(alibi_slopes)
        return alibi_attention.eager_attention(q, k, v, slopes, layout)[0]

    return flash_attn_varlen_func


@pytest.fixture
def flash_attn(monkeypatch):
    """Function that puts a stand-in for the flash-attn package in place."""
    remembered = (alibi_attention._flash_attention_2_function, alibi_attention.alibi_problem)

    def forget():
        for function in remembered:
            function.cache_clear()

    def install(function):
        module = types.ModuleType("flash_attn")
        module.flash_attn_varlen_func = function
        monkeypatch.setitem(sys.modules, "flash_attn", module)
        forget()

    yield install
    forget()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alibi", [True, False])
def test_a_flash_attn_that_takes_slopes_and_ignores_them_is_found_out(flash_attn, dtype, alibi):
    flash_attn(varlen_function(alibi))
    problem = alibi_attention.alibi_problem(torch.device("cpu"), dtype)
    assert problem is None if alibi else "are not those of ALiBi" in problem


def test_a_flash_attn_that_does_not_run_here_is_left_out(flash_attn, monkeypatch):
    def too_old(*_, alibi_slopes, **__):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    flash_attn(too_old)
    problem = alibi_attention.alibi_problem(torch.device("cpu"), torch.bfloat16)
    assert "does not run on this device (FlashAttention only supports Ampere" in problem
    monkeypatch.setattr(alibi_attention, "alibi_problem", lambda device, dtype: problem)
    assert alibi_attention.choose_backend("cuda", torch.bfloat16, 100) == "sdpa"


def test_on_a_gpu_the_table_leaves_out_a_flash_attn_that_ignores_slopes(flash_attn, monkeypatch):
    flash_attn(varlen_function(alibi=True))
    for problem, expected in ((None, "flash_attention_2"), ("no ALiBi", "sdpa")):
        monkeypatch.setattr(alibi_attention, "alibi_problem", lambda device, dtype, problem=problem: problem)
        assert alibi_attention.choose_backend("cuda", torch.bfloat16, 100) == expected
