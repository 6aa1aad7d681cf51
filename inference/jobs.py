"""
Long jobs over many sequences: block by block, each written when it is done, so that nothing is computed twice.

The input is read twice: first to check all of it and to know how much there is, then to compute. Blocks follow from the
input alone, so the result does not depend on interruptions or on the number of processes. Finished blocks wait in
OUTPUT.parts and become OUTPUT at the end.
"""

import atexit
import contextlib
import csv
import datetime
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from corpus.fasta import FastaError
from inference.reading import SequenceInputError, SequenceRecord
from tokenization.locks import locked_folder
from tokenization.tokenizer_files import write_text_atomically
from training.classification_model import ModelError
from training.storage import StorageError, check_writable, writing_into

BLOCK_BASES = 1 << 18  # bp; a block ends with the record that reaches this
BLOCK_RECORDS = 4096
GROUP_ROWS, GROUP_BYTES = 1 << 16, 1 << 26  # the most of a Parquet row group: each costs as much as many rows
MATRIX_SUFFIXES = (".npy", ".safetensors")


class JobError(ValueError):
    """A job that cannot start or go on; the message says why and what to do."""


USER_ERRORS = (SequenceInputError, FastaError, JobError, ModelError, StorageError, MemoryError)


@contextlib.contextmanager
def said_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """
    Around a command: Ctrl-C, SIGTERM, and what the user can put right (`more` too), end it with one line and status 1.
    """

    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where this one stopped")
    except (*USER_ERRORS, OSError, *more) as error:
        sys.exit(f"error: {error}")
    finally:
        signal.signal(signal.SIGTERM, previous)


def check_files(output: str | Path, also: Iterable[Path], inputs: Iterable[str | Path | None], overwrite: bool):
    """
    Raise JobError when `output`, or a file that is written with it, is a folder, one of the inputs, or there already.
    Of the latter, those that an interrupted job of this output was to write are not in the way.
    """
    output = Path(output)
    also, inputs = list(also), [Path(path) for path in inputs if path]
    for path in (output, *also):
        if path.is_dir():
            raise JobError(f"{path} is a folder; choose another name")
        if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
            raise JobError(f"{path} is the input itself; choose another name")
    job = _parts(output) / "job.json"
    ours = json.loads(job.read_text()).get("files", []) if job.is_file() else []
    for path in [] if overwrite else (output, *also):
        if path.exists() and (path == output or os.path.abspath(path) not in ours):
            raise JobError(f"{path} already exists; choose another name or pass --overwrite")


def refuse_not_finite(places: list[str]):
    """Raise JobError when there are places with results like NaN; it names the first."""
    if places:
        more = f" (and {len(places) - 1:,} more)" if len(places) > 1 else ""
        raise JobError(
            f"{places[0]}{more}: the outputs are not finite; use a model whose weights are finite, and float32 or "
            "bfloat16 rather than --dtype float16"
        )


@dataclass(frozen=True)
class Survey:
    """What the first reading found: sequences, bp, letters N, bp and digest of each block, digest of all."""

    sequences: int
    bases: int
    ambiguous: int
    block_bases: list[int]
    block_digests: list[bytes]
    digest: str


def processes(cpu: bool) -> PartialState:
    """This process among those that accelerate launched; a process may wait a week for the others."""
    state = PartialState(cpu=cpu, timeout=datetime.timedelta(weeks=1))
    if state.num_processes > 1:
        atexit.register(torch.distributed.destroy_process_group)  # gloo aborts now and then when it is left
    return state


def blocks(records: Iterator[SequenceRecord], block_bases: int = BLOCK_BASES) -> Iterator[list[SequenceRecord]]:
    """Consecutive records, up to BLOCK_RECORDS or until block_bases are reached."""
    block, bases = [], 0
    for record in records:
        block.append(record)
        bases += _bases(record)
        if bases >= block_bases or len(block) == BLOCK_RECORDS:
            yield block
            block, bases = [], 0
    if block:
        yield block


def survey(records: Iterator[SequenceRecord], bases_per_block: int = BLOCK_BASES) -> Survey:
    """Read everything once; raises what the reader raises, before anything has been computed."""
    sequences = ambiguous = 0
    block_bases, digests = [], []
    records = tqdm(records, desc="checking the input", unit=" sequences", unit_scale=True, delay=2)
    for block in blocks(records, bases_per_block):
        for record in block:
            ambiguous += record.sequence.count(b"N") + (record.pair or b"").count(b"N")
        sequences += len(block)
        block_bases.append(sum(map(_bases, block)))
        digests.append(_digest(block))
    digest = hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
    return Survey(sequences, sum(block_bases), ambiguous, block_bases, digests, digest)


