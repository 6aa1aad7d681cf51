"""
How every benchmark measures: rivals in one process, interleaved rounds, medians of per-round ratios, rows in a CSV.

On a shared machine wall time moves; CPU time of the process moves less. Both are recorded, ratios are of wall time.
"""

import csv
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# torch and transformers are imported where they are needed: the memory of a process without them is measured, too.

RESULTS = Path(__file__).parent / "results"


def interleave(functions: dict[str, Callable], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """
    Run every function once to warm up, then all of them in turn, `rounds` times.

    Returns:
        for each name, wall and CPU seconds of each round.
    """
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    synchronize()
    for _ in range(rounds):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            synchronize()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds


def synchronize():
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ratio(slow: list[tuple[float, float]], fast: list[tuple[float, float]]) -> float:
    """Median over rounds of wall(slow) / wall(fast): how many times faster `fast` is."""
    return statistics.median(a[0] / b[0] for a, b in zip(slow, fast, strict=True))


def machine() -> dict[str, str | int]:
    """What a row must say about where it was measured."""
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if torch.cuda.is_available():
        name = f"{name} + {torch.cuda.get_device_name()}"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def append_rows(name: str, rows: list[dict]) -> Path:
    """Append rows to results/NAME.csv; the file's columns are those of its first row."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    columns = list(rows[0]) if new else next(csv.reader(path.open()))
    unknown = [key for row in rows for key in row if key not in columns]
    if unknown:
        raise ValueError(f"{path} has no column {unknown[0]!r}; move the old file away or keep its columns: {columns}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    return path


def in_fresh_process(module: str, *arguments: str) -> str:
    """Run `python -m module arguments` and return what it printed: peak memory is then its own."""
    environment = {**os.environ, "PYTHONPATH": str(RESULTS.parents[1])}
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return result.stdout


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, GB (10^9 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage hands a child the peak of the process that started it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
