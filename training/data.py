"""
Pre-training data: sequences cut into windows of tokens once, kept on disk, masked when they are read.

What is notable:
- every base of a run of ACGT lands in exactly one window: a run is tokenised whole and its tokens are shared out
  evenly, nothing is truncated;
- tokens lie in one flat memory-mapped array, 2 bytes each for the usual vocabularies; processes share its pages;
- the folder is named by a hash of everything it depends on and renamed into place when complete;
- a sample's key carries the epoch, so the mask depends on (seed, epoch, sample) and on nothing else.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from corpus.sequences import reverse_complement
from tokenization.alphabet import acgt_runs
from training.masking import TokenMasker
from training.sources import SequenceFileError, heldout_bases, read_genomes, split_runs
from training.storage import writing_into

FORMAT_VERSION = 3
PIECE_LENGTH = 1 << 18  # bp encoded as one sequence: bounds memory for vocabularies that only `tokenizers` can encode
BATCH_LENGTH = 1 << 21  # bp handed to the encoder at once
NO_DIGEST = 0  # of sequences longer than PIECE_LENGTH
SPECIAL_TOKENS_PER_WINDOW = 2  # [CLS] and [SEP]

Place = tuple[str, int]  # split, number of the genome


@dataclass(frozen=True)
class DataSettings:
    """What the windows depend on, besides the files and the tokenizer."""

    max_seq_length: int = 128  # tokens, [CLS] and [SEP] included
    min_run_length: int = 50  # bp; shorter runs of ACGT are dropped
    validation_split_percentage: float = 5.0
    sequence_column: str = "sequence"

    def __post_init__(self):
        if self.max_seq_length <= SPECIAL_TOKENS_PER_WINDOW:
            raise ValueError(
                f"max_seq_length is {self.max_seq_length}; it must leave room for [CLS], [SEP] and a token"
            )
        if not 0 <= self.validation_split_percentage < 100:
            raise ValueError(
                f"validation_split_percentage is {self.validation_split_percentage}; it must lie from 0 to below 100"
            )


@dataclass(frozen=True)
class TokenStore:
    """
    Windows of tokens without special tokens: window i is `tokens[offsets[i] : offsets[i + 1]]`.

    `base_pairs` is what all windows hold together, in bp. `genomes` is the number of each window's genome: of its
    file, or of the `species` column of a Parquet file, in order of appearance.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    base_pairs: int
    genomes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, [CLS] and [SEP] included."""
        return np.diff(self.offsets) + SPECIAL_TOKENS_PER_WINDOW

    @property
    def base_pairs_per_token(self) -> float:
        """Mean bp of a token, [CLS] and [SEP] counted as tokens of 0 bp."""
        return self.base_pairs / (len(self.tokens) + SPECIAL_TOKENS_PER_WINDOW * len(self))


class MlmDataset(torch.utils.data.Dataset):
    """
    Masked windows. A key is (epoch, index, max_length in tokens or None), the last one or two left out at will; an
    index alone is of epoch 0 (evaluation: always the same mask). What is longer than max_length is cut at a place that
    depends on (seed, epoch, index).

    Args:
        store: the windows; anything with a length and token ids by index.
        limit: use at most this many, evenly spaced over the store.
        longest: tokens above which every window is cut; None when the store holds none that is longer.
    """

    def __init__(
        self,
        store: TokenStore,
        masker: TokenMasker,
        cls_id: int,
        sep_id: int,
        limit: int | None = None,
        longest: int | None = None,
    ):
        self.longest = longest
        self.store = store
        self.masker = masker
        self.cls_id = cls_id
        self.sep_id = sep_id
        count = len(store) if limit is None else min(limit, len(store))
        self.indices = None if count == len(store) else np.linspace(0, len(store) - 1, count).round().astype(np.int64)

    def __len__(self) -> int:
        return len(self.store) if self.indices is None else len(self.indices)

    def window(self, index: int) -> np.ndarray:
        """Unmasked ids with [CLS] and [SEP], int64 (length,)."""
        return self._between_special_tokens(self.store[index if self.indices is None else self.indices[index]])

    def _between_special_tokens(self, token_ids: np.ndarray) -> np.ndarray:
        return np.concatenate(([self.cls_id], token_ids, [self.sep_id])).astype(np.int64)

    def __getitem__(self, key: tuple | int) -> dict[str, np.ndarray]:
        epoch, index, max_length = (0, key, None) if isinstance(key, int) else (*key, None)[:3]
        window = self.window(index)
        max_length = min(max_length or len(window), self.longest or len(window))
        if len(window) > max_length:
            kept = max_length - SPECIAL_TOKENS_PER_WINDOW
            start = 1 + self.masker.random_place(epoch, index, len(window) - max_length + 1)
            window = self._between_special_tokens(window[start : start + kept])
        input_ids, labels = self.masker(window, epoch, index)
        return {"input_ids": input_ids, "labels": labels}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, [CLS] and [SEP] included."""
        return self.store.lengths if self.indices is None else self.store.lengths[self.indices]

    @property
    def genomes(self) -> np.ndarray:
        """Number of the genome of each window."""
        return self.store.genomes if self.indices is None else self.store.genomes[self.indices]


