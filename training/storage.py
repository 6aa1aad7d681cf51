"""Output folders: one run at a time, failures of writing said in one line; digests of weights."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tokenization.locks import locked_folder

SETTINGS_FILE = "run_settings.json"  # in checkpoints and finished folders: what the run was asked for
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.*")  # files of a model folder
FULL = (errno.ENOSPC, errno.EDQUOT)
# How a full disk reads where a library drops the number of the error: safetensors (twice), numpy, torch (twice).
FULL_MESSAGES = ("os error 28", "os error 122", "requested and", "inline_container", "iostream error")


class StorageError(OSError):
    """A folder that cannot be written to; the message names it, the reason, and what to do."""


def weights_digest(folder: str | Path | None) -> str:
    """First digits of the sha256 of a model's weights; "" where they are in no folder (Hub names, random weights)."""
    paths = sorted(path for pattern in WEIGHTS for path in Path(folder).glob(pattern)) if folder else []
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:12] if paths else ""


def check_writable(folder: str | Path, flag: str):
    """
    Try whether files can be written into a folder, or the folder itself be made; leaves nothing behind.

    Raises:
        StorageError: naming the flag that the folder came from.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise StorageError(f"{flag} {folder}: {existing} is not a folder; choose another {flag}")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise StorageError(f"{flag} {folder}: cannot write to {existing} ({error.strerror})") from None


@contextmanager
def alone_in(folder: str | Path, process_index: int = 0) -> Iterator[None]:
    """
    Keep a second run out of an output folder until the block ends, or the process; the first process of a run does it.

    A folder that is not there is made, and removed again if nothing was written into it.

    Raises:
        StorageError: another run holds the folder.
    """
    if process_index != 0:
        yield
        return
    folder = Path(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder) as free:
        if not free:
            raise StorageError(
                f"{folder}: another run writes into this folder; wait until it has ended, or stop it (the processes of "
                "a launcher that was killed may still run)"
            )
        try:
            yield
        finally:
            if new and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def writing_into(folder: str | Path, advice: Callable[[], str]) -> Iterator[None]:
    """
    Turn every error of writing into a folder into a StorageError that ends with `advice()`.

    Errors about files elsewhere, and those that are none of writing, pass unchanged.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, Path(folder))
        if reason is None:
            raise
        raise StorageError(f"cannot write to {folder}: {reason}; {advice()}") from error


def _reason(error: Exception, folder: Path) -> str | None:
    """Why writing failed, or None when the error is about something else."""
    full = getattr(error, "errno", None) in FULL or any(message in str(error) for message in FULL_MESSAGES)
    if full:
        return "the disk is full, or your quota is used up"
    if isinstance(error, OSError):
        elsewhere = error.filename is not None and folder.resolve() not in [
            path := Path(os.fsdecode(error.filename)).resolve(),
            *path.parents,
        ]
        return None if elsewhere else error.strerror or str(error)
    return str(error) if isinstance(error, SafetensorError) else None
