"""
The published folder in an empty virtual environment with only torch and transformers, offline and without sockets.

It installs torch once more (minutes, about 2 GB), so it runs only when a folder for the environment is named; it is
kept, and a second run uses it:

    STRANDBERT_EMPTY_ENVIRONMENT=.venv-empty python -m pytest tests/hub/test_empty_environment.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hub_configs.publish import publish

from ..conftest import ROOT
from .test_publish import trained

PROGRAM = Path(__file__).with_name("empty_environment.py")
SHIPPED = ROOT / "hub_configs" / "strandbert-tiny"


@pytest.mark.slow
def test_it_loads_embeds_and_fills_a_mask_with_nothing_but_torch_and_transformers(tmp_path, small_models, monkeypatch):
    place = os.environ.get("STRANDBERT_EMPTY_ENVIRONMENT")
    if not place:
        pytest.skip("installs torch into a new environment; set STRANDBERT_EMPTY_ENVIRONMENT=FOLDER to run it")
    source = SHIPPED
    if not (SHIPPED / "model.safetensors").is_file():
        source = trained(tmp_path / "my_model")
        monkeypatch.setattr("hub_configs.publish.read_models", lambda: small_models)
    publish(source, "strandbert-tiny", tmp_path / "published")

    python = Path(place).resolve() / "bin" / "python"
    if not python.exists():
        constraints = str(ROOT / "constraints.txt")
        [torch] = re.findall(r"^torch==\S+", Path(constraints).read_text(), flags=re.MULTILINE)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, torch], check=True)
        subprocess.run([*pip, "-c", constraints, "transformers"], check=True)

    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-I", PROGRAM, tmp_path / "published"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    print(json.dumps(report))
    assert report["vectors"][0] == 2 and report["finite"] and len(report["tokens"]) == 5
    assert report["project"] == [] and report["extras"] == []
