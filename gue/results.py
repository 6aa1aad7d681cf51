"""
The results file: one CSV row per fine-tuning run, whole at every moment, safe for several writers.

A row is added under a lock, by writing the file anew under a temporary name and renaming it.
"""

import csv
import errno
import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tokenization.tokenizer_files import write_text_atomically

COLUMNS = (
    "name model task seed learning_rate settings data test_mcc test_f1 test_accuracy eval_mcc eval_f1 eval_accuracy "
    "eval_loss collapsed train_rows test_rows seconds parameters flops_500bp weights"
).split()
NUMBERS = ("seed learning_rate test_mcc test_f1 test_accuracy eval_mcc eval_f1 eval_accuracy eval_loss parameters "
           "flops_500bp").split()  # fmt: skip
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system that has none
KEY = ("name", "task", "seed", "learning_rate")


class ResultsError(ValueError):
    """A results file that cannot be used; the message names file, line and what to do."""


def _lock(file: IO, wait: bool):
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO | None]:
    """
    Hold the lock file `path`; give None instead of waiting when `wait` is false and another process holds it.

    The lock ends with the last process that has the file open: a child that inherits it keeps it when we are killed.
    On a file system without locks nobody is kept out, and a warning says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            _lock(file, wait)
        except (BlockingIOError, PermissionError):  # the latter on Windows
            if wait:
                raise
            yield None
            return
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn("this file system has no locks: start one runner at a time", stacklevel=3)
        yield file


def read_results(path: Path) -> list[dict[str, str]]:
    """
    Read the rows of a results file; none when there is no file. Columns that it lacks are empty.

    Raises:
        ResultsError: a folder, columns that are not ours, a row of another length, text or nan in place of a number.
    """
    if path.is_dir():
        raise ResultsError(f"{path} is a folder; give a file of results of gue.run")
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in KEY if column not in (reader.fieldnames or [])]
        if missing:
            raise ResultsError(f"{path}, line 1: no column {missing[0]!r}; this is no file of results of gue.run")
        rows = [{**dict.fromkeys(COLUMNS, ""), **row} for row in reader]
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ResultsError(f"{path}, line {number}: not as many fields as line 1; mend or delete this line")
        for column in NUMBERS:
            value = row.get(column) or ""
            try:
                if (value or column in KEY) and not math.isfinite((int if column == "seed" else float)(value)):
                    raise ValueError
            except (ValueError, OverflowError):
                message = f"{path}, line {number}: {column} is {value!r}, no finite number; mend or delete this line"
                raise ResultsError(message) from None
    return rows


def row_key(row: dict) -> tuple[str, ...]:
    """What a row stands for; a grid holds each key once."""
    return row["name"], row["task"], str(int(row["seed"])), f"{float(row['learning_rate']):g}"


def append_row(path: Path, row: dict):
    """Add a row, in place of an older one of the same key; the file is replaced as a whole."""
    with locked(path.with_name(path.name + ".lock")):
        rows = [old for old in read_results(path) if row_key(old) != row_key(row)]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_text_atomically(path, text.getvalue())
