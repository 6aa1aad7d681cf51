"""
What is installed here, which attention backend would run and why, and whether a model folder is sound.

    python -m modeling.doctor              versions, devices, backends        (installed: python -m strandbert.doctor)
    python -m modeling.doctor FOLDER       and check a model folder; none of the code in it runs

Exit code 1 when the folder has a problem.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from .alibi_attention import BACKENDS, BANDED_FROM, check_backend, choose_backend
from .configuration_strandbert import AUTO_MAP, StrandBertConfig
from .fused_linear import onednn_is_better
from .modeling_strandbert import (
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
)

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub")
OPTIONAL_PACKAGES = ("flash-attn", "triton", "kernels", "accelerate", "peft", "onnxruntime")
LENGTHS = (128, 1000, 10_000, 100_000)  # tokens
DTYPES = (torch.float32, torch.bfloat16)
CLASSES = (
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
)
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
SAME = 1e-3  # of the largest value
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def versions() -> list[str]:
    """One line for Python and each package, installed or not."""
    lines = [f"python           {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed" + ("" if package in PACKAGES else " (optional)")
        lines.append(f"{package:16} {found}")
    return lines


def devices() -> list[tuple[str, str]]:
    """Device type and a description of each device that torch sees."""
    fast = (
        "oneDNN linear layers" if onednn_is_better(torch.float32) else "torch's own linear layers (no faster ones here)"
    )
    found = [("cpu", f"{torch.get_num_threads()} threads; {fast}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        found.append(("cuda", f"{device.name}, compute capability {device.major}.{device.minor}, {memory}"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return found


def backend_reasons() -> list[str]:
    """One line for each backend: it can be asked for, or why not."""
    lines = []
    for name in BACKENDS[1:]:
        try:
            check_backend(name)
            lines.append(f"{name:18} can be asked for")
        except ImportError as error:
            lines.append(f"{name:18} no: {str(error).split(': ', 1)[-1]}")
    return lines


def choices(device: str) -> list[str]:
    """Which backend runs when none is asked for, and why, for each precision and length in tokens."""
    lines = []
    for dtype in DTYPES:
        for length in LENGTHS:
            name = choose_backend(device, dtype, length)
            precision = str(dtype).removeprefix("torch.")
            lines.append(f"{device:5} {precision:9} {length:>7,} tokens  {name:18} {reason_for(name, device, length)}")
    return lines


def reason_for(name: str, device: str, length: int) -> str:
    """Why `choose_backend` takes a backend."""
    if name == "flash_attention_2":
        return "flash-attn with alibi_slopes is installed; it computes in fp16 and bf16"
    if name == "alibi_banded":
        return (
            f"from {BANDED_FROM:,} tokens on, skipping far keys saves more than it costs; memory linear in the length"
        )
    return f"below {BANDED_FROM:,} tokens one dense call is fastest"


def check_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """
    What a model folder holds, and its problems (none: the folder is sound), each in one line.

    Code in the folder is compared with this package's, never run; weights are read by safetensors alone.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = StrandBertConfig(**content)
    except (OSError, ValueError, TypeError) as error:
        return [], [f"config.json: {error}"]
    if content.get("model_type") != StrandBertConfig.model_type:
        return [], [f"config.json: model_type is {content.get('model_type')!r}, not {StrandBertConfig.model_type!r}"]
    architecture = (config.architectures or [None])[0]
    model_class = next((found for found in CLASSES if found.__name__ == architecture), None)
    if model_class is None:
        return [], [f"config.json: architectures is {config.architectures}; none of ours"]
    notes = [f"model            {architecture}, {config.num_hidden_layers} layers, hidden {config.hidden_size}"]
    problems = [*check_code(folder, content), *check_tokenizer(folder, config)]
    problems += [
        f"{path.name}: pickle; it can run code when loaded, and is not needed beside safetensors"
        for path in sorted(folder.iterdir())
        if path.suffix in PICKLES
    ]
    weight_notes, weight_problems = check_weights(folder, config, model_class)
    if not weight_problems:
        run_notes, weight_problems = try_model(folder, config, model_class)
        weight_notes += run_notes
    return notes + weight_notes, problems + weight_problems


