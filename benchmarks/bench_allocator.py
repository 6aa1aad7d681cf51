"""
What keeping freed memory (training/allocator.py) does to a training step on a CPU: time and peak memory.

    python -m benchmarks.bench_allocator

The step of bench_training with strandbert-tiny, in processes that take turns, with the setting and without.
Rows go to benchmarks/results/allocator.csv.
"""

import argparse
import statistics
import sys
import time

import torch

from benchmarks.bench_training import CASES, losses, step_function
from benchmarks.harness import append_rows, in_fresh_process, machine, median_ratio, peak_memory_gb
from training.allocator import keep_freed_memory

STEPS = 15


def measure(options):
    """Time STEPS steps of this process, for the parent."""
    if options.measure == "kept" and not keep_freed_memory():
        sys.exit("error: this C library has no such setting")
    model, loss_of = losses("tiny", CASES[options.case][: options.sequences], "cpu")["strandbert"]
    step = step_function(model, loss_of, "cpu", getattr(torch, options.dtype))
    for _ in range(5):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step()
    print(f"RESULT {time.perf_counter() - wall} {time.process_time() - cpu} {peak_memory_gb()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=32, help="sequences of the batch (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    for name in ("--measure", "--case", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options)
    for case in CASES:
        for dtype in ("float32", "bfloat16"):
            found = {"kept": [], "default": []}
            for _ in range(options.rounds):
                for how, results in found.items():
                    arguments = ["--measure", how, "--case", case, "--dtype", dtype, "--sequences", options.sequences]
                    output = in_fresh_process("benchmarks.bench_allocator", *map(str, arguments))
                    line = next(line for line in output.splitlines() if line.startswith("RESULT"))
                    results.append([float(field) for field in line.split()[1:]])
            ratio = median_ratio(found["default"], found["kept"])
            rows = []
            for how, results in found.items():
                wall, cpu, memory = (statistics.median(values) for values in zip(*results, strict=True))
                rows.append({
                    **machine(), "case": case, "dtype": dtype, "memory": how, "sequences": options.sequences,
                    "rounds": options.rounds, "step_s": round(wall / STEPS, 4), "step_cpu_s": round(cpu / STEPS, 4),
                    "kept_is_faster_by": 1.0 if how == "kept" else round(ratio, 3), "peak_memory_gb": round(memory, 3),
                })  # fmt: skip
                print(f"{case}, {dtype}, {how}: {wall / STEPS:.3f} s a step, {memory:.2f} GB", flush=True)
            if not options.dry_run:
                append_rows("allocator", rows)


if __name__ == "__main__":
    main()
