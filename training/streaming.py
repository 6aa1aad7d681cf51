"""
Training sequences read from Parquet shards while training: nothing is tokenised beforehand or kept on disk.

What is notable:
- a row group is read, encoded and kept as long as its rows are needed;
- an epoch is a permutation of the row groups and of the rows inside each, drawn from (seed, epoch); a step takes its
  sequences from several places of the epoch (lanes), so that neighbours in a genome do not share a step;
- each process reads its own lanes, so that nodes share the reading; what a step consists of does not depend on them.
"""

import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable

import numpy as np
import pyarrow
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from tokenization.alphabet import acgt_runs, normalize
from training.sources import SequenceFileError

logger = logging.getLogger(__name__)

MOST_LANES = 16


def lanes_of(global_batch_size: int) -> int:
    """Places of an epoch that a step reads from: the most that share a global batch evenly."""
    return math.gcd(global_batch_size, MOST_LANES)


class ParquetStore:
    """
    Token ids of the rows of Parquet files, by index: of each row its longest run of A, C, G and T, however short it is,
    special tokens left out. The place of a row without a base is taken by another one of its row group.

    Args:
        files: their rows are numbered one file after the other.
        column: which holds the sequences.
        kept: row groups kept in memory, encoded.

    Raises:
        SequenceFileError: a file that cannot be read, has no such column, or no rows; a row that is no DNA; a row group
            without a base.
    """

    def __init__(self, files: list[str], column: str, tokenizer: PreTrainedTokenizerBase, kept: int):
        self.files = files
        self.column = column
        self.tokenizer = tokenizer
        self.kept = kept
        self.groups = [(path, group) for path in files for group in range(len(self._row_counts(path)))]
        self.sizes = np.array([rows for path in files for rows in self._row_counts(path)], dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        if not len(self):
            raise SequenceFileError(f"{', '.join(files[:3])}: no rows to train on")
        self._encoder = None
        self._group = functools.lru_cache(kept)(self._read_group)
        token_ids, offsets, base_pairs = self._group(int(np.argmax(self.sizes)))
        self.base_pairs_per_token = base_pairs / (len(token_ids) + 2 * (len(offsets) - 1))

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __getitem__(self, index: int) -> np.ndarray:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        token_ids, offsets, _ = self._group(number)
        row = index - int(self.starts[number])
        return token_ids[offsets[row] : offsets[row + 1]].astype(np.int64)

    def __getstate__(self):  # for data workers that are spawned
        return {name: value for name, value in vars(self).items() if name not in ("_group", "_encoder")}

    def __setstate__(self, state):
        vars(self).update(state, _encoder=None)
        self._group = functools.lru_cache(self.kept)(self._read_group)

    def report(self) -> dict:
        """What is known without reading: rows, and bp per token measured on one row group."""
        return {"windows": len(self), "files": len(self.files), "base_pairs_per_token": self.base_pairs_per_token}

    def sha256(self) -> str:
        """Of what is known of the files without reading them: their sizes in bytes and the rows of their groups."""
        known = [[os.path.getsize(path), self._row_counts(path)] for path in self.files]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @functools.cache  # noqa: B019  one small list per file, as long as the store lives
    def _row_counts(self, path: str) -> list[int]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if self.column not in names:
                    raise SequenceFileError(
                        f"{path}: no column {self.column!r}; the columns are {', '.join(names)}. "
                        "Name the one with --sequence_column"
                    )
                return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise SequenceFileError(f"{path}: not a readable Parquet file ({error})") from None

    def _read_group(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        from tokenization.encoder import Encoder  # compiles or loads its loops

        if self._encoder is None:
            self._encoder = Encoder(self.tokenizer.backend_tokenizer)
        path, group = self.groups[number]
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                column = file.read_row_group(group, columns=[self.column]).column(0)
        except (pyarrow.ArrowException, OSError) as error:
            raise SequenceFileError(f"{path}: not a readable Parquet file ({error})") from None
        sequences = [
            self._longest_run(value, f"{path}, row group {group}, row {i + 1}") for i, value in enumerate(column)
        ]
        found = [sequence for sequence in sequences if sequence]
        if not found:
            raise SequenceFileError(f"{path}, row group {group}: no A, C, G or T in any row")
        if len(found) < len(sequences):  # a function of the file: every process finds the same
            empty = len(sequences) - len(found)
            message = "%s, row group %d: %d rows hold no A, C, G or T; other rows of the group take their place"
            logger.warning(message, path, group, empty)
            sequences = [sequence or found[i % len(found)] for i, sequence in enumerate(sequences)]
        token_ids, offsets = self._encoder.encode_batch(sequences)
        return token_ids, offsets, sum(map(len, sequences))

    @staticmethod
    def _longest_run(value: pyarrow.Scalar, place: str) -> bytes:
        letters = value.as_py()
        if not isinstance(letters, str | bytes):
            raise SequenceFileError(f"{place}: {letters!r} is no sequence")
        try:
            letters = normalize(letters)
        except ValueError as error:
            raise SequenceFileError(f"{place}: {error}") from None
        start, end = max(acgt_runs(letters), key=lambda run: run[1] - run[0], default=(0, 0))
        return letters[start:end]


def streaming_order(store: ParquetStore, seed: int, shuffle: bool) -> Callable[[int], "_GroupedOrder"]:
    """Order of an epoch: a permutation of row groups and of rows inside each, or as the files hold them."""
    return functools.partial(_GroupedOrder, store, seed, shuffle)


class _GroupedOrder:
    """Indices of rows by their position in the epoch; positions are given as an array."""

    def __init__(self, store: ParquetStore, seed: int, shuffle: bool, epoch: int):
        self.store, self.key, self.shuffle = store, [seed, epoch], shuffle
        groups = np.arange(len(store.sizes))
        self.groups = self._generator(0).permutation(groups) if shuffle else groups
        sizes = store.sizes[self.groups]
        self.starts = np.cumsum(sizes) - sizes
        self._rows = functools.lru_cache(2 * store.kept)(self._permuted_rows)

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, number, 2]))

    def _permuted_rows(self, group: int) -> np.ndarray:
        rows = np.arange(self.store.sizes[group])
        rows = self._generator(group + 1).permutation(rows) if self.shuffle else rows
        return rows + self.store.starts[group]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.starts, positions, side="right") - 1
        indices = np.empty_like(positions)
        for place in np.unique(places):
            here = places == place
            indices[here] = self._rows(int(self.groups[place]))[positions[here] - self.starts[place]]
        return indices
