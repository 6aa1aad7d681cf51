"""
Check a model folder: load it offline in a fresh interpreter, without the checkout, and compare its outputs with
stored reference outputs.

    python -m hub_configs.verify FOLDER                      compare with FOLDER/reference_outputs.safetensors
    python -m hub_configs.verify FOLDER --reference FILE     compare with another reference
    python -m hub_configs.verify FOLDER --write-reference    compute and store the reference from the folder's weights

Loading a folder runs the .py files in it, as with trust_remote_code=True anywhere. They are compared with modeling/
first; when they differ, or there are others, the folder is not loaded unless --trust-code is given.

A reference is computed from config.json and model.safetensors by plain float64 arithmetic (hub_configs/reference.py),
not by the model's code. Exit code 0: all outputs agree; 1: they do not, or the folder does not load.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import ConversionError, check_first_bytes, read_json, weight_files
from .folder import check_links, foreign_code, sha256_of, simulated_hub_cache
from .reference import REFERENCE_FILE, read_reference, read_tokenizer, write_reference

FRESH_LOAD = Path(__file__).with_name("fresh_load.py")
CACHES = (  # of the user: they win over HF_HOME, the TRANSFORMERS ones in transformers 4
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE",
)
CHECKOUT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # of the largest reference value, and at least of 1


class VerificationError(RuntimeError):
    """A folder that does not load, or whose outputs are not those of its reference."""


def verify(
    folder: str | Path,
    reference: str | Path | None = None,
    tolerance: float = TOLERANCE,
    trust_code: bool = False,
) -> list[str]:
    """
    Load a folder in a fresh interpreter and compare with a reference file; returns the lines of the report.

    trust_code: run the folder's code even when it is not the code of modeling/.

    Raises:
        VerificationError: no reference, code that is not trusted, the folder does not load, or an output differs; the
            message says which. ConversionError: a file of the folder is absent or damaged.
    """
    folder = Path(folder).resolve()
    reference = Path(reference) if reference else folder / REFERENCE_FILE
    check_files(folder)
    if not reference.is_file():
        raise VerificationError(
            f"there are no reference outputs at {reference}; name a file with --reference, or make one from weights "
            "you trust with --write-reference"
        )
    expected, sequences = read_reference(reference)
    foreign = [] if trust_code else foreign_code(folder)
    if foreign:
        raise VerificationError(
            f"{folder} is not loaded: loading would run code that is not that of this StrandBERT (another version, or "
            "changed by someone). Read it, then pass --trust-code to run it.\n  " + "\n  ".join(foreign)
        )
    report, outputs = load_in_fresh_interpreter(folder, reference)
    lines = describe(folder, reference, report)
    if sequences is not None:
        check_token_ids(report, expected, lines)
    differences, failed = compare(outputs, expected, tolerance)
    if failed:
        raise VerificationError("\n".join([*lines, *differences, "the outputs are NOT those of the reference"]))
    return [*lines, *differences, "all outputs agree with the reference"]


def check_files(folder: Path) -> None:
    """Raise VerificationError or ConversionError, naming the file, when a folder cannot be loaded; runs none of it."""
    if not (folder / "config.json").is_file():
        raise VerificationError(f"{folder} is not a model folder: it has no config.json")
    config = read_json(folder / "config.json")
    absent = [key for key in ("architectures", "auto_map") if not config.get(key)]
    if absent:
        raise VerificationError(f"{folder / 'config.json'} lacks {', '.join(absent)}; it does not say what to load")
    check_links(folder)
    for path in weight_files(folder):
        check_first_bytes(path)
    read_tokenizer(folder / "tokenizer.json")


def load_in_fresh_interpreter(
    folder: Path, reference: Path, as_repository: str | None = None
) -> tuple[dict, dict[str, Tensor]]:
    """
    Report and outputs of fresh_load.py, run with an empty module cache and without the checkout on its path.

    as_repository: load under this Hub name ("org/name") from a simulated, offline Hub cache instead of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="strandbert-verify-") as scratch:
        outputs = Path(scratch, "outputs.safetensors")
        environment = fresh_environment(scratch)
        if as_repository:
            environment["HF_HUB_CACHE"] = str(Path(scratch, "hub"))
            simulated_hub_cache(folder, Path(scratch, "hub"), as_repository)
        source = as_repository or str(folder)
        command = [sys.executable, str(FRESH_LOAD), source, str(reference.resolve()), str(outputs)]
        run = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise VerificationError(f"{source} does not load in a fresh interpreter:\n{run.stderr.strip()}")
        report = json.loads(run.stdout.splitlines()[-1])
        different = [name for name, sha256 in report["code"].items() if sha256 != sha256_of(folder / name)]
        if different:
            raise VerificationError(f"the code that ran is not that of {folder}: {', '.join(different)}")
        return report, load_file(outputs)


