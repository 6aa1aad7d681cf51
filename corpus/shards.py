"""Parquet shards: whole or absent, the same bytes for the same rows, ordered by tokens where asked for."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUP_BASES = 1 << 24  # bp in a row group: bounds the memory of writer and reader
MOST_TABLES = 1000  # kept before they are joined: one takes about 10 kB beside its rows


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ShardWriter:
    """
    Writes tables to `folder`/`stem`-0000.parquet, -0001 and so on, each of about `shard_bases` bp.

    A shard is written in `temporary` (same disk) and renamed when it is complete. Small tables are gathered into row
    groups. With `by_tokens` rows are kept on disk until `close` and written in ascending number of token ids, equal
    ones in the order they came in. `files` describes the finished shards.
    """

    def __init__(self, folder: Path, temporary: Path, stem: str, shard_bases: int, by_tokens: bool = False):
        self.folder, self.temporary, self.stem, self.shard_bases = folder, temporary, stem, shard_bases
        self.files: list[dict] = []
        self.rows = self.bases = self.tokens = 0
        self._pending: list[pa.Table] = []
        self._pending_bases = 0
        self._writer: pq.ParquetWriter | None = None
        self._shard_rows = self._shard_bases = 0
        self._spool = _Spool(temporary / f"{folder.name}-{stem}.arrow") if by_tokens else None
        for directory in (folder, temporary):
            directory.mkdir(parents=True, exist_ok=True)

    def write(self, table: pa.Table, bases: int):
        """Append rows that hold `bases` bp."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self.bases += bases
        if "input_ids" in table.column_names:
            self.tokens += sum(len(chunk.values) for chunk in table["input_ids"].chunks)
        if self._spool:
            self._spool.write(table)
        else:
            self._gather(table, bases)

    def close(self):
        """Write what is left."""
        if self._spool:
            for table in self._spool.ordered():
                self._gather(table, _bases(table))
            self._spool.remove()
        self._flush()
        self._finish_shard()

    def abort(self):
        """Leave no unfinished file behind."""
        _close(self._writer)
        self._writer = None
        self._partial.unlink(missing_ok=True)
        if self._spool:
            self._spool.remove()

    def remove_stale(self):
        """Remove shards of the same stem that an earlier try finished and this one, which is closed, did not make."""
        made = {Path(file["file"]).name for file in self.files}
        for path in self.folder.glob(f"{self.stem}-*.parquet"):
            if path.name not in made:
                path.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"{self.stem}-{len(self.files):04d}.parquet"

    @property
    def _partial(self) -> Path:
        return self.temporary / f"{self.folder.name}-{self._name}"

    def _gather(self, table: pa.Table, bases: int):
        self._pending.append(table)
        self._pending_bases += bases
        if len(self._pending) == MOST_TABLES:
            self._pending = [pa.concat_tables(self._pending).combine_chunks()]
        if self._pending_bases >= min(GROUP_BASES, self.shard_bases):
            self._flush()
            if self._shard_bases >= self.shard_bases:
                self._finish_shard()

    def _flush(self):
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            self._writer = _parquet_writer(self._partial, table.schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._shard_rows += table.num_rows
        self._shard_bases += self._pending_bases
        self._pending, self._pending_bases = [], 0

    def _finish_shard(self):
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        partial, path = self._partial, self.folder / self._name
        self.files.append(
            {
                "file": f"{self.folder.name}/{self._name}",
                "sequences": self._shard_rows,
                "bases": self._shard_bases,
                "bytes": partial.stat().st_size,
                "sha256": file_sha256(partial),
            }
        )
        os.replace(partial, path)
        self._shard_rows = self._shard_bases = 0


def _parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """DNA and coordinates do not repeat and need no dictionary and no statistics; names do."""
    names = [field.name for field in schema if field.type == pa.string() and field.name != "sequence"]
    return pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=1, use_dictionary=names, write_statistics=False
    )


def _close(writer):
    """Close a writer whose file is not wanted; closing writes, and the disk may be full."""
    if writer is not None:
        with suppress(OSError):
            writer.close()


def _bases(table: pa.Table) -> int:
    return pc.sum(pc.binary_length(table["sequence"])).as_py()


class _Spool:
    """Tables kept in a file and given back in ascending number of token ids; memory holds one number per row."""

    def __init__(self, path: Path):
        self.path = path
        self._writer = None
        self._lengths: list[np.ndarray] = []

    def write(self, table: pa.Table):
        if self._writer is None:
            self._writer = pa.ipc.new_file(self.path, table.schema)
        for batch in table.to_batches():
            self._writer.write_batch(batch)
            self._lengths.append(pc.list_value_length(batch["input_ids"]).to_numpy())

    def ordered(self):
        if self._writer is None:
            return
        self._writer.close()
        lengths = np.concatenate(self._lengths)
        first_rows = np.cumsum([0, *map(len, self._lengths)])
        order = np.argsort(lengths, kind="stable")
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            rows = max(1, len(order) * GROUP_BASES // max(1, self.path.stat().st_size))
            for begin in range(0, len(order), rows):
                yield self._take(reader, first_rows, order[begin : begin + rows])

    @staticmethod
    def _take(reader, first_rows: np.ndarray, rows: np.ndarray) -> pa.Table:
        """Rows by number, from the batches that hold them, in the order given."""
        ascending = np.sort(rows)
        bounds = np.searchsorted(ascending, first_rows)
        parts = [
            reader.get_batch(i).take(pa.array(ascending[bounds[i] : bounds[i + 1]] - first_rows[i]))
            for i in range(len(first_rows) - 1)
            if bounds[i + 1] > bounds[i]
        ]
        place = pa.array(np.searchsorted(ascending, rows))
        return pa.Table.from_batches(parts).combine_chunks().take(place)

    def remove(self):
        _close(self._writer)
        self.path.unlink(missing_ok=True)
