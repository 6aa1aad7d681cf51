"""Small models and batches for the tests of modeling/."""

import pytest
import torch

from modeling import StrandBertConfig

BACKENDS_ON_CPU = ("eager", "sdpa", "alibi_banded")


def tiny_config(**changes) -> StrandBertConfig:
    """3 layers, 32 wide, 4 heads, 64 token ids, no dropout."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    return StrandBertConfig(**{**sizes, **changes})


def build(model_class, backend="auto", dtype=torch.float32, seed=0, **changes):
    """A model with random weights, the same for the same seed, in eval mode."""
    torch.manual_seed(seed)
    model = model_class(tiny_config(**changes)).to(dtype).eval()
    model.set_attn_implementation(backend)
    return model


def random_ids(*shape, seed=0, vocab_size=64):
    return torch.randint(5, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=BACKENDS_ON_CPU)
def backend(request):
    return request.param