def _digest(block: list[SequenceRecord]) -> bytes:
    """Of all that the records hold but their places in the file."""
    digest = hashlib.blake2b(digest_size=16)
    for record in block:
        for field in fields(record):
            if field.name != "where":
                value = getattr(record, field.name)
                value = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(len(value).to_bytes(8, "little") + value)
    return digest.digest()


def run(
    output: str | Path,
    settings: dict,
    read: Callable[[], Iterator[SequenceRecord]],
    compute: Callable[[int, list[SequenceRecord]], Iterator[pyarrow.Table]],
    state: PartialState,
    overwrite: bool = False,
    block_bases: int = BLOCK_BASES,
    write_also: Callable[[Iterator[pyarrow.Table]], None] | None = None,
    also: Iterable[Path] = (),
) -> Survey:
    """
    Compute every block that is not there yet, then write the output (main process).

    Args:
        output: .parquet, .csv or .tsv with the tables' columns; .npy or .safetensors with their column "embedding" as a
            matrix, and OUTPUT.index.tsv beside it.
        settings: everything that the result depends on beside the sequences; JSON values. Not the size of a batch: a
            job that ran out of memory goes on with smaller ones.
        read: the records, from the start at every call.
        compute: tables of a block, given the number of its first record (from 0) and its records; with the columns
            "name" and "record" (that number) at least.
        state: of `processes`; process i of n computes the blocks i, i + n, ...
        block_bases: bp after which a block ends; fewer where a bp costs much.
        write_also: writes another file of all tables, before the output and again if that fails.
        also: the files that may be written beside the output, as given to `check_files`.

    Raises:
        JobError: the output exists; another job is writing it; an interrupted job with other settings is in the way;
            the records are others at the second reading; results that are not finite.
        training.storage.StorageError: the output cannot be written.
    """
    output = Path(output)
    check_writable(output.parent, "--output")
    _check_absent(output, overwrite)
    found = survey(read(), block_bases)
    _check_absent(output, overwrite)  # another job may have ended meanwhile
    parts = _parts(output)
    advice = "what was finished is kept; free space and start the same command again"
    with (
        writing_into(output.parent, lambda: advice),
        _alone(parts) if state.is_main_process else contextlib.nullcontext(),
    ):
        if state.is_main_process:
            counted = {key: value for key, value in asdict(found).items() if not key.startswith("block_")}
            sizes = {"block_bases": block_bases, "block_records": BLOCK_RECORDS}
            _start_or_resume(parts, {**settings, **counted, **sizes}, [os.path.abspath(path) for path in also])
        state.wait_for_everyone()
        _compute_blocks(parts, found, lambda: blocks(read(), block_bases), compute, state)
        state.wait_for_everyone()
        if state.is_main_process:
            paths = [_part(parts, number) for number in range(len(found.block_bases))]
            if write_also is not None:
                write_also(_tables(paths))
            _write_output(output, paths)
            shutil.rmtree(parts)
    state.wait_for_everyone()
    return found


def _check_absent(output: Path, overwrite: bool):
    if output.exists() and not overwrite:
        raise JobError(f"{output} already exists; choose another --output or pass --overwrite")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder of a job's parts, and keep a second job out of it. Inside, the folder may be removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder) as free:
        if not free:
            raise JobError(f"{folder}: another job is writing this output; wait until it has ended")
        yield


def _bases(record: SequenceRecord) -> int:
    return len(record.sequence) + len(record.pair or b"")


def _parts(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:08d}.parquet"


