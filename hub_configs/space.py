"""The repository of the demo as a Hugging Face Space: `python -m hub_configs.publish --space`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .card import ROOT
from .checkpoint import read_json
from .folder import SOURCE_ONLY, check_not_replaced, check_nothing_private, new_folder, read_project

PACKAGES = ("space", "inference", "modeling", "tokenization", "corpus", "training", "gue")  # what space.app imports
DATA = ("space/examples/*", "gue/data/*", "gue/results/*.csv", "benchmarks/results/*.csv", "LICENSE")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model*.safetensors")
# Packages of pyproject.toml's extras that the demo imports; a Space installs gradio itself, by sdk_version.
NEEDED = (
    "accelerate",
    "matplotlib",
    "numba",
    "numpy",
    "peft",
    "pyarrow",
    "pysam",
    "scikit-learn",
    "scipy",
    "tomli",
    "tqdm",
)
README = """---
title: StrandBERT
emoji: 🧬
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: space/app.py
license: apache-2.0
short_description: A DNA language model to look into
tags:
- DNA
- genomics
---

# StrandBERT

Tokens, fill-mask, embeddings, classification with attribution, and variant effects of a DNA language model, on a CPU.
Models: {models}.

This repository was made by `python -m hub_configs.publish --space`; `python space/app.py` runs it anywhere after
`pip install gradio -r requirements.txt`. Every tab has named endpoints for `gradio_client`; "Use via API" lists them.
"""
CHECK = """
import sys
sys.path.insert(0, "")
from space.app import Models, build, read_sources
models = Models(read_sources(), local=False)
for kind, names in models.sources.items():
    for name in names:
        models.get(kind, name)
build(models)
print(",".join(name for names in models.sources.values() for name in names))
"""


class SpaceError(RuntimeError):
    """A Space that cannot be made or does not start; the message says why."""


def make_space(
    output: str | Path, name: str, model: str | Path, classifiers: list[Path] = (), overwrite: bool = False
) -> list[str]:
    """
    Write the folder of the Space with a model and classifiers in it, and start it in a fresh interpreter, offline.

    The same code as in the checkout, byte for byte, and a models.toml that lists these models.

    Raises:
        SpaceError: a folder that holds no model, a name that no folder can have, two of one name, no gradio, or a demo
        that does not start; PublishError: OUTPUT would replace a model, or a model names paths of this machine. OUTPUT
        then is not made.
    """
    names = [name, *(Path(classifier).absolute().name for classifier in classifiers)]
    wrong = [found for found in names if not re.fullmatch(r"[A-Za-z0-9._-]+", found) or not found.strip(".")]
    if wrong:
        raise SpaceError(
            f"a model cannot be called {wrong[0]!r}: --name and the names of classifiers' folders consist of letters "
            "(A to Z, a to z), digits, '.', '_' and '-', and not of dots alone"
        )
    twice = [found for found in names if names.count(found) > 1]
    if twice:
        raise SpaceError(f"two models would be called {twice[0]}; the tabs list them by the name of their folder")
    check_not_replaced(Path(output), [model, *classifiers])
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        raise SpaceError("the demo needs gradio, which is not installed: pip install '.[space]'") from None
    sources = {"language": {name: Path(model)}, "classifier": dict(zip(names[1:], map(Path, classifiers), strict=True))}
    with new_folder(output, overwrite) as folder:
        copy_code(folder)
        rows = []
        for kind, named in sources.items():
            for title, source in named.items():
                place = f"models/{title}"
                copy_model(source, folder / place)
                rows.append(f'[[{kind}]]\nname = "{title}"\nsource = "{place}"\n')
        (folder / "space" / "models.toml").write_text("\n".join(rows), encoding="utf-8")
        titles = ", ".join(title for named in sources.values() for title in named)
        (folder / "README.md").write_text(README.format(gradio=gradio, models=titles), encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        started = start(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [f"the demo starts by itself, offline, with {started}", f"{size / 1e6:.1f} MB, app_file space/app.py"]


def copy_code(folder: Path) -> None:
    """Copy the Python files of the packages and the data that the tabs show."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    files += [path for pattern in DATA for path in ROOT.glob(pattern) if path.is_file()]
    for path in files:
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def copy_model(source: Path, place: Path) -> None:
    """Copy what loading needs: config without private settings, tokenizer, safetensors. Raises as `make_space`."""
    place.mkdir(parents=True)
    for pattern in MODEL_FILES:
        found = sorted(source.glob(pattern))
        if not found and pattern != "tokenizer_config.json":
            raise SpaceError(f"{source} has no {pattern.replace('*', '')}; give the folder of a trained model")
        for path in found:
            shutil.copyfile(path, place / path.name)
    config = {key: value for key, value in read_json(place / "config.json").items() if not SOURCE_ONLY.fullmatch(key)}
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    check_nothing_private(place, source)


def requirements() -> list[str]:
    """What the demo needs besides gradio, as pyproject.toml states it."""
    project = read_project()
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    chosen = {re.split(r"[^\w.-]", line)[0]: line for line in extras if re.split(r"[^\w.-]", line)[0] in NEEDED}
    absent = sorted(set(NEEDED) - set(chosen))
    if absent:
        raise SpaceError(f"pyproject.toml does not name {', '.join(absent)}")
    return [*project["dependencies"], *(chosen[package] for package in sorted(chosen))]


def start(folder: Path) -> str:
    """Build the demo in the folder in a fresh interpreter; returns the names of the models. Raises SpaceError."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "STRANDBERT_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CHECK]
    with tempfile.TemporaryDirectory() as cache:  # numba would write its kernels into the folder
        environment["NUMBA_CACHE_DIR"] = cache
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SpaceError(f"the demo does not start:\n{result.stderr.strip()[-2000:]}")
    return result.stdout.strip().splitlines()[-1]
