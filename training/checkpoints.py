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
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from hub_configs.folder import write_model_code
from modeling.configuration_strandbert import AUTO_MAP, StrandBertConfig
from tokenization.tokenizer_files import NO_LENGTH_LIMIT, save_tokenizer_files, write_text_atomically
from training.arguments import LAST_CHECKPOINT, RunArguments

logger = logging.getLogger(__name__)

COMPLETE = "checkpoint_complete.json"
WEIGHTS = "model.safetensors"
SCALER = "scaler.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_VALUES = "optimizer.json"
OPTIMIZER_SETTINGS = ("initial_lr", "betas", "eps", "weight_decay")  # of this run, not of the checkpoint
ARCHITECTURE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "glu_activation",
    "type_vocab_size",
)


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
    limit = min(tokenizer.model_max_length, NO_LENGTH_LIMIT)  # transformers' own for no limit is 1e30
    save_tokenizer_files(tokenizer.backend_tokenizer.to_str(), folder, limit)


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
    if not checkpoint.is_dir():
        return "no such folder"
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


def check_same_model(checkpoint: str | Path, config: StrandBertConfig, tokenizer: PreTrainedTokenizerBase):
    """
    Make sure that a checkpoint is of the model and the tokenizer that were asked for.

    Raises:
        CheckpointError: naming what differs, with both values.
    """
    checkpoint = Path(checkpoint)
    difference = None
    if (checkpoint / "config.json").is_file():
        saved = StrandBertConfig.from_pretrained(checkpoint)
        for name in ARCHITECTURE:
            old, new = getattr(saved, name), getattr(config, name)
            if old != new:
                difference = difference or f"{name} is {old!r} in the checkpoint but {new!r} in the model asked for"
    if difference is None and (checkpoint / "tokenizer.json").is_file():
        saved = json.loads((checkpoint / "tokenizer.json").read_text())
        difference = _tokenizer_difference(saved["model"], json.loads(tokenizer.backend_tokenizer.to_str())["model"])
    if difference:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: {difference}; name the same model and tokenizer as before, choose "
            "another --output_dir, or start over with --overwrite_output_dir"
        )


