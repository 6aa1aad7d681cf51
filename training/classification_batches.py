"""
From labelled sequences to batches: tokens are made when a sample is drawn, so that augmentation may change the letters.

Random choices are functions of (seed, epoch, row): a resumed run draws the same ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from inference.reading import reverse_complement
from training.classification_data import Examples
from training.data import EpochSampler

LENGTH_CLASSES_PER_DOUBLING = 2  # sequences whose lengths differ by less than 40 % may share a batch


class TooLongError(ValueError):
    """A sequence that the model cannot read whole; the message names the row and what to do."""


@dataclass(frozen=True)
class View:
    """
    One way of reading every sequence of an evaluation; outputs of several are averaged.

    Attributes:
        reverse: read the other strand (of both sequences of a pair).
        variant: 0 for the usual tokens; another number for tokens that begin anew at random boundaries, too.
        cut_probability: chance of each boundary, where variant is not 0.
    """

    reverse: bool = False
    variant: int = 0
    cut_probability: float = 0.0

    def read(self, sequences: list[bytes], row: int) -> tuple[list[bytes], list[tuple[int, ...]]]:
        """The sequences of a row as this view reads them, and where in bp their tokens begin anew."""
        if self.reverse:
            sequences = [reverse_complement(sequence) for sequence in sequences]
        if not self.variant:
            return sequences, [()] * len(sequences)
        rng = np.random.Generator(np.random.Philox(key=[self.variant, row]))
        return sequences, [random_cuts(len(sequence), self.cut_probability, rng) for sequence in sequences]


def views_of(both_strands: bool, tokenisations: int, cut_probability: float) -> tuple[View, ...]:
    """Every tokenisation of the given strand, or of both; the first view reads the row as it stands."""
    return tuple(
        View(reverse, variant, cut_probability)
        for variant in range(tokenisations)
        for reverse in (False, True)[: 1 + both_strands]
    )


class SequenceTokenizer:
    """
    Token ids of a sequence or a pair, with special tokens, by any tokenizer of transformers.

    Args:
        tokenizer: of the model.
        text: from letters to what the tokenizer reads; DNABERT reads k-mers with blanks between them.
        max_length: tokens that the model can read; None for any number.
        truncate: cut longer sequences at the end instead of raising.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: Callable[[str], str] = str,
        max_length: int | None = None,
        truncate: bool = False,
    ):
        self.tokenizer = tokenizer
        self.text = text
        self.max_length = max_length
        self.truncate = truncate

    def tokens(
        self, sequences: list[bytes], cuts: Sequence[Sequence[int]], limit: int | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(input_ids, token_type_ids or None) of one or two sequences, cut to `limit` tokens."""
        texts = [self.text(sequence.decode()) for sequence in sequences]
        encoded = self.tokenizer(*texts, truncation=limit is not None, max_length=limit)
        types = encoded.get("token_type_ids") if len(sequences) == 2 else None
        return np.asarray(encoded["input_ids"]), None if types is None else np.asarray(types)

    def encode(
        self, sequences: list[bytes], cuts: Sequence[Sequence[int]] = ((), ()), where: str = "a sequence"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """
        (input_ids, token_type_ids) of one sequence or a pair; token_type_ids only for pairs, and only where the
        tokenizer makes them.

        Args:
            cuts: for each sequence, positions in bp at which a new token must begin (StrandBERT only).
            where: names the row in errors.

        Raises:
            TooLongError: more than max_length tokens, and truncate is False.
        """
        ids, types = self.tokens(sequences, cuts, None)
        if self.max_length is None or len(ids) <= self.max_length:
            return ids, types
        if not self.truncate:
            raise TooLongError(
                f"{where}: {len(ids):,} tokens, more than the {self.max_length:,} that fit; add --truncate to cut the "
                "ends of such sequences off"
            )
        return self.tokens(sequences, cuts, self.max_length)


class StrandBertTokenizer(SequenceTokenizer):
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP], by the fast encoder of `tokenization.encoder`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, truncate: bool = False):
        super().__init__(tokenizer, max_length=max_length, truncate=truncate)
        from tokenization.encoder import Encoder  # compiles or loads its loops

        self.encoder = Encoder(tokenizer.backend_tokenizer)

    def tokens(
        self, sequences: list[bytes], cuts: Sequence[Sequence[int]], limit: int | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        encoded = [self._ids(sequence, at) for sequence, at in zip(sequences, cuts, strict=False)]
        if limit is not None:
            encoded = _shortened(encoded, limit - len(encoded) - 1)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = np.concatenate([[cls], *(part for tokens in encoded for part in (tokens, [sep]))])
        if len(encoded) == 1:
            return ids, None
        return ids, np.repeat([0, 1], [len(encoded[0]) + 2, len(encoded[1]) + 1])

    def _ids(self, letters: bytes, cuts: Sequence[int]) -> np.ndarray:
        ends = [0, *cuts, len(letters)]
        pieces = [letters[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
        return self.encoder.encode_batch(pieces)[0].astype(np.int64)


@dataclass(frozen=True)
class Augmentation:
    """
    Random changes of training samples.

    Attributes:
        reverse_complement: read either strand with probability one half.
        cut_probability: chance that a boundary between two bases ends a token; varies the tokens of the same letters.
        crop: most bp that are left off at each end.
    """

    reverse_complement: bool = False
    cut_probability: float = 0.0
    crop: int = 0


class SequenceDataset(torch.utils.data.Dataset):
    """
    Samples of one split: dicts of input_ids, label and, for pairs, token_type_ids.

    Args:
        augmentation, seed: random changes; None reads the rows as they are, as do changes that leave too many tokens.
    """

    def __init__(
        self, examples: Examples, tokenizer: SequenceTokenizer, augmentation: Augmentation | None = None, seed: int = 0
    ):
        self.examples = examples
        self.tokenizer = tokenizer
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """The sample (epoch, row)."""
        epoch, row = key
        if self.augmentation is None:
            return self.sample(row)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (epoch << 32) + row]))
        sequences = [crop(sequence, self.augmentation.crop, rng) for sequence in self.examples.row(row)]
        if self.augmentation.reverse_complement and rng.integers(2):
            sequences = [reverse_complement(sequence) for sequence in sequences]
        cuts = [random_cuts(len(sequence), self.augmentation.cut_probability, rng) for sequence in sequences]
        try:
            return self._sample(row, sequences, cuts)
        except TooLongError:  # changed, it has more tokens than as it stands
            return self.sample(row)

    def sample(self, row: int, view: View | None = None) -> dict:
        """A row as a view reads it, not augmented."""
        return self._sample(row, *(view or View()).read(self.examples.row(row), row))

    def check_lengths(self, views: Sequence[View] = (View(),)):
        """Raise TooLongError for the first row that the model cannot read whole."""
        if self.tokenizer.max_length is not None and not self.tokenizer.truncate:
            for row in tqdm(range(len(self)), desc="looking for long rows", unit="row", disable=None, delay=3):
                for view in views:
                    self.sample(row, view)

    def _sample(self, row: int, sequences: list[bytes], cuts: list[tuple[int, ...]]) -> dict:
        ids, types = self.tokenizer.encode(sequences, cuts, self.examples.where[row])
        sample = {"input_ids": ids, "label": self.examples.labels[row]}
        return sample if types is None else sample | {"token_type_ids": types}


def _shortened(encoded: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """The first tokens of one or two sequences, `limit` in all; the longer one is cut first."""
    if len(encoded) == 1:
        return [encoded[0][:limit]]
    keep = min(len(encoded[0]), max(limit - len(encoded[1]), (limit + 1) // 2))
    return [encoded[0][:keep], encoded[1][: limit - keep]]


def random_cuts(length: int, probability: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Boundaries inside a sequence of `length` bp, each taken with this probability."""
    if not probability or length < 2:
        return ()
    return tuple((np.flatnonzero(rng.random(length - 1) < probability) + 1).tolist())


def crop(sequence: bytes, most: int, rng: np.random.Generator) -> bytes:
    """The sequence without up to `most` bp at each end; at least half of it stays."""
    if not most:
        return sequence
    start, end = rng.integers(0, min(most, len(sequence) // 4) + 1, size=2)
    return sequence[start : len(sequence) - end]


class LengthBucketSampler(EpochSampler):
    """
    (epoch, row) in random order, rows of similar length in the same global batch.

    Where all rows are about equally long this is `EpochSampler`'s order. The batches of an epoch come in random order.
    """

    def __init__(self, lengths: np.ndarray, global_batch_size: int, seed: int):
        super().__init__(len(lengths), global_batch_size, seed)
        self.classes = np.floor(np.log2(np.maximum(lengths, 1)) * LENGTH_CLASSES_PER_DOUBLING).astype(int)
        if self.classes.max() - self.classes.min() <= 1:  # 101 bp beside 100 bp
            self.classes[:] = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        drawn = list(super().__iter__())
        order = sorted(range(len(drawn)), key=lambda place: self.classes[drawn[place][1]])  # stable: random within
        batches = np.array(order).reshape(-1, self.global_batch_size)
        if self.classes.max() > self.classes.min():
            rng = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 63) + self.epoch]))
            batches = batches[rng.permutation(len(batches))]
        for place in batches.ravel().tolist():
            yield drawn[place]


