"""A setting of the C library that makes training on a CPU faster."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """
    Have glibc keep freed memory for the next allocation instead of returning it to the system, in this process.

    A training step frees buffers of many megabytes and asks for as many again. What was returned comes back as pages
    that the system has to fill with zeros, a tenth of the time of a step (`python -m benchmarks.bench_allocator`).

    Returns:
        False where the C library has no such setting or refuses it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        [mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 2**26)]
    )
