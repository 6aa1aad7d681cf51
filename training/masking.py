"""
Masking for masked-language modelling, without state: the random stream is a function of (seed, epoch, sample).

A sample gets the same mask in any batch, worker, process and order, so an interrupted run resumes exactly and any
number of processes trains on the same data.
"""

from collections.abc import Iterable

import numpy as np

IGNORED = -100  # label of a position that is not predicted


class TokenMasker:
    """
    Chooses every ordinary token independently with `mlm_probability` (DNABERT-2 section 3.3, dnaGrinder section 6.2).

    Of the chosen tokens 80 % become [MASK], 10 % a random ordinary token, 10 % stay (BERT). Special tokens, [UNK]
    included, are never chosen and never drawn as replacement. A sample in which chance chose nothing gets one target.

    Args:
        vocab_size: number of token ids of the tokenizer.
        special_ids: ids that are never targets nor replacements; `mask_token_id` among them.
        mlm_probability, mask_replace_prob, random_replace_prob: as in transformers' collator.
        seed: selects the family of random streams.

    Raises:
        ValueError: a probability outside its range, or no ordinary token in the vocabulary.
    """

    def __init__(
        self,
        vocab_size: int,
        mask_token_id: int,
        special_ids: Iterable[int],
        seed: int,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
    ):
        if not 0 < mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {mlm_probability}; it must lie above 0 and at most at 1")
        if min(mask_replace_prob, random_replace_prob) < 0 or mask_replace_prob + random_replace_prob > 1:
            raise ValueError(
                f"mask_replace_prob {mask_replace_prob} and random_replace_prob {random_replace_prob} must not be "
                "negative, nor exceed 1 together"
            )
        self.is_ordinary = np.ones(vocab_size, dtype=bool)
        self.is_ordinary[[*special_ids, mask_token_id]] = False
        self.ordinary_ids = np.flatnonzero(self.is_ordinary)
        if not len(self.ordinary_ids):
            raise ValueError("the vocabulary holds special tokens only; there is nothing to predict")
        self.mask_token_id = mask_token_id
        self.seed = seed
        self.mlm_probability = mlm_probability
        self.mask_replace_prob = mask_replace_prob
        self.random_replace_prob = random_replace_prob

    def __call__(self, input_ids: np.ndarray, epoch: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Mask one sample.

        Args:
            input_ids: (length,) ids with special tokens; left unchanged.

        Returns:
            Masked ids and labels, both int64 (length,); labels are -100 except at targets.
        """
        choice, action, replacement = self._uniform(epoch, sample, len(input_ids))
        candidates = self.is_ordinary[input_ids]
        chosen = candidates & (choice < self.mlm_probability)
        if not chosen.any() and candidates.any():
            chosen[np.where(candidates, choice, 2.0).argmin()] = True
        labels = np.where(chosen, input_ids, IGNORED).astype(np.int64)
        to_mask = chosen & (action < self.mask_replace_prob)
        to_random = chosen & ~to_mask & (action < self.mask_replace_prob + self.random_replace_prob)
        masked = np.where(to_mask, self.mask_token_id, input_ids).astype(np.int64)
        drawn = self.ordinary_ids[(replacement * len(self.ordinary_ids)).astype(np.int64)]
        return np.where(to_random, drawn, masked), labels

    def random_place(self, epoch: int, sample: int, places: int) -> int:
        """A number from 0 to places - 1 that depends on (seed, epoch, sample)."""
        bits = np.random.Philox(key=[self.seed, epoch], counter=[0, 0, sample, 1])
        return int((int(bits.random_raw()) * places) >> 64)

    def _uniform(self, epoch: int, sample: int, length: int) -> np.ndarray:
        """(3, length) numbers in [0, 1), from raw bits, whose stream numpy promises never to change."""
        bits = np.random.Philox(key=[self.seed, epoch], counter=[0, 0, sample, 0])
        return (bits.random_raw(3 * length) >> np.uint64(11)).reshape(3, length) * 2.0**-53
