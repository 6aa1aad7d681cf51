"""Files that users download, each in a folder of its own within the demo's folder, and the sweep of that folder."""

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
from gradio.utils import get_upload_folder

MOST_BYTES = 500_000_000  # of all files together
FRESH = 60  # seconds; a file that was changed since may be in use


def _place(name: str) -> Path:
    cache = Path(get_upload_folder())
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=cache)) / name


def write_text(name: str, text: str) -> str:
    """Path of a new file of that name."""
    path = _place(name)
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_parquet(name: str, table: pyarrow.Table) -> str:
    """Path of a new Parquet file of that name."""
    path = _place(name)
    pyarrow.parquet.write_table(table, path)
    return str(path)


def sweep(folder: Path, age: float, most_bytes: int = MOST_BYTES):
    """
    Remove files that were last changed more than `age` seconds ago, and folders that have been empty as long; then, the
    oldest first, files until the rest has `most_bytes`, but none of the last minute.
    """
    before, files = time.time() - age, []
    for place, _, names in os.walk(folder, topdown=False):
        for path in (*(Path(place, name) for name in names), Path(place)):
            with contextlib.suppress(OSError):  # gone meanwhile, or a folder that is not empty
                found = path.lstat()
                if path != folder and found.st_mtime <= before:
                    path.rmdir() if path.is_dir() else path.unlink()
                elif not path.is_dir():
                    files.append((found.st_mtime, found.st_size, path))
    excess = sum(size for _, size, _ in files) - most_bytes
    for changed, size, path in sorted(files):
        if excess <= 0 or changed > time.time() - FRESH:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size


def keep_swept(folder: Path, every: float, age: float):
    """Sweep the folder every so many seconds from now on, in a thread that ends with the program."""

    def run():
        while True:
            time.sleep(every)
            sweep(folder, age)

    threading.Thread(target=run, daemon=True).start()