class ClassificationCollator:
    """
    Batches of samples.

    Args:
        tokenizer: for the padding token and side.
        packed: lay the sequences end to end (StrandBERT) instead of padding them.
        with_mask: whether the model reads an attention_mask.

    Returns (from a call):
        labels (batch,) or (batch, outputs), and
        packed: input_ids and token_type_ids (1, total_tokens), cu_seqlens int32 (batch + 1,), max_seqlen int;
        padded: input_ids, token_type_ids and attention_mask (batch, longest).
        token_type_ids only for pairs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, packed: bool, with_mask: bool = True):
        self.pad_token_id = tokenizer.pad_token_id
        self.pad_left = tokenizer.padding_side == "left"
        self.packed = packed
        self.with_mask = with_mask

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | int]:
        rows = {name: [sample[name] for sample in samples] for name in samples[0] if name != "label"}
        labels = torch.from_numpy(np.stack([sample["label"] for sample in samples]))
        lengths = [len(ids) for ids in rows["input_ids"]]
        if self.packed:
            batch = {name: torch.from_numpy(np.concatenate(values))[None] for name, values in rows.items()}
            boundaries = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
            return batch | {"cu_seqlens": boundaries, "max_seqlen": max(lengths), "labels": labels}
        batch = {
            name: self._grid(values, self.pad_token_id if name == "input_ids" else 0) for name, values in rows.items()
        }
        if self.with_mask:
            batch["attention_mask"] = self._grid([np.ones(length, dtype=np.int64) for length in lengths], 0)
        return batch | {"labels": labels}

    def _grid(self, rows: list[np.ndarray], fill: int) -> torch.Tensor:
        grid = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
        for line, row in zip(grid, rows, strict=True):
            if self.pad_left:
                line[len(line) - len(row) :] = row
            else:
                line[: len(row)] = row
        return torch.from_numpy(grid)


def evaluation_batches(lengths: np.ndarray, base_pairs: int) -> list[list[int]]:
    """Rows by descending length in batches of at most `base_pairs` bp, padding counted; a longer row stands alone."""
    batches, batch = [], []
    for row in np.argsort(-lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[batch[0]] > base_pairs:
            batches.append(batch)
            batch = []
        batch.append(row)
    return [*batches, batch] if batch else batches
