"""README.md: its Python runs as printed, and the files and commands it names exist."""

import os
import re
import subprocess
import sys

import pytest
import torch

from hub_configs.folder import write_model_folder
from modeling import StrandBertConfig, StrandBertForMaskedLM

from ..conftest import ROOT
from .conftest import SIZES, original_tokenizer
from .test_models import MODELS

README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder_of_quickstart(tmp_path_factory):
    """A folder in which quickstart/synthetic/model is a small random model."""
    root = tmp_path_factory.mktemp("checkout")
    model_folder = root / "quickstart" / "synthetic" / "model"
    model_folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = StrandBertConfig(**SIZES, architectures=["StrandBertForMaskedLM"])
    weights = StrandBertForMaskedLM(config).state_dict()
    del weights["cls.predictions.decoder.weight"]
    content = {**SIZES, "model_type": "strandbert", "architectures": config.architectures, "auto_map": config.auto_map}
    write_model_folder(model_folder, content, weights, original_tokenizer())
    return root


def test_python_runs_as_printed(folder_of_quickstart):
    checks = (
        "assert logits.shape[0] == 2 and logits.isfinite().all()\n",
        "assert vectors.shape == (2, 48)\n",
        "assert 0 < sum(p.numel() for p in adapted.parameters() if p.requires_grad) < classifier.num_parameters()\n",
    )
    assert len(PYTHON_BLOCKS) == len(checks)
    program = "\n".join(block + check for block, check in zip(PYTHON_BLOCKS, checks, strict=True))
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=folder_of_quickstart, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_files_it_names_exist():
    named = re.findall(r"`((?:docs|tests|modeling|hub_configs)/[\w./-]+|[\w-]+\.(?:py|cff|toml|txt))`", README)
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_make_targets_it_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"quickstart", "test", "test-matrix"} <= set(re.findall(r"make ([a-z-]+)", README)) & targets


def test_parameter_counts_are_those_of_models_toml():
    for name, row in MODELS.items():
        assert f"`hub_configs/{name}`" in README and f"{row['parameters']:,}" in README
