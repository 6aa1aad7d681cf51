"""Largest memory of a process so far."""

import sys


def peak_memory_bytes() -> int | None:
    """Of this process on the host; None on Windows, which does not count it this way."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
