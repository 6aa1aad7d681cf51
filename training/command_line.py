"""What the scripts do with their command line and their messages."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).resolve().parents[1]
RECIPES = Path(__file__).parent / "recipes"
RECIPE_PATHS = ("config_name", "tokenizer_name")  # settings of a recipe that may name a folder of this checkout


class SettingsError(ValueError):
    """Settings that contradict each other or name something that is not there; the message says what to change."""


def parse_settings(
    argv: list[str], dataclass_types: tuple, script: str, description: str, recipes: Path = RECIPES
) -> tuple:
    """
    Read flags, or one .json or .yaml file that holds all of them; a recipe comes first where one is named.

    Raises:
        SettingsError: naming the file and the wrong key or value.
    """
    parser = _Parser(
        dataclass_types,
        usage=f"{script} [--flag value ...] | settings.json | settings.yaml    (--help lists the flags)",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    file, content = None, {}
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        file, argv = argv[0], []
    try:
        if file:
            content = _read_settings(Path(file))
        name_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        name_parser.add_argument("--recipe")
        name_parser.add_argument("--model_name_or_path", "--model-name-or-path", "--model")
        named, _ = name_parser.parse_known_args([*_as_flags(content), *argv])
        flags = _as_flags(_read_recipe(named.recipe, named.model_name_or_path, recipes) | content)
        return parser.parse_args_into_dataclasses([*flags, *argv], look_for_args_file=False)
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{file}: {error}" if file else str(error)) from None


class _Parser(HfArgumentParser):
    """Raises where argparse would print its usage and exit, so that the file with the wrong value can be named."""

    def error(self, message: str):
        raise ValueError(message)


def _read_settings(path: Path) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: a file of settings holds lines of the form name: value")
    return content


def recipe_names(recipes: Path = RECIPES) -> str:
    """The recipes of a folder, with commas between them."""
    return ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))


def _read_recipe(name: str | None, model: str | None, recipes: Path) -> dict:
    """Settings of a recipe; a model to go on from takes the place of the new one that the recipe describes."""
    if name is None:
        return {}
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(f"no recipe {name!r}; there are {recipe_names(recipes)}, or name a .yaml file")
    content = _read_settings(path)
    if model and "config_name" in content:  # another tokenizer of the same size would train without an error
        content = {key: value for key, value in content.items() if key not in RECIPE_PATHS}
    for key in RECIPE_PATHS:
        if key in content and not Path(content[key]).exists() and (ROOT / content[key]).exists():
            content[key] = str(ROOT / content[key])
    return content


def _as_flags(settings: dict) -> list[str]:
    """The words of a command line; of null and of an empty list none, which leaves the default."""
    flags = []
    for name, value in settings.items():
        if value is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as false
        values = value if isinstance(value, list) else [] if value is None else [value]
        words = [json.dumps(value) if isinstance(value, dict) else str(value) for value in values]
        flags += [f"--{name}", *words] if words else []
    return flags


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and shows defaults; of flags without one the text says what happens."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def check_processes(args: TrainingArguments):
    """
    Raises:
        SettingsError: the launcher started several processes, each of which would train alone in the same folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != args.world_size:
        raise SettingsError(
            f"{launched} processes were launched, but without a GPU each trains on its own; add --use_cpu to let them "
            "train together, or launch one"
        )


def set_up_logging(args: TrainingArguments):
    """Messages of the main process on stderr; of the others only what goes wrong."""
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO if args.process_index == 0 else logging.ERROR,
        handlers=[logging.StreamHandler(sys.stderr)],
    )
    for name in ("httpx", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # one bar per saved file
