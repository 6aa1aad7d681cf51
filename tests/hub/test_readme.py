"""README.md: its Python runs as printed, and the files and commands it names exist."""

import importlib.util
import os
import re
import subprocess
import sys

from ..conftest import ROOT
from .test_models import MODELS

README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_python_runs_as_printed():
    checks = (
        "assert logits.shape[0] == 2 and logits.isfinite().all()\n",
        "assert vectors.shape == (2, 256)\n",
        "assert 0 < sum(p.numel() for p in adapted.parameters() if p.requires_grad) < classifier.num_parameters()\n",
    )
    assert len(PYTHON_BLOCKS) == len(checks)
    program = "\n".join(block + check for block, check in zip(PYTHON_BLOCKS, checks, strict=True))
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_files_it_names_exist():
    named = re.findall(r"`((?:docs|tests|modeling|hub_configs)/[\w./-]+|[\w-]+\.(?:py|cff|toml|txt))`", README)
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_make_targets_it_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"quickstart", "test", "test-matrix"} <= named <= targets


def test_modules_it_names_exist():
    named = set(re.findall(r"python -m ([\w.]*\w)", README))
    assert len(named) > 10
    missing = [name for name in named if importlib.util.find_spec(name) is None]
    assert not missing


def test_parameter_counts_are_those_of_models_toml():
    for name, row in MODELS.items():
        assert f"`hub_configs/{name}`" in README and f"{row['parameters']:,}" in README