def changed_model_settings(checkpoint: str | Path, config: StrandBertConfig) -> dict[str, tuple]:
    """Settings of the model besides its architecture, such as dropout, that differ: name to (saved, asked for)."""
    if not (Path(checkpoint) / "config.json").is_file():
        return {}
    saved = StrandBertConfig.from_pretrained(checkpoint)
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps")
    pairs = {name: (getattr(saved, name), getattr(config, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _tokenizer_difference(saved: dict, wanted: dict) -> str | None:
    """The first thing in which the vocabularies or merges of two tokenizer.json differ."""
    place = "in the checkpoint's tokenizer but {} in the one asked for"
    old, new = saved["vocab"], wanted["vocab"]
    if len(old) != len(new):
        return f"vocab has {len(old):,} tokens {place.format(f'{len(new):,}')}"
    if old != new:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return "vocab of the checkpoint's tokenizer is not that of the one asked for"
        token = min((token for token in old if old[token] != new.get(token)), key=old.get)
        return f"vocab[{token!r}] is {old[token]} {place.format(new.get(token, 'absent'))}"
    old, new = (
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        for model in (saved, wanted)
    )
    if len(old) != len(new):
        return f"merges has {len(old):,} entries {place.format(f'{len(new):,}')}"
    for index, (first, second) in enumerate(zip(old, new, strict=True)):
        if first != second:
            return f"merges[{index}] is {first!r} {place.format(repr(second))}"
    return None


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders by ascending step, whole or not."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(output_dir).glob("checkpoint-*")}
    return sorted((path for path, match in found.items() if match), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimiser step in the name of a checkpoint folder."""
    return int(checkpoint.name.split("-")[1])


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are passed over with a warning."""
    for checkpoint in reversed(checkpoints_in(output_dir)):
        problem = what_is_wrong(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("Passing over %s: %s", checkpoint, problem)
    return None


def find_checkpoint(args: RunArguments, check_free: Callable[[], None]) -> str | None:
    """
    The checkpoint to resume from: the one named, else the last whole one in the output folder; None to start.

    Args:
        check_free: called when the run goes on from no checkpoint of the output folder and does not start over; raises
            CheckpointError when the folder has contents that would be lost.

    Raises:
        CheckpointError: a named checkpoint that is broken, or contents of the output folder that would be lost.
    """
    output_dir, named = args.output_dir, args.resume_from_checkpoint
    if named == LAST_CHECKPOINT:
        named = last_whole_checkpoint(output_dir)
        if named is None:
            raise CheckpointError(
                f"{output_dir} holds no complete checkpoint to resume from; leave out --resume_from_checkpoint to "
                "start a new run"
            )
    if named:
        _check_named(Path(named), args, check_free)
        return str(named)
    if args.overwrite_output_dir:
        return None
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint is None:
        check_free()
    return checkpoint and str(checkpoint)


def _check_named(named: Path, args: RunArguments, check_free: Callable[[], None]):
    """Raise CheckpointError when the named checkpoint is broken, or going on from it would lose others."""
    others = checkpoints_in(args.output_dir)
    inside = [path for path in others if path.resolve() == named.resolve()]
    if inside and args.overwrite_output_dir:
        raise CheckpointError(
            f"--overwrite_output_dir would delete {named}, which --resume_from_checkpoint asks for; give one of the two"
        )
    problem = what_is_wrong(named)
    if problem:
        raise CheckpointError(f"cannot resume from {named}: {problem}")
    if args.overwrite_output_dir:
        return
    if inside:
        others = [path for path in others if step_of(path) > step_of(inside[0])]
    else:
        check_free()
    others = [path.name for path in others if what_is_wrong(path) is None]
    if others:
        raise CheckpointError(
            f"{args.output_dir} holds {', '.join(others[-3:])}, which would be lost by going on from {named}; choose "
            "another --output_dir, move them away, or leave out --resume_from_checkpoint to go on from the last one"
        )


def how_to_run_again(args: RunArguments) -> str:
    """Which command goes on from the last checkpoint of the output folder: without the flags that lead elsewhere."""
    hinder = ["--overwrite_output_dir"] if args.overwrite_output_dir else []
    if args.resume_from_checkpoint not in (None, LAST_CHECKPOINT):
        hinder.append("--resume_from_checkpoint")
    return f"run again without {' and '.join(hinder)}" if hinder else "run the same command again"


def how_to_go_on(args: RunArguments) -> str:
    """Advice after a save that failed: which checkpoint is left, and how training continues."""
    whole = [checkpoint for checkpoint in checkpoints_in(args.output_dir) if what_is_wrong(checkpoint) is None]
    kept = f"the last complete checkpoint, {whole[-1]}, is kept" if whole else "no checkpoint was complete yet"
    room = "Make room (--save_total_limit 1 keeps one checkpoint)"
    return f"{kept}. {room}, then {how_to_run_again(args)} to go on from the last one"


def remove_old_checkpoints(output_dir: str | Path, keep: int, best: str | None, step: int):
    """Delete all but the newest `keep` checkpoints up to a step and the best one; later ones were never finished."""
    for checkpoint in [path for path in checkpoints_in(output_dir) if step_of(path) <= step][:-keep]:
        if best is None or checkpoint.resolve() != Path(best).resolve():
            (checkpoint / COMPLETE).unlink(missing_ok=True)  # a half-deleted checkpoint must not look whole
            shutil.rmtree(checkpoint, ignore_errors=True)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that FSDP2 has sharded as a whole on the CPU, which every process must ask for; others unchanged."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def gathered_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole weights of a model that FSDP2 has sharded, each tied one once. Every process must call this."""
    tied = set(model._tied_weights_keys or ())
    return {name: whole_tensor(weight) for name, weight in model.state_dict().items() if name not in tied}


@torch.no_grad()
def load_sharded_weights(checkpoint: str | Path, model: torch.nn.Module):
    """
    Load the weights of a checkpoint into a model that FSDP2 has sharded. Every process must call this.

    Raises:
        CheckpointError: naming weights that are missing or left over.
    """
    saved = safetensors.torch.load_file(Path(checkpoint) / WEIGHTS)
    model.state_dict()  # shards again what an evaluation has gathered
    weights = dict(model.named_parameters())  # tied ones once
    wrong = saved.keys() ^ weights.keys()
    if wrong:
        raise CheckpointError(f"{checkpoint} does not fit the model: {', '.join(sorted(wrong))}")
    for name, weight in weights.items():
        weight.copy_(_as_sharded(saved[name], weight) if isinstance(weight, DTensor) else saved[name])


def _as_sharded(tensor: torch.Tensor, like: DTensor) -> DTensor:
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def save_optimizer(folder: str | Path, optimizer, scheduler, writes: bool = True):
    """
    Write the states of optimizer and scheduler: tensors as safetensors, everything else as JSON.

    States that FSDP2 has sharded are gathered first, so that any number of processes can go on from them; then every
    process must call this.

    Args:
        writes: whether this process writes.
    """
    state = optimizer.state_dict()
    tensors, values = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{name}"] = whole_tensor(value).contiguous()
            else:
                values[f"{index}.{name}"] = value
    if not writes:
        return
    tensors_file, values_file = Path(folder) / OPTIMIZER_TENSORS, Path(folder) / OPTIMIZER_VALUES
    safetensors.torch.save_file(tensors, tensors_file)
    content = {"param_groups": state["param_groups"], "values": values, "scheduler": scheduler.state_dict()}
    write_json(values_file, content)
    tensors_file.chmod(values_file.stat().st_mode)  # safetensors lets only the owner read


def load_optimizer(folder: str | Path, optimizer, scheduler):
    """
    Restore what `save_optimizer` wrote, also with another number of processes, sharded or not.

    Learning rate, betas, epsilon and weight decay stay those that optimizer and scheduler were made with.

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
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(weights[index], DTensor) and torch.is_tensor(value) and value.shape == weights[index].shape:
                entries[name] = _as_sharded(value, weights[index])
    asked = [{name: group[name] for name in OPTIMIZER_SETTINGS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)
    if isinstance(scheduler, LambdaLR):  # others find their rate from what they have seen
        peaks = scheduler.base_lrs
        scheduler.load_state_dict(content["scheduler"])
        scheduler.base_lrs = peaks
        rates = [peak * factor(scheduler.last_epoch) for peak, factor in zip(peaks, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
    else:
        scheduler.load_state_dict(content["scheduler"])


def save_scaler(folder: str | Path, scaler):
    """Write the state of the gradient scaler of fp16 training."""
    write_json(Path(folder) / SCALER, scaler.state_dict())


def load_scaler(folder: str | Path, scaler):
    """Restore what `save_scaler` wrote, if it is there."""
    if (Path(folder) / SCALER).is_file():
        scaler.load_state_dict(json.loads((Path(folder) / SCALER).read_text()))
