"""training.allocator: memory that was freed is used again."""

import subprocess
import sys

import pytest

from ..conftest import ROOT

PROGRAM = """
import resource, statistics, sys
import torch
from training.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(32):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(100, 2**18).sum()  # 100 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, int(statistics.median(faults)))  # the first ones fill the heap
"""


def page_faults(how):
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, faults = run.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_not_fetched_from_the_system_again():
    kept, faults = page_faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert faults < 100 < page_faults("default")[1]


def test_other_systems_are_left_alone(monkeypatch):
    from training.allocator import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
