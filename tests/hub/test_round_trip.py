"""Publish, load, fine-tune, push, load an old revision: the real clients against a Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hub_configs.folder import code_files, write_model_folder
from hub_configs.verify import fresh_environment
from modeling import StrandBertConfig, StrandBertForMaskedLM
from modeling.configuration_strandbert import AUTO_MAP

from ..conftest import ROOT
from ..modeling.triton_process import OVERLAY
from .conftest import SIZES, original_tokenizer
from .local_hub import LocalHub

SHIPPED = ROOT / "hub_configs" / "strandbert-tiny"
CLIENT = Path(__file__).with_name("hub_client.py")
OLDEST = Path(sys.prefix) / "matrix" / "transformers-4.57"
PUBLISH = """
import json, sys
from hub_configs import publish
models = json.loads(sys.argv.pop(1))
publish.read_models = lambda: models
sys.exit(publish.main())
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A small random model as save_pretrained and run_mlm.py leave it; the weights of strandbert-tiny when shipped."""
    if (SHIPPED / "model.safetensors").is_file() and (SHIPPED / "tokenizer.json").is_file():
        return SHIPPED
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    config = StrandBertConfig(**SIZES, initializer_range=0.2, architectures=["StrandBertForMaskedLM"])
    weights = StrandBertForMaskedLM(config).state_dict()
    del weights["cls.predictions.decoder.weight"]
    content = {**SIZES, "model_type": "strandbert", "architectures": config.architectures, "auto_map": AUTO_MAP}
    write_model_folder(folder, content, weights, original_tokenizer())
    return folder


def run(command, hub, scratch, overlay=None, cwd=None):
    """A client process that talks to the local Hub only; fails the test with what it printed."""
    environment = {
        **fresh_environment(scratch),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_write",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if overlay:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(overlay), environment["PYTHONPATH"]]))
    if cwd:
        environment.pop("PYTHONSAFEPATH")
    process = subprocess.run(command, cwd=cwd or scratch, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_make_puts_the_overlays_where_the_tests_look_for_them():
    command = ["make", "--dry-run", "test-matrix", f"VENV={sys.prefix}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"run_matrix --oldest {OLDEST} --triton {OVERLAY}" in run.stdout, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", ["newest", "4.57"])
def test_publish_load_fine_tune_push_again_load_the_old_revision(model_folder, small_models, tmp_path, version):
    overlay = None if version == "newest" else OLDEST
    if overlay and not (overlay / "transformers").is_dir():
        pytest.skip(f"transformers 4.57 is not in {OLDEST}; `make test-matrix` puts it there")
    with LocalHub({"hf_write": "tester"}, part_size=1 << 20) as hub:
        random = ["-c", PUBLISH, json.dumps(small_models)]  # of the sizes in these tables
        program = ["-m", "hub_configs.publish"] if model_folder == SHIPPED else random
        command = [sys.executable, *program, "--model", str(model_folder)]
        command += ["--name", "strandbert-tiny", "--output", str(tmp_path / "published"), "--push", "genomes/tiny"]
        printed = run(command, hub, tmp_path, overlay, cwd=ROOT)
        repository = hub.repositories["genomes/tiny"]
        [tag] = repository.tags
        assert f"published genomes/tiny at {tag}, commit {repository.branches['main']}" in printed
        assert repository.tags[tag] == repository.branches["main"] and len(repository.commits) == 2

        job = {"repository": "genomes/tiny", "tag": tag, "fine_tune": "tester/promoters"}
        (tmp_path / "job.json").write_text(json.dumps({**job, "outputs": str(tmp_path / "outputs.safetensors")}))
        printed = run([sys.executable, str(CLIENT), str(tmp_path / "job.json")], hub, tmp_path, overlay)
        report = json.loads(printed.splitlines()[-1])
    assert report["transformers"].startswith("5." if version == "newest" else version)
    for head in ("", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"):
        assert report["AutoModel" + head] < 1e-3
    assert report["vectors"][0] == 4
    assert report["losses"][-1] < 0.9 * report["losses"][0]
    assert report["old revision gives the old outputs"] and report["newest gives the new outputs"]
    assert report["they differ"]
    assert report["code of the fine-tune"] == sorted(path.name for path in code_files())
