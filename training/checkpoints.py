"""
Checkpoints that are whole or ignored, that load anywhere, and that hold no pickle.

A checkpoint folder carries the weights (safetensors), config.json, the tokenizer, the modeling code, and what
training needs to go on: optimizer.safetensors, optimizer.json, trainer_state.json. The last file written is
`checkpoint_complete.json`, with the size of every other file.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import safetensors.torch
import torch
from transformers import PreTrainedTokenizerBase

from hub_configs.folder import write_model_code
from modeling.configuration_strandbert import AUTO_MAP
from tokenization.tokenizer_files import save_tokenizer_files, write_text_atomically

logger = logging.getLogger(__name__)

COMPLETE = "checkpoint_complete.json"
SETTINGS_FILE = "run_settings.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_VALUES = "optimizer.json"


class CheckpointError(ValueError):
    """An output folder or checkpoint that training cannot go on from; the message says what to do."""


def write_json(path: str | Path, content):
    """Write JSON atomically."""
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def make_self_contained(folder: str | Path, tokenizer: PreTrainedTokenizerBase):
    """
    Complete a folder with weights and config.json, so that it loads with `trust_remote_code=True` without this
    project: the modeling code, an auto_map with all Auto classes, and tokenizer files for every transformers.
    """
    folder = Path(folder)
    write_model_code(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)  # safetensors lets only the owner read
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"auto_map": AUTO_MAP})
    save_tokenizer_files(tokenizer.backend_tokenizer.to_str(), folder)


def move_files(source: Path, target: Path):
    """Rename every file of a finished folder into another one, the weights first, and remove the empty folder."""
    for path in sorted(source.iterdir(), key=lambda path: path.suffix != ".safetensors"):
        os.replace(path, target / path.name)
    source.rmdir()


def mark_complete(checkpoint: str | Path):
    """Declare a checkpoint whole: list its files and their sizes. The last thing that is written into it."""
    checkpoint = Path(checkpoint)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()}
    sizes.pop(COMPLETE, None)
    write_json(checkpoint / COMPLETE, sizes)


def what_is_wrong(checkpoint: str | Path) -> str | None:
    """Say why training cannot go on from this checkpoint, or None when it is whole."""
    checkpoint = Path(checkpoint)
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text())
    except FileNotFoundError:
        return f"it has no {COMPLETE}: saving it was interrupted"
    except ValueError:
        return f"its {COMPLETE} is damaged"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} holds {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders by ascending step, whole or not."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(output_dir).glob("checkpoint-*")}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.name.split("-")[1]))


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are passed over with a warning."""
    for checkpoint in reversed(checkpoints_in(output_dir)):
        problem = what_is_wrong(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("Passing over %s: %s", checkpoint, problem)
    return None


def remove_old_checkpoints(output_dir: str | Path, keep: int, best: str | None):
    """Delete all but the newest `keep` checkpoints and the best one."""
    for checkpoint in checkpoints_in(output_dir)[:-keep]:
        if best is None or checkpoint.resolve() != Path(best).resolve():
            (checkpoint / COMPLETE).unlink(missing_ok=True)  # a half-deleted checkpoint must not look whole
            shutil.rmtree(checkpoint, ignore_errors=True)


def save_optimizer(folder: str | Path, optimizer, scheduler):
    """Write the states of optimizer and scheduler: tensors as safetensors, everything else as JSON."""
    state = optimizer.state_dict()
    tensors, values = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                values[f"{index}.{name}"] = value
    safetensors.torch.save_file(tensors, Path(folder) / OPTIMIZER_TENSORS)
    content = {"param_groups": state["param_groups"], "values": values, "scheduler": scheduler.state_dict()}
    write_json(Path(folder) / OPTIMIZER_VALUES, content)


def load_optimizer(folder: str | Path, optimizer, scheduler):
    """
    Restore what `save_optimizer` wrote.

    Raises:
        CheckpointError: the folder holds no optimizer state.
    """
    if not (Path(folder) / OPTIMIZER_TENSORS).is_file():
        raise CheckpointError(
            f"{folder} holds no {OPTIMIZER_TENSORS}; to start from its weights alone, give it as --model_name_or_path"
        )
    content = json.loads((Path(folder) / OPTIMIZER_VALUES).read_text())
    state: dict[int, dict] = {}
    entries = safetensors.torch.load_file(Path(folder) / OPTIMIZER_TENSORS) | content["values"]
    for key, value in entries.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
    scheduler.load_state_dict(content["scheduler"])
