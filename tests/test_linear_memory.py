"""On the default path no tensor grows with the square of the length."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling import StrandBertConfig, StrandBertForMaskedLM


class LargestStorage(TorchDispatchMode):
    """Records the size of the largest memory block behind any tensor that an operation returns, in bytes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


def largest_block(length, backend, train, autocast=False):
    """Bytes of the largest block in a forward pass, and in training a backward pass, over one sequence."""
    config = StrandBertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16
    )
    model = StrandBertForMaskedLM._from_config(config, attn_implementation=backend).train(train)
    input_ids = torch.randint(5, 32, (1, length))
    lower = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with lower, torch.set_grad_enabled(train), LargestStorage() as mode:
        output = model(input_ids, labels=input_ids if train else None)
        if train:
            output.loss.backward()
    return mode.largest


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("length", [900, 4096])  # sdpa and alibi_banded by the table
@pytest.mark.parametrize("autocast", [False, True])
def test_no_block_is_as_large_as_one_head_of_scores(length, train, autocast):
    assert largest_block(length, "auto", train, autocast) < 4 * length * length / 2


def test_the_measure_sees_the_scores_of_the_reference_backend():
    assert largest_block(900, "eager", False) >= 4 * 4 * 900 * 900
