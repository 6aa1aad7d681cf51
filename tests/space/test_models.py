"""Which models may be used: the list, and what a local user names."""

import shutil
from pathlib import Path

import pytest

from space.inputs import InputError
from space.models import MOST_LOADED, Loaded, Models, read_sources


def test_the_first_of_the_list_is_the_default(models):
    assert models.get("language").name == models.get("language", "").name == models.get("language", " small ").name


def test_a_model_is_loaded_once(models):
    assert models.get("language") is models.get("language", "small")


def test_a_visitor_may_name_no_folder(models):
    folder = models.sources["language"]["small"]
    with pytest.raises(InputError, match="not on the list of models: small"):
        models.get("language", folder)


def test_a_local_user_may(models):
    folder = models.sources["language"]["small"]
    local = Models({"language": {}, "classifier": {}}, local=True)
    assert local.get("language", folder).model.config.hidden_size == 32


def test_a_local_user_is_told_why_a_model_does_not_load(tmp_path):
    local = Models({"language": {}, "classifier": {}}, local=True)
    with pytest.raises(InputError, match="no model folder"):
        local.get("language", str(tmp_path))


def test_a_visitor_is_not_told_where_a_model_lies(tmp_path):
    listed = Models({"language": {"lost": str(tmp_path)}, "classifier": {}}, local=False)
    with pytest.raises(InputError, match="^The model lost cannot be loaded here.$"):
        listed.get("language")


def test_a_language_model_is_no_classifier(models):
    local = Models({"language": {}, "classifier": {}}, local=True)
    with pytest.raises(InputError, match="no classifier"):
        local.get("classifier", models.sources["language"]["small"])


def test_a_damaged_model_is_said(tmp_path, models):
    shutil.copytree(models.sources["language"]["small"], tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    local = Models({"language": {}, "classifier": {}}, local=True)
    with pytest.raises(InputError, match="damaged cannot be loaded"):
        local.get("language", str(tmp_path / "damaged"))


def test_a_loaded_model_does_not_wait_for_another_to_load(models):
    loaded = models.get("language")
    with models._lock:  # as while another is loaded
        assert models.get("language") is loaded


def test_the_model_that_was_not_used_for_longest_makes_room(monkeypatch):
    monkeypatch.setattr(Models, "_load", lambda self, kind, name, source: Loaded(name, None, None))
    names = [f"model {i}" for i in range(MOST_LOADED + 1)]
    held = Models({"language": {name: name for name in names}, "classifier": {"head": "head"}}, local=False)
    held.get("classifier")
    first, second, *_ = [held.get("language", name) for name in names[:-1]]
    assert held.get("language", names[0]) is first
    held.get("language", names[-1])
    assert held.get("language", names[0]) is first
    assert held.get("language", names[1]) is not second
    assert len(held._loaded) == MOST_LOADED + 1  # each kind by itself


def test_the_environment_may_name_the_folder_that_one_is_in(models, monkeypatch):
    monkeypatch.chdir(models.sources["language"]["small"])
    monkeypatch.setenv("STRANDBERT_DEMO_MODEL", ".")
    assert next(iter(read_sources()["language"].items())) == ("small", ".")


def test_the_environment_names_the_first_model(models, monkeypatch):
    folder = models.sources["classifier"]["head"]
    monkeypatch.setenv("STRANDBERT_DEMO_CLASSIFIER", folder)
    assert next(iter(read_sources()["classifier"].items())) == (Path(folder).name, folder)
