"""Reading published DNABERT-2 checkpoints and their fine-tunes, in every form in which they are found."""

import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile
BACKBONE_PARTS = ("embeddings.", "encoder.", "pooler.")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
GIT_LFS_POINTER = b"version https://git-lfs"
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how files of torch.save begin, from torch 1.6 on and before


class ConversionError(ValueError):
    """A checkpoint that cannot be converted without guessing; the message names the file, weight or setting."""


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises ConversionError naming file and line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} must hold a JSON object, found a {type(content).__name__}")
    return content


def weight_files(folder: Path) -> list[Path]:
    """
    The files that hold a checkpoint's weights: one file, or the shards that an index names.

    Safetensors win over .bin when a folder holds both, as in transformers. Raises ConversionError when there is none.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if not path.exists():
            continue
        if not name.endswith(".index.json"):
            return [path]
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConversionError(f"{path} has no weight_map")
        outside = [shard for shard in weight_map.values() if not is_plain_name(shard)]
        if outside:
            raise ConversionError(f"{path} is refused: it names {outside[0]!r}, which is not a file of this folder")
        shards = [folder / shard for shard in sorted(set(weight_map.values()))]
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent:
            raise ConversionError(f"{path} names shards that are not in the folder: {', '.join(absent)}")
        return shards
    raise ConversionError(f"{folder} holds no weights; one of these is needed: {', '.join(WEIGHT_FILES)}")


def is_plain_name(name: object) -> bool:
    """Whether a name that came with a checkpoint is that of a file beside it, not a path to somewhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """
    All weights of a checkpoint folder on the CPU, under the names of a head model ("bert.embeddings...", "cls...").

    Raises:
        ConversionError: unreadable file, a .bin that would run code, something that is not a tensor, a name twice.
    """
    weights, origin = {}, {}
    for path in weight_files(folder):
        for name, tensor in read_tensor_file(path).items():
            if name in weights:
                raise ConversionError(f"{name} is in {origin[name]} and again in {path.name}")
            weights[name], origin[name] = tensor, path.name
    return canonical_names(weights)


def check_first_bytes(path: Path) -> None:
    """Raise ConversionError when a file does not begin like weights: git-lfs pointers, web pages, empty files."""
    with path.open("rb") as file:
        start = file.read(60)
    if start.startswith(GIT_LFS_POINTER):
        raise ConversionError(
            f"{path} is a git-lfs pointer, a short text in place of the weights; run `git lfs pull` in the repository "
            "it came with, or download the file again"
        )
    safetensors = start[8:9] == b"{"  # after the length of the header, 8 bytes
    if not (safetensors if path.suffix == ".safetensors" else start.startswith((ZIP, PICKLE))):
        kind = "safetensors" if path.suffix == ".safetensors" else "a file of torch.save"
        found = f"it begins with {start[:20]!r}" if start else "it is empty"
        raise ConversionError(f"{path} is damaged or not a checkpoint: {found}, not like {kind}; download it again")


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """
    Name -> tensor of one .safetensors or .bin file; a .bin is read with weights_only=True, which runs no code.

    Raises:
        ConversionError: not weights, damaged, or a .bin that holds more than tensors.
    """
    check_first_bytes(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        refuse_old_torch(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ConversionError:
        raise
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} is refused: it holds more than weights, and loading it could run code that came with it. "
            f"({str(error).splitlines()[0]})"
        ) from None
    except Exception as error:  # altered bytes raise almost anything: IndexError, struct.error, ...
        raise ConversionError(f"{path} cannot be read; it is damaged or incomplete. ({error})") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}; a state dict (name -> tensor) is needed")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ConversionError(
                f"{path} holds {name!r}, a {type(value).__name__}, beside or instead of weights; save the model's "
                "state_dict() alone"
            )
    return content


def refuse_old_torch(path: Path) -> None:
    """Raise ConversionError where weights_only=True can be circumvented: torch before 2.6 (CVE-2025-32434)."""
    if [int(part) for part in torch.__version__.split(".")[:2]] < [2, 6]:
        raise ConversionError(
            f"{path} is refused: with torch {torch.__version__} a .bin can run code even when it is read as weights "
            "only; install torch 2.6 or newer"
        )


def canonical_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrapper prefixes and give the parts of a bare encoder their "bert." prefix. Raises ConversionError."""
    renamed = {}
    for name, tensor in weights.items():
        new = name
        while new.startswith(WRAPPERS):
            new = new.split(".", 1)[1]
        if new.startswith(BACKBONE_PARTS):
            new = "bert." + new
        if new in renamed:
            raise ConversionError(f"{name} and another weight both stand for {new}")
        renamed[new] = tensor
    return renamed
