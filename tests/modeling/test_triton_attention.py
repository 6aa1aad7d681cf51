"""
The Triton attention kernels without a GPU. What they must do is specified in interpreted_triton_attention.py; its tests
run here in one process of their own, because Triton chooses interpreter or compiler when it is imported.
"""

import types

import pytest
import torch

from modeling import triton_attention as kernels
from tests.modeling.triton_process import run_with_triton

QKV = [torch.zeros(4, 2, 16)] * 3


@pytest.mark.slow
def test_the_specification_holds_in_the_interpreter():
    specification = "tests/modeling/interpreted_triton_attention.py"
    done = run_with_triton("-m", "pytest", "-q", "-p", "no:cacheprovider", specification, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_without_triton_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(kernels, "triton", None)
    with pytest.raises(ImportError, match="'alibi_triton' cannot run: the package triton is not installed; install"):
        kernels.triton_attention(*QKV, torch.ones(2), [(0, 4)])


def test_cpu_tensors_are_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(kernels, "triton", types.ModuleType("triton"))
    monkeypatch.setattr(kernels, "is_interpreted", lambda: False)
    with pytest.raises(ValueError, match="runs on CUDA only, the tensors are on cpu"):
        kernels.triton_attention(*QKV, torch.ones(2), [(0, 4)])
