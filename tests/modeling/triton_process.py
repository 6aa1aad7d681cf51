"""Run Python with triton in a process of its own: TRITON_INTERPRET and the overlay folder then touch no other test."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = Path(sys.prefix) / "matrix" / "triton"  # written by `make test-matrix`


def run_with_triton(*arguments, **environment) -> subprocess.CompletedProcess:
    """`python arguments...` from the repository root with triton importable; skips the test where there is none."""
    path = [os.environ.get("PYTHONPATH", "")]
    if importlib.util.find_spec("triton") is None:
        if not (OVERLAY / "triton").is_dir():
            pytest.skip(f"triton is neither installed nor in {OVERLAY} (make test-matrix puts it there)")
        path.insert(0, str(OVERLAY))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    variables |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)
