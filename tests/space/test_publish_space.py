"""`python -m hub_configs.publish --space`: a folder that runs by itself, and its upload as a Space."""

import ast
import sys
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import HfApi
from packaging.requirements import Requirement

from hub_configs.folder import CODE_FOLDER
from hub_configs.publish import upload
from hub_configs.space import PACKAGES, SpaceError, copy_model, make_space, start

from ..conftest import ROOT
from ..hub.local_hub import LocalHub


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    """The folder of a Space with the small model and the classifier, and the report."""
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[space]'")
    folder = tmp_path_factory.mktemp("publish") / "space"
    small, head = (Path(next(iter(models.sources[kind].values()))) for kind in ("language", "classifier"))
    return folder, make_space(folder, "tiny", small, [head])


def test_it_starts_alone_offline_with_its_models(made):
    assert made[1][0] == "the demo starts by itself, offline, with tiny,head"


def test_the_code_is_that_of_the_checkout(made):
    files = [path.relative_to(made[0]) for path in made[0].rglob("*.py")]
    assert {path.parts[0] for path in files} == set(PACKAGES)
    assert all((made[0] / path).read_bytes() == (ROOT / path).read_bytes() for path in files)
    assert Path("modeling/modeling_strandbert.py") in files and CODE_FOLDER.name == "modeling"


def test_the_front_matter_names_the_app_and_this_gradio(made):
    front = yaml.safe_load((made[0] / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (made[0] / front["app_file"]).is_file()
    assert front["sdk"] == "gradio" and front["sdk_version"] == version("gradio")
    assert len(front["short_description"]) <= 60  # the Hub refuses more


def test_nothing_of_this_machine_is_in_it(made, models):
    for path in made[0].rglob("*"):
        if path.suffix in (".md", ".toml", ".txt", ".json") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert str(ROOT) not in text and str(Path.home()) + "/" not in text, path
    assert not list(made[0].rglob("__pycache__"))


def test_requirements_name_every_package_that_is_imported(made):
    given = {Requirement(line).name for line in (made[0] / "requirements.txt").read_text().splitlines()}
    given |= {"gradio", *(Requirement(line).name for line in requires("gradio"))}
    owners = packages_distributions()
    for name, files in imported_packages().items():
        assert given & {owner.replace("_", "-") for owner in owners[name]}, f"{name}, imported by {files}"


def imported_packages():
    """Packages that space/app.py and all that it imports import at their top level, with the files that do."""
    found, seen, left = {}, set(), [ROOT / "space" / "app.py"]
    while left:
        file = left.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in top_level_imports(file):
            place = ROOT.joinpath(*module.split("."))
            if (ROOT / module.split(".")[0]).is_dir():
                left += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
            elif module.split(".")[0] not in sys.stdlib_module_names:
                found.setdefault(module.split(".")[0], []).append(file.name)
    assert len(seen) > 20
    return found


def top_level_imports(file):
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(file.relative_to(ROOT).parts[:-1])
            module = f"{package}.{node.module}" if node.level else node.module
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if (ROOT / module.split(".")[0]).is_dir())


def test_it_is_uploaded_as_a_space(made, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub({"hf_write": "tester"}) as hub:
        upload(made[0], "genomes/demo", "v1", HfApi(endpoint=hub.url, token="hf_write"), kind="space")
        assert any(request.startswith("POST /api/spaces/genomes/demo/commit") for request in hub.requests)
        files = set(hub.repositories["genomes/demo"].at("v1").files) - {".gitattributes"}
    assert files == {path.relative_to(made[0]).as_posix() for path in made[0].rglob("*") if path.is_file()}


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(SpaceError, match="has no model.safetensors"):
        folder = tmp_path / "empty"
        folder.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")
        copy_model(folder, tmp_path / "copy")


def test_a_demo_that_does_not_start_is_said(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "app.py").write_text("raise RuntimeError('a file is missing')")
    with pytest.raises(SpaceError, match="does not start(.|\n)*a file is missing"):
        start(tmp_path)
