"""Checkpoints by Hub name: the real client against a Hub on loopback; data files only, nothing outside the folder."""

import json
import os

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from hub_configs.checkpoint import ConversionError, weight_files
from hub_configs.download import check_listing, local_folder

from .conftest import original_config, original_weights, write_checkpoint
from .local_hub import File


@pytest.fixture
def release(local_hub, tmp_path):
    """The hub with zhihan1996/DNABERT-2-117M in it: .bin, the original auto_map, and code."""
    folder = write_checkpoint(tmp_path / "release", original_weights("mlm"), original_config())
    (folder / "bert_layers.py").write_text("raise SystemExit('the code of the repository ran')")
    api = HfApi(endpoint=local_hub.url, token="hf_write")
    api.create_repo("genomes/DNABERT-2-117M")
    api.upload_folder(repo_id="genomes/DNABERT-2-117M", folder_path=folder)
    return folder, api


def fetch(api, name="genomes/DNABERT-2-117M", **options):
    return local_folder(name, api=api, **options)


def test_data_files_arrive_and_code_does_not(release):
    folder, api = release
    found = fetch(api)
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    assert (found / "pytorch_model.bin").read_bytes() == (folder / "pytorch_model.bin").read_bytes()


def test_where_there_are_safetensors_no_pickle_is_downloaded(release):
    _, api = release
    api.upload_file(path_or_fileobj=b"x" * 20, path_in_repo="model.safetensors", repo_id="genomes/DNABERT-2-117M")
    assert "pytorch_model.bin" not in [path.name for path in fetch(api).iterdir()]


def test_an_old_revision_can_be_named(release):
    folder, api = release
    old = api.model_info("genomes/DNABERT-2-117M").sha
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="genomes/DNABERT-2-117M")
    assert (fetch(api, revision=old) / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    with pytest.raises(ConversionError, match="has no revision 'v9'"):
        fetch(api, revision="v9")


def test_a_revision_of_a_folder_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="--revision v9 is for a Hub name"):
        local_folder(tmp_path, revision="v9")


def test_a_branch_that_moves_meanwhile_gives_the_files_that_were_listed(release, local_hub):
    folder, api = release
    repository = local_hub.repositories["genomes/DNABERT-2-117M"]
    listed, before = repository.at("main"), len(local_hub.requests)

    def someone_else(method, path):
        was_listed = any("/tree/" in request for request in local_hub.requests[before:-1])
        if was_listed and repository.at("main") is listed:
            repository.add("moved", {**listed.files, "config.json": File(b'{"moved": true}')})

    local_hub.before = someone_else
    found = fetch(api)
    assert repository.at("main").title == "moved" and found.name == listed.oid
    assert (found / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_offline_a_branch_or_tag_is_found_again(release, monkeypatch, revision):
    _, api = release
    api.create_tag("genomes/DNABERT-2-117M", tag="v1")
    found = fetch(api, revision=revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(api, revision=revision) == found


def test_a_name_that_is_nowhere_says_so(release):
    with pytest.raises(ConversionError, match="neither a folder nor a repository at http://127.0.0.1"):
        fetch(release[1], "genomes/DNABERT-3")


def test_a_hub_that_cannot_be_reached_is_named(local_hub):
    with pytest.raises(ConversionError, match="could not be downloaded from http://127.0.0.1:9"):
        fetch(HfApi(endpoint="http://127.0.0.1:9"))


def test_a_path_that_is_no_folder_is_not_looked_up(release, local_hub):
    before = len(local_hub.requests)
    with pytest.raises(ConversionError, match="is not a folder"):
        fetch(release[1], "./genomes/DNABERT-2-117M/x")
    assert len(local_hub.requests) == before


def test_offline_an_earlier_download_is_used(release, monkeypatch):
    _, api = release
    fetch(api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert (fetch(api) / "pytorch_model.bin").is_file()
    with pytest.raises(ConversionError, match="HF_HUB_OFFLINE=1 forbids"):
        fetch(api, "genomes/other")


@pytest.mark.parametrize(
    "path", ["../../evil.json", "a/../../evil.json", "/etc/evil.json", "..\\..\\evil.json", "C:\\evil.json"]
)
def test_a_listing_that_leads_outside_is_refused_before_anything_is_written(release, local_hub, path):
    _, api = release
    commit = local_hub.repositories["genomes/DNABERT-2-117M"].commits[-1]
    commit.files[path] = File(b'{"poisoned": true}')
    with pytest.raises(ConversionError, match="a path outside the repository"):
        fetch(api)
    written = [name for _, _, names in os.walk(huggingface_hub.constants.HF_HUB_CACHE) for name in names]
    assert "evil.json" not in written and "config.json" not in written


def test_ordinary_listings_pass():
    check_listing("a/b", ["config.json", "onnx/model.onnx", ".gitattributes", "..config.json"])


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "sub/model.safetensors", "..", "", 7])
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"bert.x": shard}}))
    with pytest.raises(ConversionError, match="which is not a file of this folder"):
        weight_files(tmp_path)
