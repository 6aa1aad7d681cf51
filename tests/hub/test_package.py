"""The distribution `strandbert` is the folder modeling/: importing it makes the Auto classes know the model."""

import os
import subprocess
import sys

from hub_configs.folder import write_model_folder
from modeling import StrandBertConfig, StrandBertForMaskedLM

from ..conftest import ROOT
from .conftest import SIZES, original_tokenizer

PROGRAM = """
import sys
import strandbert
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])
assert type(model) is strandbert.StrandBertForMaskedLM, type(model)
model.save_pretrained(sys.argv[2])
"""


def test_the_package_loads_and_saves_without_remote_code(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "strandbert").symlink_to(ROOT / "modeling")
    config = StrandBertConfig(**SIZES, architectures=["StrandBertForMaskedLM"])
    weights = StrandBertForMaskedLM(config).state_dict()
    del weights["cls.predictions.decoder.weight"]
    content = {**SIZES, "model_type": "strandbert", "architectures": config.architectures, "auto_map": config.auto_map}
    (tmp_path / "model").mkdir()
    write_model_folder(tmp_path / "model", content, weights, original_tokenizer())
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(tmp_path / "saved")]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in ("modeling_strandbert.py", "configuration_strandbert.py"):
        assert (tmp_path / "saved" / name).read_bytes() == (ROOT / "modeling" / name).read_bytes()


def test_the_built_package_is_modeling():
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["strandbert"]' in pyproject and 'package-dir = { strandbert = "modeling" }' in pyproject
