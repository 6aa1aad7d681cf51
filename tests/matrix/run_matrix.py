"""
The load matrix: {oldest, newest transformers} x {local folder, offline Hub cache} x {triton absent, present}, every
Auto class in each, in fresh interpreters without the checkout, with uninitialised memory poisoned. Outputs must be
equal bit for bit in all cells and to the checkout's own model. `make test-matrix` runs it; a failing cell ends it with
exit code 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tqdm import tqdm

import modeling
from hub_configs.folder import write_model_folder
from hub_configs.verify import fresh_environment
from modeling.configuration_strandbert import AUTO_MAP
from tests.matrix import cell
from tokenization.tokenizer_files import bpe_tokenizer

CELL = Path(__file__).with_name("cell.py")
SIZES = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 64}
MODEL_CLASSES = {
    "mlm": "StrandBertForMaskedLM",
    "sequence": "StrandBertForSequenceClassification",
    "token": "StrandBertForTokenClassification",
}
EAGER_TOLERANCE = 1e-4  # largest difference between the default backend and eager


def build_sources(folder: Path) -> dict[str, str]:
    """Small random models, one per head, as folders written by the project's own code; "bin" is "mlm" as a .bin."""
    tokens = [left + right for left in "ACGT" for right in "ACGT"]
    merges = [(token[0], token[1]) for token in tokens] + [(token, base) for token in tokens for base in "ACGT"]
    tokenizer = bpe_tokenizer(merges[: SIZES["vocab_size"] - 9])
    sources = {}
    for name, class_name in MODEL_CLASSES.items():
        torch.manual_seed(len(sources))
        config = modeling.StrandBertConfig(**SIZES, num_labels=3, initializer_range=0.2, architectures=[class_name])
        model = getattr(modeling, class_name)(config)
        labels = {} if name == "mlm" else {"id2label": {"0": "a", "1": "b", "2": "c"}}
        written = {
            **SIZES,
            "model_type": config.model_type,
            "architectures": [class_name],
            "auto_map": AUTO_MAP,
            **labels,
        }
        weights = {n: t for n, t in model.state_dict().items() if n != "cls.predictions.decoder.weight"}
        path = folder / name
        path.mkdir(parents=True)
        write_model_folder(path, written, weights, tokenizer)
        sources[name] = str(path)
    shutil.copytree(folder / "mlm", folder / "bin")
    weights = load_file(folder / "bin" / "model.safetensors")
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]  # as published
    torch.save(weights, folder / "bin" / "pytorch_model.bin")
    (folder / "bin" / "model.safetensors").unlink()
    return {**sources, "bin": str(folder / "bin")}


def build_hub_cache(cache: Path, sources: dict[str, str]) -> dict[str, str]:
    """The same folders as a Hub cache that downloads would have left; returns their hub names."""
    names = {}
    for index, (name, folder) in enumerate(sources.items()):
        repository, commit = cache / f"models--strandbert--{name}-model", f"{index:040x}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        names[name] = f"strandbert/{name}-model"
    return names


def run_cell(job: dict, overlays: list[str], cache: Path, scratch: Path) -> dict:
    """Run cell.py for one job; the job with its report and tensors, or with the error of the whole process."""
    scratch.mkdir()
    job |= {"tensors": str(scratch / "outputs.safetensors"), "report": str(scratch / "report.json")}
    (scratch / "job.json").write_text(json.dumps(job))
    environment = {**fresh_environment(scratch), "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*overlays, environment["PYTHONPATH"]]).rstrip(os.pathsep)
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, str(CELL), str(scratch / "job.json")],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
    )
    job["seconds"] = time.perf_counter() - start
    if process.returncode:
        return {**job, "version": job["transformers"], "loads": {}, "error": process.stderr.strip()}
    return {**job, **json.loads((scratch / "report.json").read_text()), "outputs": load_file(job["tensors"])}


