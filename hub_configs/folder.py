"""Model folders: what they hold, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from modeling.configuration_strandbert import AUTO_MAP
from tokenization.tokenizer_files import save_tokenizer_files, write_text_atomically

from .card import ROOT, tomllib
from .checkpoint import ConversionError, read_json

CODE_FOLDER = ROOT / "modeling"
SOURCE_ONLY = re.compile(r"_.*|transformers_version|use_cache")  # settings of a config.json that are not published
ROOTS = (
    "home|root|Users|tmp|var|mnt|data|scratch|work|opt|private|media|Volumes|srv|users|project|projects|storage|gpfs|"
    "lustre|nfs|cluster|workspace|content"
)
LOCAL_PATH = re.compile(rf"(?:(?<![\w/.:-])/(?:{ROOTS})/|\b[A-Za-z]:\\)[\w.\\/-]+")
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class PublishError(RuntimeError):
    """A model that cannot be published, or an upload that did not happen; the message says what to do."""


def code_files() -> list[Path]:
    """
    The files of modeling/ that travel with a model: the one that auto_map names and all that it imports.

    The rest (`__init__.py`, `doctor.py`) serves the installed package. Found as transformers' own loader finds them.
    """
    main = CODE_FOLDER / "modeling_strandbert.py"
    return sorted({main, *map(Path, get_relative_import_files(str(main)))})


def write_model_code(folder: str | Path) -> None:
    """Copy the model's code into a model folder, flat and byte for byte, so that trust_remote_code finds it there."""
    for path in code_files():
        write_text_atomically(Path(folder) / path.name, path.read_text(encoding="utf-8"))


def foreign_code(folder: str | Path) -> list[str]:
    """
    What loading a folder with trust_remote_code could run that is not the code of modeling/; empty when nothing is.

    One line for every .py file, at any depth, that is not a file of modeling/ byte for byte, for every auto_map entry
    that is not one of AUTO_MAP, for pipelines of its own, and for an adapter, in whose place transformers loads its
    base model. Raises ConversionError for JSON that cannot be read, and for code that is a dangling link.
    """
    folder = Path(folder)
    check_links(folder)
    ours = {path.name: path.read_bytes() for path in code_files()}
    lines = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if path.name not in ours:
            lines.append(f"{name} is not a file of StrandBERT")
        elif path.read_bytes() != ours[path.name]:
            lines.append(f"{name} differs from {CODE_FOLDER / path.name}")
    for path in sorted(folder.glob("*config.json")):
        content = read_json(path)
        if content.get("custom_pipelines"):
            lines.append(f"{path.name}: custom_pipelines name code that pipeline() would run")
        auto_map = content.get("auto_map") or {}
        references = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
        for reference in flat(references):
            if reference is not None and reference not in AUTO_MAP.values():
                lines.append(f"{path.name}: auto_map names {reference!r}, which is not in StrandBERT")
    if (folder / "adapter_config.json").exists():
        lines.append("adapter_config.json names a base model, which would be loaded with its own code")
    return lines


def check_links(folder: Path) -> None:
    """Raise ConversionError for a .py file, at any depth, that is a link to a file that is not there."""
    for path in sorted(folder.rglob("*.py")):
        if path.is_symlink() and not path.exists():
            raise ConversionError(
                f"{path} is a dangling link to {path.readlink()}; copy the folder that it came from with cp -rL, which "
                "copies the files themselves"
            )


def flat(values: Iterable) -> Iterator:
    """The values, with those of lists in place of the lists."""
    for value in values:
        yield from value if isinstance(value, list) else [value]


def write_model_folder(
    folder: str | Path,
    config: dict,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | str | dict,
    model_max_length: int | None = None,
) -> None:
    """
    Write everything that `from_pretrained` needs into an existing folder: code, config, tokenizer, safetensors.

    config: the content of config.json, with auto_map. weights: parameters by name, tied ones once.
    tokenizer: a `tokenizers.Tokenizer` or its JSON; special ids are checked (ValueError).
    model_max_length: tokens at which the tokenizer cuts when it is asked to; None: no limit.
    """
    folder = Path(folder)
    write_model_code(folder)
    write_text_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    save_tokenizer_files(tokenizer, folder, model_max_length)
    write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors under a temporary name in the same folder, then rename; readable by everyone the umask allows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, metadata=metadata)
        temporary.chmod(mode)  # safetensors makes files that only their owner reads
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """
    A temporary folder beside `path` that becomes `path` when the block ends without an error, and is removed otherwise.

    With overwrite an existing model folder stays in place until the new one is complete; when the replacing itself is
    interrupted, it is put back. Where `path` is a symbolic link, the folder it points to is meant.

    Raises:
        FileExistsError: `path` exists and is not empty, and overwrite is False or it is not a model folder.
    """
    path = Path(path).resolve()
    check_output(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError unless `path` is free, an empty folder, or a model or Space that may be overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{path} already exists; choose another folder or pass --overwrite")
    if not (path / "config.json").is_file() and not (path / "space" / "app.py").is_file():
        raise FileExistsError(f"{path} is not a model folder (it has no config.json), so it is not overwritten")


def check_not_replaced(output: Path, sources: Iterable[Path]) -> None:
    """Raise PublishError when `output` is, or holds, a folder that the new one is made from."""
    output = output.resolve()
    for source in (Path(source).resolve() for source in sources):
        if output == source or output in source.parents:
            raise PublishError(f"--output {output} would replace {source}; choose another folder")


def check_nothing_private(folder: Path, source: Path) -> None:
    """Raise PublishError for a path of this machine in a text file, or a file that is a pickle."""
    here = {str(source.resolve()), str(Path.home()), str(ROOT), tempfile.gettempdir()} - {"/"}
    code = {path.name for path in code_files()}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            start = file.read(9)
        safetensors = path.suffix == ".safetensors" and start[8:] == b"{"  # after 8 bytes of length, which may be any
        if start.startswith(PICKLES) and not safetensors:
            raise PublishError(f"{path.name} is a pickle or a zip file; nothing of the kind is published")
        if path.suffix in (".safetensors", ".onnx") or path.name in (*code, "tokenizer.json"):
            continue
        text = path.read_text(encoding="utf-8")
        found = [match.group() for match in LOCAL_PATH.finditer(text)] + [part for part in here if part + "/" in text]
        if found:
            raise PublishError(f"{path.name} holds a path of this machine, {found[0]}; change it in {source}")


def read_project() -> dict:
    """The table [project] of pyproject.toml: dependencies and optional-dependencies."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def simulated_hub_cache(folder: str | Path, cache: str | Path, repository: str) -> None:
    """Copy a model folder into a Hub cache as a download of `repository` ("org/name") would have left it."""
    place, commit = Path(cache) / f"models--{repository.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
