"""Small data folders in the benchmark's layout, and a stand-in for run_classification.py."""

import csv
import random
from pathlib import Path

import pytest

STAND_IN = '''
"""Flags and results of run_classification.py; the numbers depend on task, seed and learning rate only."""
import argparse, json, os, sys, time, zlib
parser = argparse.ArgumentParser()
for flag in ("task_name", "data_dir", "model_name_or_path", "output_dir", "fail", "count"):
    parser.add_argument("--" + flag, default="")
parser.add_argument("--seed", type=int)
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--sleep", type=float, default=0)
flags = parser.parse_args()
if flags.count:
    with open(flags.count, "a") as file:
        file.write(f"{flags.task_name} {flags.seed} {flags.learning_rate}\\n")
time.sleep(flags.sleep)
if os.path.exists(flags.fail) and open(flags.fail).read() in (f"{flags.task_name} {flags.seed}", "all"):
    sys.exit("no luck today")
number = zlib.crc32(f"{flags.task_name} {flags.seed} {flags.learning_rate}".encode()) / 2**32
os.makedirs(flags.output_dir, exist_ok=True)
for name in ("model.safetensors", "checkpoint-1"):
    open(os.path.join(flags.output_dir, name), "w").close()
with open(os.path.join(flags.output_dir, "all_results.json.tmp"), "w") as file:
    json.dump({"test_mcc": number, "test_f1": number / 2, "test_accuracy": number / 3, "eval_mcc": 1 - number}, file)
os.replace(file.name, file.name.removesuffix(".tmp"))
'''


def write_split(path: Path, rows: list[tuple], header=("sequence", "label"), end="\r\n"):
    """Write a CSV in the form of the distributed files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator=end).writerows([header, *rows])


def random_rows(count: int, length: int, seed: int, labels: int = 2) -> list[tuple[str, int]]:
    """Rows of random sequences, labels in turn."""
    source = random.Random(seed)
    return [("".join(source.choices("ACGT", k=length)), index % labels) for index in range(count)]


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """tf/0, mouse/2 and virus/covid with twelve rows a split."""
    folder = tmp_path / "data"
    for seed, (task, length, labels) in enumerate((("tf/0", 101, 2), ("mouse/2", 101, 2), ("virus/covid", 999, 9))):
        for number, split in enumerate(("train", "dev", "test")):
            write_split(folder / "GUE" / task / f"{split}.csv", random_rows(12, length, 10 * seed + number, labels))
    return folder


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A script with run_classification.py's flags and results, without its work."""
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path
