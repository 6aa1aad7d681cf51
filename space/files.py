"""Files that users download: each in a folder of its own in the server's cache, which removes it within the hour."""

import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
from gradio.utils import get_upload_folder


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
