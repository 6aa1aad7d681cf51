"""A corpus larger than memory for the exact trainer: token segments on disk, rewritten after every stage."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from tokenization import bpe_kernels as kernels
from tokenization.bpe_trainer import PairTable, Progress
from tokenization.tokenizer_files import write_text_atomically

SEGMENT_SHARE = 8  # a segment takes an eighth of the budget
BYTES_PER_POSITION = 24  # 5 island tokens of 2 bytes, begin and size of an island, 1.25 places of 4 bytes in the pool


class TokensOnDisk:
    """Token segments in a folder. `state.json` names the whole generation of files; it is replaced in one step, so a
    run that is killed at any moment goes on from the last stage.

    folder: work folder; needs about 2 bytes per base free at the peak. budget: bytes of memory for tokens and
    positions (the interpreter, the compiled code and the pair table come on top, less than 0.5 GB).
    """

    def __init__(self, folder: str | Path, budget: int, state: dict):
        self.folder = Path(folder)
        self.state = state
        self.positions = int((budget - budget // SEGMENT_SHARE) / BYTES_PER_POSITION)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        budget: int,
        blocks: Iterable[np.ndarray],
        source: dict,
        counts: Callable[[], dict] = dict,
    ) -> "TokensOnDisk":
        """Write the words of `blocks` (uint8 codes, a separator before each word) as the first generation.

        source: what the corpus was made of, JSON; `resume` compares it. counts: called when all blocks are read, for
        what was counted meanwhile; `state` keeps it.
        """
        folder = Path(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        store = cls(folder, budget, {"source": source, "generation": 0, "wide": False, "segments": 0, "merges": []})
        try:
            with _Generation(folder, 0) as generation:
                for segment in _fill_segments(blocks, budget // SEGMENT_SHARE):
                    generation.write(store.state["segments"], segment)
                    store.state["segments"] += 1
            store.state["counts"] = counts()
            store._save_state()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return store

    @classmethod
    def resume(cls, folder: str | Path, budget: int, source: dict) -> "TokensOnDisk | None":
        """Store of an interrupted run, or None when there is none that got past reading its input.

        Raises ValueError when the folder holds a run on another corpus or with other settings.
        """
        path = Path(folder) / "state.json"
        if not path.exists():
            return None
        state = json.loads(path.read_text())
        if state["source"] != source:
            differing = [key for key in source if state["source"].get(key) != source[key]]
            raise ValueError(
                f"{folder} holds an unfinished run with other {', '.join(differing)}; delete it to start over"
            )
        store = cls(folder, budget, state)
        store._remove_other_generations()
        return store

    def restore(self, progress: Progress) -> None:
        """Add the merges that the interrupted run had made."""
        for left, right, count in self.state["merges"][: len(progress.merges)]:
            progress.add(left, right, count)

    @property
    def wide(self) -> bool:
        return self.state["wide"]

    def arrays(self) -> Iterator[np.ndarray]:
        """The token arrays, one in memory at a time."""
        for number in range(self.state["segments"]):
            yield np.fromfile(self._segment(number), np.uint16 if self.wide else np.uint8)

    def widen(self, progress: Progress) -> None:
        self._rewrite(
            (kernels.widen(tokens, len(tokens))[: len(tokens)] for tokens in self.arrays()), progress, wide=True
        )

    def merge_dense(self, bits: int, lookup: np.ndarray, progress: Progress) -> None:
        def merged() -> Iterator[np.ndarray]:
            for tokens in self.arrays():
                yield tokens[: kernels.merge_dense(tokens, len(tokens), bits, lookup)]

        self._rewrite(merged(), progress)

    def merge_sparse(
        self, table: PairTable, wanted: np.ndarray, places: int, merge: Callable, progress: Progress
    ) -> None:
        islands, begins, sizes, of_segment = self._extract(table, wanted, places)
        pool = np.empty(max(self.positions, places) * 5 // 4, np.uint32)
        kernels.collect_positions(islands, len(islands), table.keys, table.starts.copy(), wanted, pool)
        merge(islands, pool)
        del pool
        self._rewrite(self._put_back(islands, begins, sizes, of_segment), progress)

    def _extract(self, table: PairTable, wanted: np.ndarray, places: int):
        islands = np.empty(5 * places + 1, np.uint16)
        islands[0] = kernels.SEPARATOR
        begins, sizes = np.empty(places, np.uint32), np.empty(places, np.uint32)
        used, number, of_segment = 1, 0, [0]
        for tokens in self.arrays():
            used, number = kernels.extract_islands(
                tokens, table.keys, table.starts, wanted, islands, used, begins, sizes, number
            )
            of_segment.append(number)
        return islands[:used], begins, sizes, of_segment

    def _put_back(self, islands, begins, sizes, of_segment) -> Iterator[np.ndarray]:
        place = 1
        for number, tokens in enumerate(self.arrays()):
            own = slice(of_segment[number], of_segment[number + 1])
            length, place = kernels.put_islands_back(tokens, islands, place, begins[own], sizes[own])
            yield tokens[:length]

    def _rewrite(self, segments: Iterable[np.ndarray], progress: Progress, wide: bool | None = None) -> None:
        with _Generation(self.folder, self.state["generation"] + 1) as generation:
            for number, segment in enumerate(segments):
                generation.write(number, segment)
        self.state["generation"] += 1
        self.state["wide"] = self.wide if wide is None else wide
        self.state["merges"] = progress.merges[: progress.done].tolist()
        self._save_state()

    def _save_state(self) -> None:
        write_text_atomically(self.folder / "state.json", json.dumps(self.state))
        self._remove_other_generations()

    def _segment(self, number: int) -> Path:
        return _Generation(self.folder, self.state["generation"]).path(number)

    def _remove_other_generations(self) -> None:
        own = _Generation(self.folder, self.state["generation"]).folder
        for folder in self.folder.glob("generation-*"):
            if folder != own:
                shutil.rmtree(folder)


class _Generation:
    """Folder of the segments after one stage; as a context it is removed again when its stage does not finish."""

    def __init__(self, folder: Path, number: int):
        self.folder = folder / f"generation-{number:05d}"

    def path(self, number: int) -> Path:
        return self.folder / f"segment-{number:05d}.tokens"

    def write(self, number: int, tokens: np.ndarray) -> None:
        with open(self.path(number), "wb") as file:
            file.write(tokens.data)

    def __enter__(self) -> "_Generation":
        self.folder.mkdir()
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _fill_segments(blocks: Iterable[np.ndarray], capacity: int) -> Iterator[np.ndarray]:
    """Group whole blocks into segments of about `capacity` codes, each closed by a separator."""
    pending, used = [], 0
    for block in blocks:
        if pending and used + len(block) > capacity:
            yield np.concatenate([*pending, [np.uint8(255)]])
            pending, used = [], 0
        pending.append(block)
        used += len(block)
    if pending:
        yield np.concatenate([*pending, [np.uint8(255)]])
