"""
Fine-tune one model on tasks x learning rates x seeds, resumably; every run is a process of run_classification.py.

    python -m gue.run --model kmer-logistic --data_dir GUE --tasks GUE --seeds 0 1 2 --output_dir runs/kmer
    python -m gue.run --model my-model --data_dir GUE --tasks tf/0 EMP --seeds 0 1 2 --learning_rates 1e-5 3e-5 5e-5 \\
        --output_dir runs/mine -- --num_train_epochs 5 --use_lora

What follows -- goes to run_classification.py as it is. The same command goes on where it was stopped. Several runners
may share one --output_dir: each takes runs that no other has taken. Then: python -m gue.report runs/mine/results.csv
"""

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

from gue.check import published_form, read_content
from gue.cost import count_flops
from gue.results import COLUMNS, ResultsError, append_row, locked, read_results, row_key
from gue.tasks import SPLITS, Task, UnknownTaskError, find_tasks
from tokenization.tokenizer_files import write_text_atomically
from training.storage import StorageError, check_writable, weights_digest, writing_into

SCRIPT = Path(__file__).parents[1] / "run_classification.py"
RECIPES = Path(__file__).parents[1] / "training" / "recipes" / "classification"
LEARNING_RATE, LORA_LEARNING_RATE = 3e-5, 1e-4  # as in training.classification_arguments, which is slow to import
FAILURES_IN_A_ROW = 3  # then something is wrong with all of them
WAIT_SECONDS = 1  # between looks at a run that another process has taken
KEPT = ("all_results.json", "log.txt")
OWN_FLAGS = {
    **dict.fromkeys(("model", "model_name_or_path", "config_name"), "--model and --random_weights"),
    **dict.fromkeys(("learning_rate", "learning_rate_sweep"), "--learning_rates"),
    **{"seed": "--seeds", "task_name": "--tasks", "data_dir": "--data_dir", "output_dir": "--output_dir"},
}  # of run_classification.py, and what sets them here


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    task: Task
    learning_rate: float
    seed: int

    def folder(self, output_dir: Path) -> Path:
        """Where this run works."""
        return output_dir / self.task.name.replace("/", "-") / f"lr-{self.learning_rate:g}_seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.task.name} lr {self.learning_rate:g} seed {self.seed}"


def missing_splits(task: Task, data_dir: Path) -> list[str]:
    """Splits that the task is known to have and that are not under `data_dir`."""
    wanted = {known.split for known in task.splits} or set(SPLITS)
    return [split for split in SPLITS if split in wanted and not task.file(data_dir, split)]


def command(arguments: argparse.Namespace, run: Run) -> list[str]:
    """The command line of one run."""
    flags = {
        "task_name": run.task.name,
        "data_dir": arguments.data_dir,
        "config_name" if arguments.random_weights else "model_name_or_path": arguments.model,
        "seed": run.seed,
        "learning_rate": f"{run.learning_rate:g}",
        "output_dir": run.folder(arguments.output_dir),
    }
    pairs = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    return [*arguments.launcher, str(arguments.script), *pairs, *arguments.settings]


def execute(arguments: argparse.Namespace, run: Run, lock) -> dict | None:
    """
    Run one cell, or take the results that a killed runner left; None when it failed.

    The process inherits `lock`, so that a run whose runner was killed stays taken until it ends.
    """
    folder = run.folder(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    line = command(arguments, run)
    log = folder / "log.txt"
    results = _finished(folder, run)
    if results:
        return {"seconds": results.get("train_runtime", ""), **results}
    start = time.perf_counter()
    with open(log, "a", encoding="utf-8") as file:
        keep = {"pass_fds": (lock.fileno(),)} if os.name != "nt" else {}
        status = subprocess.run(
            line, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **keep
        ).returncode
    results = None if status else _finished(folder, run)
    if results is None:
        tail = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(True)[-12:])
        what = f"ended with status {status}" if status else f"wrote no test_{run.task.metric} into all_results.json"
        tqdm.write(f"{run}: {what}; {log} ends with\n{tail}\n  {shlex.join(line)}")
        return None
    return {"seconds": round(time.perf_counter() - start, 1), **results}