def fresh_environment(scratch: str | Path) -> dict[str, str]:
    """Environment of a process that is offline, has caches of its own in `scratch`, and cannot import the checkout."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **{name: value for name, value in os.environ.items() if name not in CACHES},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(Path(scratch, "cache")),
        "HF_MODULES_CACHE": str(Path(scratch, "modules")),
        "PYTHONPATH": os.pathsep.join(entry for entry in path if entry and Path(entry).resolve() != CHECKOUT),
        "PYTHONSAFEPATH": "1",
    }


def describe(folder: Path, reference: Path, report: dict) -> list[str]:
    """What was loaded from where, with a SHA-256 for every file of the folder."""
    libraries = ", ".join(f"{name} {report[name]}" for name in ("python", "torch", "transformers", "tokenizers"))
    lines = [
        f"folder     {folder}",
        f"model      {report['model_class']} by {report['auto_class']}, {report['parameters']:,} parameters",
        f"libraries  {libraries}",
        f"reference  {reference}",
    ]
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        ran = "  (ran)" if path.name in report["code"] else ""
        lines.append(f"sha256     {sha256_of(path)}  {path.name}{ran}")
    return lines


def check_token_ids(report: dict, expected: dict[str, Tensor], lines: list[str]) -> None:
    """Raise VerificationError, after these lines, when the folder's tokenizer gives other ids than the reference."""
    rows = zip(expected["input_ids"], expected["attention_mask"], strict=True)
    if report["input_ids"] != [row[mask.bool()].tolist() for row, mask in rows]:
        raise VerificationError("\n".join([*lines, "the tokenizer gives other ids than the reference was made with"]))


def compare(outputs: dict, expected: dict, tolerance: float) -> tuple[list[str], bool]:
    """One line per output and backend, and whether any of them differs, is missing or is not finite."""
    lines, failed = [], False
    names = [name for name in ("last_hidden_state", "logits") if name in expected]
    for name in names:
        allowed = tolerance * max(1.0, float(expected[name].abs().max()))
        for backend in ("default", "eager"):
            found = outputs.get(f"{name}.{backend}")
            if found is None or found.shape != expected[name].shape:
                shape = None if found is None else tuple(found.shape)
                lines.append(f"{name} ({backend}): shape {shape}, the reference has {tuple(expected[name].shape)}")
                failed = True
                continue
            difference = float((found - expected[name]).abs().max())
            wrong = not difference <= allowed  # NaN is wrong
            lines.append(
                f"output     {name} ({backend} backend): largest difference {difference:.2e}, allowed {allowed:.2e}"
                + ("  <-- DIFFERS" if wrong else "")
            )
            failed |= wrong
    if not names:
        return ["the reference holds neither last_hidden_state nor logits"], True
    return lines, failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hub_configs.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="model folder: config.json, code, tokenizer, model.safetensors")
    parser.add_argument("--reference", type=Path, help=f"safetensors file (default: FOLDER/{REFERENCE_FILE})")
    parser.add_argument("--write-reference", action="store_true", help="compute the reference first, then compare")
    parser.add_argument(
        "--trust-code", action="store_true", help="run the folder's .py files even when they are not those of modeling/"
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.write_reference:
            check_files(options.folder)
            print(f"wrote {write_reference(options.folder)}")
        print("\n".join(verify(options.folder, options.reference, options.tolerance, options.trust_code)))
    except (VerificationError, ConversionError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
