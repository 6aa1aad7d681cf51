"""A lock on a folder, so that two processes do not work in it at once."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[bool]:
    """
    Lock an existing folder until the block ends, or the process: True, or False when another process holds the lock.

    A system or file system without locks of folders gives True. Nothing is written; inside, the folder may be removed.
    """
    if os.name == "nt":
        yield True
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    free = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        free = False
    except OSError:
        pass
    try:
        yield free
    finally:
        os.close(descriptor)
