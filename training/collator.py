"""Batches for the encoder: padded, or packed end to end without any padding."""

import numpy as np
import torch

from training.masking import IGNORED


class MlmCollator:
    """
    Collates samples with `input_ids` and `labels`, int64 (length,) each.

    Args:
        pad_token_id: id of [PAD].
        packing: lay the sequences end to end instead of padding them.

    Returns (from a call):
        padded: input_ids, attention_mask, labels, all (batch, longest);
        packed, the shortest first: input_ids, labels (1, total_tokens), cu_seqlens int32 (batch + 1,), max_seqlen int.
    """

    def __init__(self, pad_token_id: int, packing: bool = False):
        self.pad_token_id = pad_token_id
        self.packing = packing

    def __call__(self, samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor | int]:
        return self._packed(samples) if self.packing else self._padded(samples)

    def _padded(self, samples):
        shape = (len(samples), max(len(sample["input_ids"]) for sample in samples))
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            input_ids[row, :length] = sample["input_ids"]
            labels[row, :length] = sample["labels"]
            attention_mask[row, :length] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(labels),
        }

    def _packed(self, samples):
        # Attention works on all sequences of one length at once; as neighbours they need no copy.
        samples = sorted(samples, key=lambda sample: len(sample["input_ids"]))
        lengths = [len(sample["input_ids"]) for sample in samples]
        return {
            "input_ids": torch.from_numpy(np.concatenate([sample["input_ids"] for sample in samples]))[None],
            "labels": torch.from_numpy(np.concatenate([sample["labels"] for sample in samples]))[None],
            "cu_seqlens": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
            "max_seqlen": max(lengths),
        }