def _finished(folder: Path, run: Run) -> dict | None:
    """all_results.json, when it is whole and has the task's metric; a killed run may leave one without."""
    try:
        results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    value = results.get(f"test_{run.task.metric}")
    return results if isinstance(value, int | float) and math.isfinite(value) else None


def check_same_settings(arguments: argparse.Namespace):
    """Raise ResultsError when --output_dir was begun for another model, data or settings; note what it is for."""
    settings = {
        "model": arguments.model,
        "data_dir": str(arguments.data_dir.resolve()),
        "script": str(arguments.script.resolve()),
        "settings": settings_text(arguments),
        "recipe": " ".join(recipe_flags(read_settings(arguments.settings).recipe)),
        "weights": arguments.weights,
    }
    note = arguments.output_dir / "settings.json"
    with locked(arguments.output_dir / "settings.json.lock"):  # other runners may start at the same time
        if not note.exists():
            write_text_atomically(note, json.dumps(settings, indent=2) + "\n")
    earlier = json.loads(note.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if earlier.get(key, value) != value:
            raise ResultsError(
                f"{arguments.output_dir} was begun with {key} {earlier[key] or 'none'}, now it is {value or 'none'}; "
                "give another --output_dir and --name, or delete that folder"
            )


def make_row(arguments: argparse.Namespace, run: Run, results: dict, flops: int | None) -> dict:
    """The row of the results file; numbers that are not finite are left out."""
    infinite = {name for name, value in results.items() if isinstance(value, float) and not math.isfinite(value)}
    rows = (results.get("data") or {}).get("rows", {})
    return {
        **{column: results[column] for column in COLUMNS if results.get(column) is not None and column not in infinite},
        "name": arguments.name,
        "model": arguments.model,
        "task": run.task.name,
        "seed": run.seed,
        "learning_rate": f"{run.learning_rate:g}",
        "settings": settings_text(arguments),
        "data": data_origin(run.task, arguments.data_dir),
        "train_rows": rows.get("train", ""),
        "test_rows": rows.get("test", ""),
        "flops_500bp": flops or "",
        "weights": arguments.weights,
    }


def settings_text(arguments: argparse.Namespace) -> str:
    """What distinguishes this use of the model from others, as the report prints it."""
    return " ".join(["random weights"] * arguments.random_weights + [shlex.join(arguments.settings)]).strip()


def data_origin(task: Task, data_dir: Path) -> str:
    """
    "published": every split that is there is a known published file; "variant": one is of a published form that the
    published scores are not of; "other": one is none; "unknown": neither can be said, because not all published forms
    of a split have a known hash.
    """
    found = set()
    for split in SPLITS:
        if path := task.file(data_dir, split):
            form = published_form(task, split, read_content(path))
            hashes = [known.sha256 for known in task.splits if known.split == split]
            differs = "other" if hashes and all(hashes) else "unknown"
            found.add(differs if form is None else "published" if form.scored else "variant")
    return next(origin for origin in ("other", "variant", "unknown", "published") if origin in found)


def run_grid(arguments: argparse.Namespace, runs: list[Run]):
    """
    Do every run that is not in the results file, until all are or several in a row fail.

    A run that another process has taken is passed over and looked at again at the end.
    """
    check_same_settings(arguments)
    given = read_settings(arguments.settings)
    tokenizer = given.tokenizer_name or arguments.model
    flops = count_flops(arguments.model, tokenizer, arguments.data_dir, is_on(given.trust_remote_code))
    failures, waiting = 0, list(runs)
    with tqdm(total=len(runs), desc=arguments.name, unit="run", disable=None) as bar:
        while waiting:
            later = []
            for run in waiting:
                bar.set_postfix_str(str(run))
                with locked(Path(f"{run.folder(arguments.output_dir)}.lock"), wait=False) as lock:
                    if lock is None:
                        later.append(run)
                        continue
                    if not is_done(arguments, run):
                        failures = 0 if one_run(arguments, run, lock, flops) else failures + 1
                bar.update()
                if failures == FAILURES_IN_A_ROW:
                    tqdm.write(f"stopped: {failures} runs in a row failed")
                    return
            if later == waiting:
                bar.set_postfix_str(f"another process runs {later[0]}")
                time.sleep(WAIT_SECONDS)
            waiting = later


def is_done(arguments: argparse.Namespace, run: Run) -> bool:
    """Whether the results file holds this run."""
    key = row_key({"name": arguments.name, "task": run.task.name, "seed": run.seed, "learning_rate": run.learning_rate})
    return any(row_key(row) == key for row in read_results(arguments.results))


def one_run(arguments: argparse.Namespace, run: Run, lock, flops: int | None) -> dict | None:
    """Execute, record, clean up; None when the run failed."""
    results = execute(arguments, run, lock)
    if results is None:
        return None
    row = make_row(arguments, run, results, flops)
    append_row(arguments.results, row)
    metric = run.task.metric
    tqdm.write(f"{run}: test {metric} x100 {100 * row[f'test_{metric}']:.2f} ({row['seconds']} s)")
    if not arguments.keep_models:
        for path in run.folder(arguments.output_dir).iterdir():
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return row


def check_name(arguments: argparse.Namespace):
    """Raise ResultsError when the results file has this name for another model, other weights or other settings."""
    for number, row in enumerate(read_results(arguments.results), 2):
        here = (arguments.model, settings_text(arguments))
        if row["name"] == arguments.name and (row.get("weights") or arguments.weights) != arguments.weights:
            raise ResultsError(
                f"{arguments.results}, line {number}: {arguments.model} had other weights then (sha256 "
                f"{row['weights']}..., now {arguments.weights or 'none'}); choose another --name and --output_dir"
            )
        if row["name"] == arguments.name and (row["model"], row["settings"]) != here:
            raise ResultsError(
                f"{arguments.results}, line {number}: the name {arguments.name!r} stands for {row['model']} "
                f"{row['settings']}; choose another --name for {' '.join(here)}"
            )


def read_settings(settings: list[str]) -> argparse.Namespace:
    """Those flags of run_classification.py that matter here, also where a recipe gives them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--tokenizer_name", "--tokenizer-name")
    parser.add_argument("--learning_rate", "--learning-rate", type=float)
    for flag in ("use_lora", "trust_remote_code"):
        parser.add_argument(f"--{flag}", f"--{flag.replace('_', '-')}", nargs="?", const="true", default="false")
    return parser.parse_known_args([*recipe_flags(parser.parse_known_args(settings)[0].recipe), *settings])[0]


def recipe_flags(name: str | None) -> list[str]:
    """A recipe as flags; none where there is no such recipe, which run_classification.py will say."""
    path = Path(name or "") if (name or "").endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [f"--{key}={value}" for key, value in content.items()] if isinstance(content, dict) else []


def own_flag(settings: list[str]) -> str | None:
    """The first flag behind -- that the grid sets itself: the results would be filed under another value."""
    names = (word[2:].split("=")[0].replace("-", "_") for word in settings if word.startswith("--"))
    return next((name for name in names if name in OWN_FLAGS), None)


def is_on(value: str) -> bool:
    """Whether a flag of HfArgumentParser is set."""
    return value.lower() in ("true", "yes", "t", "y", "1")


def find_launcher(text: str) -> list[str]:
    """Words of a launcher, its program found on PATH or beside this interpreter."""
    program, *words = shlex.split(text) or [""]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(program, path=path)
    if not found:
        raise argparse.ArgumentTypeError(f"no program {program!r}, neither on PATH nor beside {sys.executable}")
    return [found, *words]


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m gue.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of an encoder, or kmer-logistic")
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="folder of the benchmark (see python -m gue.check)"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="runs and results.csv go here")
    parser.add_argument("--tasks", nargs="+", default=["all"], help="names, groups (EMP), suites (GUE); default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    rates = "several: sweep; default: the recipe's, else 3e-5, with -- --use_lora 1e-4, as in the DNABERT-2 paper"
    parser.add_argument("--learning_rates", nargs="+", type=float, help=rates)
    parser.add_argument("--random_weights", action="store_true", help="take config and tokenizer of --model only")
    parser.add_argument("--name", help="what the report calls this model with these settings; default: from --model")
    parser.add_argument("--results", type=Path, help="results file; default: OUTPUT_DIR/results.csv")
    starts = 'how a run is started, such as "accelerate launch" or "torchrun --nproc_per_node 2"; default: one process'
    parser.add_argument("--launcher", type=find_launcher, default=[sys.executable], help=starts)
    parser.add_argument("--keep_models", action="store_true", help="keep what each run saved, not its numbers only")
    parser.add_argument("--script", type=Path, default=SCRIPT, help="fine-tuning script; default: %(default)s")
    cut = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:cut])
    arguments.settings = argv[cut + 1 :]
    given = read_settings(arguments.settings)
    recipe = [flag for flag in recipe_flags(given.recipe) if not flag.startswith("--learning_rate=")]
    if own := own_flag([*arguments.settings, *recipe]):
        parser.error(f"--{own} behind -- or in a recipe: the grid sets it; use {OWN_FLAGS[own]} before --")
    random = ", random weights" if arguments.random_weights else ""
    arguments.name = arguments.name or Path(arguments.model).absolute().name + random
    rate = given.learning_rate or (LORA_LEARNING_RATE if is_on(given.use_lora) else LEARNING_RATE)
    arguments.learning_rates = arguments.learning_rates or [rate]
    arguments.results = arguments.results or arguments.output_dir / "results.csv"
    return parser, arguments


def main(argv: list[str] | None = None) -> int:
    """Run the grid; returns 1 when any run of it has no result."""
    parser, arguments = parse(argv)
    if not re.search(r"\w", arguments.name):
        parser.error(f"--name {arguments.name!r} has no letter or digit")
    if not arguments.data_dir.is_dir():
        parser.error(f"--data_dir {arguments.data_dir}: no such folder")
    if not arguments.script.is_file():
        parser.error(f"--script {arguments.script}: no such file")
    try:
        tasks = find_tasks(arguments.tasks)
        arguments.weights = "" if arguments.random_weights else weights_digest(arguments.model)
        check_writable(arguments.output_dir, "--output_dir")
        check_writable(arguments.results.parent, "--results")
        check_name(arguments)
    except (UnknownTaskError, ResultsError, StorageError) as error:
        parser.error(str(error))
    without_data = {task.name: missing for task in tasks if (missing := missing_splits(task, arguments.data_dir))}
    runs = [
        Run(task, learning_rate, seed)
        for task in tasks
        if task.name not in without_data
        for learning_rate in dict.fromkeys(arguments.learning_rates)
        for seed in dict.fromkeys(arguments.seeds)
    ]
    try:
        with writing_into(arguments.output_dir, lambda: "the same command goes on from here"):
            run_grid(arguments, runs)
    except (ResultsError, StorageError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
    failed = [run for run in runs if not is_done(arguments, run)]
    for name, missing in without_data.items():
        print(f"not run: {name} (no {', '.join(missing)} under {arguments.data_dir})")
    for run in failed:
        print(f"no result: {run}")
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are in {arguments.results}")
    return int(bool(failed or without_data))


if __name__ == "__main__":
    sys.exit(main())