class EpochSampler(torch.utils.data.Sampler):
    """
    Yields (epoch, index) in an order that is a function of (seed, epoch).

    Each epoch is filled up to whole batches of `global_batch_size` with its own first samples: every process count
    and accumulation then takes the same samples in the same step.
    """

    def __init__(self, num_samples: int, global_batch_size: int, seed: int):
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.global_batch_size

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_samples)
        for index in np.resize(order, len(self)).tolist():
            yield epoch, index


def prepare_data(
    train_files: list[str],
    validation_files: list[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    cache_folder: str | Path,
    build: bool = True,
) -> tuple[TokenStore | None, TokenStore | None, dict]:
    """
    Tokenise the files into windows, or take them from an earlier run with the same files, tokenizer and settings.

    Without validation files a part of every training file is held out (`training.sources.heldout_bases`).

    Args:
        build: whether this process does the work; the others wait for it.

    Returns:
        Training windows, None without training files; held-out windows or None; a report: per split and
        file the bp read, dropped and used, the windows, the tokens, what was held out; per split the SHA-256 of its
        windows; how many sequences were held out whole and how many of them also stand in the training part.

    Raises:
        SequenceFileError, corpus.fasta.FastaError: a file that cannot be used, or a split without any window.
        training.storage.StorageError: the cache folder cannot be written to.
    """
    folder = Path(cache_folder) / _cache_key(train_files, validation_files, tokenizer, settings)
    with writing_into(cache_folder, lambda: "make room, or keep the tokenised data elsewhere with --data_cache_dir"):
        if not folder.exists() and build:
            _build(folder, train_files, validation_files, tokenizer, settings)
    while not folder.exists():
        time.sleep(0.2)
    report = json.loads((folder / "report.json").read_text())
    stores = {split: _load_store(folder, split, report) for split in report["splits"]}
    return stores.get("train"), stores.get("validation"), report


def _cache_key(train_files, validation_files, tokenizer, settings: DataSettings) -> str:
    def identity(path):
        if not Path(path).is_file():
            raise SequenceFileError(f"{path}: no such file")
        status = os.stat(path)
        return [str(Path(path).resolve()), status.st_size, status.st_mtime_ns]

    content = {
        "format": FORMAT_VERSION,
        "train": [identity(path) for path in train_files],
        "validation": [identity(path) for path in validation_files],
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "settings": asdict(settings),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _load_store(folder: Path, split: str, report: dict) -> TokenStore:
    return TokenStore(
        np.load(folder / f"{split}.tokens.npy", mmap_mode="r", allow_pickle=False),
        np.load(folder / f"{split}.offsets.npy", allow_pickle=False),
        report["splits"][split]["base_pairs"],
        np.load(folder / f"{split}.genomes.npy", mmap_mode="r", allow_pickle=False),
    )


def _build(folder: Path, train_files, validation_files, tokenizer, settings: DataSettings):
    if not folder.parent.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".building-{folder.name}-", dir=folder.parent))
    try:
        content = building / folder.name  # mkdtemp lets only the owner read
        content.mkdir()
        _write_splits(content, train_files, validation_files, tokenizer, settings)
        os.replace(content, folder)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for abandoned in folder.parent.glob(f".building-{folder.name}-*"):
        shutil.rmtree(abandoned, ignore_errors=True)