def check_code(folder: Path, content: dict) -> list[str]:
    """Problems of auto_map and of the code files, against this package."""
    problems = (
        [] if content.get("auto_map") == AUTO_MAP else ["config.json: auto_map is not the full one of this version"]
    )
    here = Path(__file__).parent
    needed = {reference.split(".")[0] + ".py" for reference in AUTO_MAP.values()}
    problems += [
        f"{name}: missing; trust_remote_code=True cannot load it" for name in needed if not (folder / name).exists()
    ]
    for path in sorted(folder.glob("*.py")):
        own = here / path.name
        if not own.is_file():
            problems.append(f"{path.name}: not a file of StrandBERT; read it before you load the folder")
        elif own.read_bytes() != path.read_bytes():
            problems.append(f"{path.name}: differs from the installed version (older, newer, or changed)")
    return problems


def check_tokenizer(folder: Path, config: StrandBertConfig) -> list[str]:
    """Problems of tokenizer.json: unreadable, more ids than the model has, special tokens with other ids."""
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more special
        return [f"tokenizer.json: {str(error).splitlines()[0]}"]
    problems = []
    if len(tokenizer) > config.vocab_size:
        problems.append(f"tokenizer.json: {len(tokenizer)} tokens, but the model has {config.vocab_size}")
    for token in SPECIAL_TOKENS:
        expected = getattr(config, f"{token[1:-1].lower()}_token_id")
        if (found := tokenizer.get_vocab().get(token)) != expected:
            problems.append(f"tokenizer.json: {token} has id {found}, config.json says {expected}")
    return problems


def check_weights(folder: Path, config: StrandBertConfig, model_class: type) -> tuple[list[str], list[str]]:
    """Notes and problems of model.safetensors: names and shapes against the config, values that are not numbers."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return [], ["model.safetensors: missing"]
    with torch.device("meta"):
        model = model_class(config)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    problems, found, dtypes = [], {}, set()
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
                tensor = file.get_tensor(name)
                found[name] = tuple(tensor.shape)
                dtypes.add(str(tensor.dtype).removeprefix("torch."))
                if not bool(tensor.isfinite().all()):
                    problems.append(f"model.safetensors: {name} holds NaN or infinity")
    except Exception as error:  # safetensors raises its own type, or OSError
        return [], [f"model.safetensors: damaged ({error})"]
    optional = {name for name in found if "pooler." in name and name not in expected} | tied
    problems += [f"model.safetensors: {name} is missing" for name in expected if name not in found]
    problems += [
        f"model.safetensors: {name} is not of this model" for name in found if name not in {*expected, *optional}
    ]
    problems += [
        f"model.safetensors: {name} is {found[name]}, config.json gives {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    parameters = sum(torch.Size(shape).numel() for shape in found.values())
    return [f"weights          {len(found)} tensors, {parameters:,} parameters, {', '.join(sorted(dtypes))}"], problems


def try_model(folder: Path, config: StrandBertConfig, model_class: type) -> tuple[list[str], list[str]]:
    """Notes and problems of running two sequences, alone and padded together, on the CPU: the results must agree."""
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (2, 40), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    with torch.no_grad():
        together = model(ids, mask, output_hidden_states=True).hidden_states[-1]
        alone = model(ids[1:, :25], output_hidden_states=True).hidden_states[-1]
    difference = float((together[1:, :25] - alone).abs().max())
    text = f"a sequence alone and in a padded batch differ by {difference:.1e}"
    if not difference <= SAME * max(1.0, float(alone.abs().max())):  # NaN is a problem
        return [], [f"model.safetensors: the model does not compute with these weights; {text}"]
    return [f"runs             yes; {text}"], []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="model folder to check")
    options = parser.parse_args(arguments)
    found = devices()
    print("\n".join(["Versions", *versions(), "", "Devices", *(f"{kind:16} {text}" for kind, text in found)]))
    print("\n".join(["", "Backends", *backend_reasons(), "", "What runs when none is asked for"]))
    for kind in dict.fromkeys(kind for kind, _ in found):
        print("\n".join(choices(kind)))
    if options.folder is None:
        return 0
    notes, problems = check_folder(options.folder)
    print("\n".join(["", f"Folder {options.folder}", *notes, *(f"PROBLEM          {text}" for text in problems)]))
    print(f"{len(problems)} problems" if problems else "the folder is sound")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
