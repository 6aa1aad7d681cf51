"""Model folders: the published code is the code of the checkout, and a folder is whole or absent."""

import os
import re
from pathlib import Path

import pytest

from hub_configs.folder import check_output, code_files, new_folder, write_model_code

from ..conftest import ROOT


def test_published_code_is_what_the_model_imports_byte_for_byte(tmp_path):
    write_model_code(tmp_path)
    published = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert published == {name: (ROOT / "modeling" / name).read_bytes() for name in published}
    assert {"modeling_strandbert.py", "configuration_strandbert.py", "alibi_attention.py"} <= set(published)
    assert not {"__init__.py", "doctor.py"} & set(published)  # they serve the installed package


def test_the_main_file_imports_every_published_file_itself():
    main = (ROOT / "modeling" / "modeling_strandbert.py").read_text()
    imported = set(re.findall(r"^from \.(\w+) import", main, flags=re.MULTILINE))
    assert imported == {path.stem for path in code_files()} - {"modeling_strandbert"}  # transformers 4 follows one step


def test_published_code_imports_nothing_of_the_project():
    for path in code_files():
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in ("corpus", "hub_configs", "modeling", "tokenization", "training")


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "config.json").exists() and len(list(tmp_path.iterdir())) == 1


def test_overwriting_replaces_everything(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "model.safetensors").write_text("new")
        assert (tmp_path / "out" / "config.json").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "model.safetensors"]


def test_overwriting_a_link_replaces_the_folder_it_points_to(tmp_path):
    place = tmp_path / "disk" / "out"
    place.mkdir(parents=True)
    (place / "config.json").write_text("old")
    (tmp_path / "link").symlink_to(place)
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "model.safetensors").write_text("new")
    assert [path.name for path in place.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "link").is_symlink() and [path.name for path in place.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_an_error_while_overwriting_keeps_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", overwrite=True):
        1 / 0  # noqa: B018
    assert (tmp_path / "out" / "config.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_interruption_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    rename, seen = os.rename, []

    def interrupted(source, target):
        seen.append(Path(source).name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "config.json").write_text("new")
    assert seen == ["out", folder.name, f"{folder.name}.old"]
    assert (tmp_path / "out" / "config.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_free(tmp_path):
    check_output(tmp_path, overwrite=False)


def test_a_file_in_the_way_raises(tmp_path):
    (tmp_path / "out").write_text("text")
    with pytest.raises(FileExistsError):
        check_output(tmp_path / "out", overwrite=True)