def _write_splits(folder: Path, train_files, validation_files, tokenizer, settings: DataSettings):
    held_out_percentage = 0.0 if validation_files else settings.validation_split_percentage
    plans = [(path, False, _scan(path, held_out_percentage, settings)) for path in train_files]
    plans += [(path, True, _scan(path, 100.0, settings)) for path in validation_files]
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    writers = {split: _WindowWriter(folder, split, dtype, settings) for split in ("train", "validation")}
    total = sum(int(plan["bases"].sum()) for _, _, plan in plans)
    with tqdm(total=total, unit="bp", unit_scale=True, desc="Tokenising", dynamic_ncols=True) as progress:
        runs = _runs_of_splits(plans, settings)
        for (split, genome), length, token_ids in _tokenise_runs(runs, tokenizer, dtype, progress):
            writers[split].add(token_ids, length, genome)
    splits = {split: writer.close() for split, writer in writers.items()}
    if train_files and not splits["train"]["windows"]:
        raise SequenceFileError(
            f"{', '.join(map(str, train_files))}: no run of ACGT of at least {settings.min_run_length} bp is left to "
            "train on; give more sequence, or lower --min_run_length"
        )
    if (validation_files or held_out_percentage) and not splits["validation"]["windows"]:
        raise SequenceFileError(
            f"{', '.join(map(str, validation_files or train_files))}: the held-out part has no run of ACGT of at "
            f"least {settings.min_run_length} bp; raise --validation_split_percentage, set it to 0 to train without "
            "evaluation, or give --validation_file"
        )
    splits = {split: counts for split, counts in splits.items() if counts["windows"]}
    files = [{"file": str(path), "validation_file": alone} | plan["report"] for path, alone, plan in plans]
    report = {
        "splits": splits,
        "files": files,
        "sha256": {split: writers[split].sha256.hexdigest() for split in splits},
        "held_out_sequences": _shared_sequences([plan for _, _, plan in plans]),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def _scan(path, percentage: float, settings: DataSettings) -> dict:
    """First pass over a file: check it, count its bases, plan the held-out part."""
    bases, digests, names = array("q"), array("Q"), []
    read = unambiguous = 0
    for name, sequence, _ in tqdm(
        read_genomes(path, settings.sequence_column), desc=f"Reading {Path(path).name}", unit=" sequences"
    ):
        lengths = [end - start for start, end in acgt_runs(sequence)]
        read += len(sequence)
        unambiguous += sum(lengths)
        bases.append(sum(length for length in lengths if length >= settings.min_run_length))
        digests.append(_strand_free_digest(sequence) if len(sequence) <= PIECE_LENGTH else NO_DIGEST)
        names.append(name)
    bases = np.array(bases, dtype=np.int64)
    heldout = heldout_bases(bases, percentage)
    report = {
        "sequences": len(bases),
        "base_pairs_read": read,
        "base_pairs_ambiguous": read - unambiguous,
        "base_pairs_in_short_runs": unambiguous - int(bases.sum()),
        "base_pairs_held_out": int(heldout.sum()),
        "held_out": _describe_heldout(names, bases, heldout),
    }
    return {"bases": bases, "digests": np.array(digests, dtype=np.uint64), "heldout": heldout, "report": report}


def _strand_free_digest(sequence: bytes) -> int:
    """A number that a sequence and its reverse complement share, and hardly any others."""
    content = min(sequence, reverse_complement(sequence))
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _shared_sequences(plans: list[dict]) -> dict[str, int]:
    """Sequences held out whole, and those of them that also stand in the training part, on either strand."""
    whole = [(plan["heldout"] == plan["bases"]) & (plan["bases"] > 0) for plan in plans]
    held_out = np.concatenate([plan["digests"][chosen] for plan, chosen in zip(plans, whole, strict=True)])
    training = [plan["digests"][(plan["heldout"] < plan["bases"])] for plan in plans]
    shared = np.isin(held_out, np.concatenate(training)) & (held_out != NO_DIGEST)
    return {"total": len(held_out), "also_in_training": int(shared.sum())}


def _describe_heldout(names: list[str], bases: np.ndarray, heldout: np.ndarray) -> str:
    whole = [names[i] for i in np.flatnonzero((heldout == bases) & (heldout > 0))]
    parts = [f"the last {heldout[i]:,} bp of {names[i]}" for i in np.flatnonzero((heldout < bases) & (heldout > 0))]
    if len(whole) > 10:
        whole = [f"{len(whole):,} of {len(names):,} sequences"]
    return ", ".join(whole + parts) or "nothing"


def _runs_of_splits(plans, settings: DataSettings) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Second pass: ((split, number of the genome), run of ACGT), in the order of the files."""
    numbers: dict[str, int] = {}
    for path, _, plan in plans:
        for (_, sequence, genome), heldout in zip(
            read_genomes(path, settings.sequence_column), plan["heldout"].tolist(), strict=True
        ):
            number = numbers.setdefault(genome, len(numbers))
            parts = split_runs(acgt_runs(sequence, settings.min_run_length), heldout)
            for split, runs in zip(("train", "validation"), parts, strict=True):
                for start, end in runs:
                    yield (split, number), sequence[start:end]


def _tokenise_runs(
    runs: Iterable[tuple[Place, bytes]], tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, progress: tqdm
) -> Iterator[tuple[Place, int, np.ndarray]]:
    """Yield (place, length in bp, token ids) of every run; runs are encoded in pieces, many pieces at once."""
    from tokenization.encoder import Encoder  # compiles or loads its loops: only for the process that builds

    encoder = Encoder(tokenizer.backend_tokenizer)
    done: list[np.ndarray] = []
    length = 0
    for batch in _piece_batches(runs):
        token_ids, offsets = encoder.encode_batch([piece for _, piece, _ in batch])
        for (place, piece, ends_run), start, end in zip(batch, offsets[:-1], offsets[1:], strict=True):
            done.append(token_ids[start:end].astype(dtype))
            length += len(piece)
            progress.update(len(piece))
            if ends_run:
                yield place, length, np.concatenate(done)
                done, length = [], 0


def _piece_batches(runs: Iterable[tuple[Place, bytes]]) -> Iterator[list[tuple[Place, bytes, bool]]]:
    """Lists of (place, piece of a run, whether the run ends here), about BATCH_LENGTH bp each."""
    batch, length = [], 0
    for place, run in runs:
        for start in range(0, len(run), PIECE_LENGTH):
            piece = run[start : start + PIECE_LENGTH]
            batch.append((place, piece, start + PIECE_LENGTH >= len(run)))
            length += len(piece)
            if length >= BATCH_LENGTH:
                yield batch
                batch, length = [], 0
    if batch:
        yield batch


class _WindowWriter:
    """Appends windows to `<split>.tokens.npy`; `close` writes the offsets and returns the counts."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, settings: DataSettings):
        self.folder, self.split, self.dtype = folder, split, dtype
        self.window_length = settings.max_seq_length - SPECIAL_TOKENS_PER_WINDOW
        self.min_run_length = settings.min_run_length
        self.offsets = array("q", [0])
        self.genomes = array("i")
        self.base_pairs = self.short = 0
        self.sha256 = hashlib.sha256(dtype.str.encode())
        self.file = open(folder / f"{split}.tokens.npy", "wb")
        self._write_header(0)

    def _write_header(self, count: int):
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, token_ids: np.ndarray, length: int, genome: int):
        """Share the tokens of a run of `length` bp of a genome out over windows of nearly equal length."""
        if length < self.min_run_length:  # what the border of the held-out part cut off
            self.short += length
            return
        content = token_ids.tobytes()
        self.file.write(content)
        self.sha256.update(content)
        windows = -(-len(token_ids) // self.window_length)
        ends = np.arange(1, windows + 1, dtype=np.int64) * len(token_ids) // windows
        self.offsets.extend((self.offsets[-1] + ends).tolist())
        self.genomes.extend([genome] * windows)
        self.base_pairs += length

    def close(self) -> dict[str, int]:
        count = self.offsets[-1]
        header_length = self.file.tell() - count * self.dtype.itemsize
        self.file.seek(0)
        self._write_header(count)  # numpy leaves room in a header for the first axis to grow
        if self.file.tell() != header_length:
            raise RuntimeError(f"the header of {self.file.name} changed its length from {header_length} bytes")
        self.file.close()
        for name, values in (("offsets", self.offsets), ("genomes", self.genomes)):
            values = np.array(values, dtype=np.int64 if name == "offsets" else np.int32)
            np.save(self.folder / f"{self.split}.{name}.npy", values, allow_pickle=False)
            self.sha256.update(values.tobytes())
        return {
            "windows": len(self.offsets) - 1,
            "tokens": count,
            "base_pairs": self.base_pairs,
            "base_pairs_cut_off": self.short,
        }