def _start_or_resume(folder: Path, settings: dict, files: list[str]):
    settings = json.loads(json.dumps(settings))
    file = folder / "job.json"
    if file.is_file():
        before = json.loads(file.read_text())
        before.pop("files", None)
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if changed and any(folder.glob("part-*.parquet")):
            shown = "; ".join(f"{key} was {before.get(key)!r}, now {settings.get(key)!r}" for key in changed)
            raise JobError(
                f"{folder} holds an interrupted job with other settings: {shown}. Delete that folder to start anew"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise JobError(f"{folder} is in the way: it is not a folder of an interrupted job; remove it")
    write_text_atomically(file, json.dumps({**settings, "files": files}, indent=2) + "\n")


def _compute_blocks(parts: Path, found: Survey, read_blocks, compute, state: PartialState):
    """Write the parts of this process that are missing."""
    mine = range(state.process_index, len(found.block_bases), state.num_processes)
    missing = [number for number in mine if not _part(parts, number).is_file()]
    total = sum(found.block_bases[number] for number in mine)
    done = total - sum(found.block_bases[number] for number in missing)
    options = {"unit": "bp", "unit_scale": True, "smoothing": 0.05, "disable": not state.is_main_process}
    with tqdm(total=total, initial=done, desc="computing", **options) as progress:
        first = 0
        for number, block in enumerate(read_blocks()):
            if not missing:
                break
            if number == missing[0]:
                if _digest(block) != found.block_digests[number]:
                    raise _changed(f"at or after {block[0].place()}, ")
                del missing[0]
                with _replacing(_part(parts, number)) as temporary:
                    _write_parquet(temporary, _finite(compute(first, block), first, block))
                progress.update(found.block_bases[number])
            first += len(block)
    if missing:
        raise _changed("")


def _changed(where: str) -> JobError:
    return JobError(f"{where}the input has changed since it was checked; leave it as it is while the command runs")


def _finite(tables: Iterator[pyarrow.Table], first: int, block: list[SequenceRecord]) -> Iterator[pyarrow.Table]:
    """The tables of a block; JobError when a number or a vector in them is not finite. Empty values are no numbers."""
    for table in tables:
        finite = np.ones(len(table), bool)
        for column in table.columns:
            if pyarrow.types.is_fixed_size_list(column.type):
                column = pyarrow.compute.list_flatten(column)
            if pyarrow.types.is_floating(column.type):
                of_column = pyarrow.compute.is_finite(column).fill_null(True).to_numpy()
                finite &= of_column.reshape(len(table), -1).all(axis=1)
        bad = [block[number - first] for number in np.unique(table["record"].to_numpy()[~finite])]
        refuse_not_finite([record.place() for record in bad])
        yield table


def _write_parquet(path: Path, tables: Iterator[pyarrow.Table]):
    """Tables of any sizes, joined to row groups of at most GROUP_ROWS and GROUP_BYTES; a larger table is one alone."""
    writer = None
    for table in _groups(tables):
        if writer is None:
            # Only names repeat; vectors do not compress.
            writer = pyarrow.parquet.ParquetWriter(path, table.schema, use_dictionary=["name"], compression="snappy")
        writer.write_table(table)
    writer.close()


def _groups(tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    group, rows, size = [], 0, 0
    for table in tables:
        if group and (rows + len(table) > GROUP_ROWS or size + table.nbytes > GROUP_BYTES):
            yield pyarrow.concat_tables(group)
            group, rows, size = [], 0, 0
        group.append(table)
        rows, size = rows + len(table), size + table.nbytes
    if group:
        yield pyarrow.concat_tables(group)


class _replacing:
    """A temporary path that becomes `path` when the block ends without an error, and is removed otherwise."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def _tables(paths: list[Path]) -> Iterator[pyarrow.Table]:
    for path in paths:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)


def _write_output(output: Path, paths: list[Path]):
    with _replacing(output) as temporary:
        if output.suffix == ".parquet":
            _write_parquet(temporary, _tables(paths))
        elif output.suffix in MATRIX_SUFFIXES:
            with _replacing(output.with_name(output.name + ".index.tsv")) as index:
                _write_matrix(temporary, index, paths, output.suffix)
                output.unlink(missing_ok=True)  # the index is renamed first: it never stands beside an older matrix
        else:
            options = pyarrow.csv.WriteOptions(delimiter="\t" if output.suffix == ".tsv" else ",")
            tables = _tables(paths)
            first = next(tables)
            with pyarrow.csv.CSVWriter(temporary, first.schema, write_options=options) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)


def _write_matrix(path: Path, index: Path, paths: list[Path], suffix: str):
    """Column "embedding" of all parts as one float32 matrix; name and rows of each record as TSV."""
    rows = sum(pyarrow.parquet.read_metadata(part).num_rows for part in paths)
    width = pyarrow.parquet.read_schema(paths[0]).field("embedding").type.list_size
    with open(path, "wb") as file, open(index, "w", newline="", encoding="utf-8") as index_file:
        if suffix == ".npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
        else:
            file.write(_safetensors_header(rows, width))
        lines = csv.writer(index_file, delimiter="\t", lineterminator="\n")
        lines.writerow(["name", "first_row", "rows"])
        first, row, record, name = 0, 0, -1, ""
        for table in _tables(paths):
            file.write(table["embedding"].combine_chunks().flatten().to_numpy().astype("<f4").tobytes())
            records = table["record"].to_numpy()
            for change in np.flatnonzero(np.diff(records, prepend=record)).tolist():
                if row + change:
                    lines.writerow([name, first, row + change - first])
                first, name = row + change, table["name"][change].as_py()
            row, record = row + len(records), records[-1]
        lines.writerow([name, first, row - first])


def _safetensors_header(rows: int, width: int) -> bytes:
    """Header of a safetensors file with the single float32 tensor `embedding` (rows, width)."""
    entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]}
    header = json.dumps({"embedding": entry}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header
