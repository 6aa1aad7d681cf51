"""training.collator: padded and packed batches hold the same tokens."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.collator import MlmCollator
from training.masking import IGNORED

PAD = 3


def sample(*ids):
    return {"input_ids": np.array(ids), "labels": np.array(ids) * 10}


def test_padded_batch():
    batch = MlmCollator(PAD)([sample(1, 7, 2), sample(1, 7, 8, 9, 2)])
    assert batch["input_ids"].tolist() == [[1, 7, 2, PAD, PAD], [1, 7, 8, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[10, 70, 20, IGNORED, IGNORED], [10, 70, 80, 90, 20]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_packed_batch():
    batch = MlmCollator(PAD, packing=True)([sample(1, 7, 8, 9, 2), sample(1, 7, 2)])  # the shortest comes first
    assert batch["input_ids"].tolist() == [[1, 7, 2, 1, 7, 8, 9, 2]]
    assert batch["labels"].tolist() == [[10, 70, 20, 10, 70, 80, 90, 20]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 8]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 5


@given(st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=9), min_size=1, max_size=6))
def test_packed_is_padded_without_padding(sequences):
    samples = [sample(*ids) for ids in sorted(sequences, key=len)]
    padded, packed = MlmCollator(PAD)(samples), MlmCollator(PAD, packing=True)(samples)
    real = padded["attention_mask"].bool()
    for name in ("input_ids", "labels"):
        assert padded[name][real].tolist() == packed[name][0].tolist()
    assert real.sum(1).tolist() == packed["cu_seqlens"].diff().tolist()