def problems_of(result: dict, expected_report: dict, expected: dict[str, torch.Tensor]) -> dict[str, str]:
    """What is wrong with each load of a cell, against the checkout's own model; empty when nothing is."""
    if "error" in result:
        return dict.fromkeys(cell.LOADS, result["error"])
    problems = {}
    for load, report in result["loads"].items():
        if "error" in report:
            problems[load] = report["error"]
        elif report["facts"] != json.loads(json.dumps(expected_report[load]["facts"])):
            problems[load] = f"found {report['facts']}, expected {expected_report[load]['facts']}"
        for name in (name for name in expected if name.startswith(load + "/")):
            found = result["outputs"].get(name)
            if found is not None and not torch.equal(found, expected[name]):
                problems[load] = (
                    f"{name} differs by {(found - expected[name]).abs().max():.2e} from the checkout's model"
                )
            elif found is None and load not in problems:
                problems[load] = f"{name} is missing"
    return problems


def backends_that_differ(expected: dict[str, torch.Tensor]) -> list[str]:
    """Outputs of the checkout's own model where the default backend is not eager within the tolerance."""
    eager = {name: tensor for name, tensor in expected.items() if name.endswith(".eager")}
    pairs = ((name, tensor, expected[name.removesuffix("eager") + "default"]) for name, tensor in eager.items())
    return [name for name, tensor, default in pairs if (tensor - default).abs().max() > EAGER_TOLERANCE]


def print_table(results: list[dict], problems: list[dict[str, str]]) -> None:
    """One row per cell, one column per load."""
    columns = ["transformers", "source", "triton", *cell.LOADS, "seconds"]
    rows = [
        [r["version"], r["source"], "present" if r["triton"] else "absent"]
        + ["FAIL" if load in p else "equal" for load in cell.LOADS]
        + [f"{r['seconds']:.1f}"]
        for r, p in zip(results, problems, strict=True)
    ]
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oldest", type=Path, required=True, help="overlay folder with transformers 4.57")
    parser.add_argument("--triton", type=Path, required=True, help="overlay folder with triton (empty: not available)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="cells at a time (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    versions = {"4.57": [str(options.oldest.resolve())], transformers.__version__: []}
    triton = [True, False] if (options.triton / "triton").is_dir() else [False]
    if True not in triton:
        print("triton is not available for this platform; only the cells without it run")
    with tempfile.TemporaryDirectory(prefix="strandbert-matrix-") as scratch:
        scratch = Path(scratch)
        folders = build_sources(scratch / "models")
        names = build_hub_cache(scratch / "hub", folders)
        expected_report, expected = cell.run(transformers, folders)
        jobs = [
            ({"transformers": version, "source": source, "triton": present, "sources": sources}, overlays, present)
            for version, overlays in versions.items()
            for source, sources in (("folder", folders), ("hub cache", names))
            for present in triton
        ]

        def run(number_and_job):
            number, (job, overlays, present) = number_and_job
            overlays = overlays + [str(options.triton.resolve())] * present
            return run_cell(job, overlays, scratch / "hub", scratch / f"cell-{number}")

        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(tqdm(pool.map(run, enumerate(jobs)), total=len(jobs), desc="load matrix", unit="cell"))
    for load, report in expected_report.items():
        if "error" in report:
            print(f"\nthe checkout's own model fails at {load}:\n{report['error']}")
            return 1
    problems = [problems_of(result, expected_report, expected) for result in results]
    print_table(results, problems)
    for result, found in zip(results, problems, strict=True):
        for text in dict.fromkeys(found.values()):
            loads = ", ".join(load for load in found if found[load] == text)
            triton_state = "present" if result["triton"] else "absent"
            print(f"\ntransformers {result['version']}, {result['source']}, triton {triton_state}: {loads}\n{text}")
    different = backends_that_differ(expected)
    if different:
        print(f"\ndefault backend and eager differ by more than {EAGER_TOLERANCE}: {', '.join(different)}")
    if different or any(problems):
        return 1
    print(f"{len(results)} cells x {len(cell.LOADS)} loads: all outputs equal, bit for bit, to the checkout's model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
