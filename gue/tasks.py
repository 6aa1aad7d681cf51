"""
The 39 tasks: 28 of GUE, 8 of GUE+, 2 enhancer tasks of the Nucleotide Transformer, 5 species from 120,000 bp.

The table is gue/data/tasks.csv and splits.csv, one frozen row per task here. Sources: tables 5 and 8 of the DNABERT-2
paper, section 6 and table 7 of the dnaGrinder paper; which label means what where the files themselves show it.
"""

import csv
import difflib
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "dev", "test")
SUFFIXES = (".csv", ".csv.gz")
# Where the distributed archives put a task: under DIR itself, or under the folder that the archive unpacks to.
ROOTS = {"GUE": ("", "GUE"), "GUE+": ("", "GUE+", "GUE_plus", "GUE"), "NT": ("", "enhancers"), "dnaGrinder": ("",)}


class UnknownTaskError(ValueError):
    """A name that is no task; the message suggests near ones."""


@dataclass(frozen=True)
class KnownSplit:
    """
    One published form of one split: rows, sha256 of the uncompressed file (CRLF line ends; "" unknown), source.

    `scored`: the published scores are of this form, as far as is known.
    """

    split: str
    rows: int
    sha256: str
    source: str
    scored: bool = True


@dataclass(frozen=True)
class Task:
    """
    One data set. `name` is what users type and its folder; `metric` is "mcc", "f1" (macro) or "accuracy".

    `labels` are the meanings of 0, 1, ... ("" unknown: the empty tuple); `num_labels` None: read from the data.
    `pair`: two sequences a row. `stranded`: every row is written along one strand, that of its gene (promoters, splice
    sites) or of the viral genome, so that its reverse complement is no row of this task. `length` in bp. Papers'
    durations: epochs, or steps; `max_tokens`: of the DNABERT-2 authors' script; None where not printed. `splits`: every
    known form of train, dev and test.
    """

    name: str
    suite: str
    group: str
    title: str
    organism: str
    length: int
    num_labels: int | None
    labels: tuple[str, ...]
    metric: str
    pair: bool
    stranded: bool
    dnabert2_epochs: int | None
    dnabert2_steps: int | None
    dnagrinder_epochs: int | None
    max_tokens: int | None
    splits: tuple[KnownSplit, ...]

    def file(self, data_dir: str | Path, split: str) -> Path | None:
        """Find SPLIT.csv or SPLIT.csv.gz of this task under `data_dir`; None when it is not there."""
        for root in ROOTS[self.suite]:
            for suffix in SUFFIXES:
                path = Path(data_dir, root, self.name, split + suffix)
                if path.is_file():
                    return path
        return None


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of gue/data/NAME."""
    with open(DATA / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _load() -> dict[str, Task]:
    splits = {}
    for row in read_table("splits.csv"):
        known = KnownSplit(row["split"], int(row["rows"]), row["sha256"], row["source"], row["scored"] == "1")
        splits.setdefault(row["task"], []).append(known)
    tasks = {}
    for row in read_table("tasks.csv"):
        numbers = ("num_labels", "dnabert2_epochs", "dnabert2_steps", "dnagrinder_epochs", "max_tokens")
        tasks[row["name"]] = Task(
            length=int(row.pop("length_bp")),
            labels=tuple(filter(None, row.pop("labels").split(";"))),
            pair=row.pop("pair") == "1",
            stranded=row.pop("stranded") == "1",
            splits=tuple(splits.get(row["name"], ())),
            **{name: int(value) if (value := row.pop(name)) else None for name in numbers},
            **row,
        )
    return tasks


TASKS: dict[str, Task] = _load()
GROUPS: dict[str, list[Task]] = {}
for _task in TASKS.values():
    GROUPS.setdefault(_task.group, []).append(_task)


def _plain(name: str) -> str:
    return name.lower().replace("\\", "/").strip("/").replace("-", "_").replace("/", "_")


def _spellings() -> dict[str, str]:
    """Every spelling that names exactly one task: the name, its last part, with _ for /, in any case."""
    found: dict[str, set[str]] = {}
    for name in TASKS:
        last = name.rsplit("/", 1)[-1]
        for spelling in {_plain(name), *(() if last.isdigit() else (_plain(last),))}:
            found.setdefault(spelling, set()).add(name)
    return {spelling: names.pop() for spelling, names in found.items() if len(names) == 1}


_SPELLINGS = _spellings()


def find_task(name: str) -> Task:
    """
    Find a task by the name users type: tf/0, mouse/2, prom_core_tata, EMP/H3, H3K4me3, virus/covid, GUE/tf/0.

    Raises:
        UnknownTaskError: suggests near names.
    """
    plain = _plain(name).removeprefix("gue+_").removeprefix("gue_plus_").removeprefix("gue_")
    if plain in _SPELLINGS:
        return TASKS[_SPELLINGS[plain]]
    near = dict.fromkeys(_SPELLINGS[match] for match in difflib.get_close_matches(plain, _SPELLINGS, 4, 0.5))
    near.update(dict.fromkeys(task for task in TASKS if plain and _plain(task).startswith(plain + "_")))
    advice = f"did you mean {', '.join(near)}?" if near else f"the groups are {', '.join(GROUPS)}"
    raise UnknownTaskError(f"no task {name!r}; {advice} All names: python -m gue.tasks")


def find_tasks(names: list[str]) -> list[Task]:
    """
    Find tasks by names, groups (EMP, TF-H ...), suites (GUE, GUE+, NT) or "all": in the table's order, each once.

    Raises:
        UnknownTaskError: suggests near names.
    """
    chosen = set()
    for name in names:
        several = [t.name for t in TASKS.values() if name.lower() in (t.group.lower(), t.suite.lower(), "all")]
        chosen.update(several or [find_task(name).name])
    return [task for task in TASKS.values() if task.name in chosen]


def main():
    """Print one line per task."""
    for task in TASKS.values():
        classes = f"{task.num_labels} classes" if task.num_labels else "classes: see data"
        print(
            f"{task.name:24}{task.suite:11}{task.group:9}{task.length:>7} bp  {classes:18}{task.metric:9}{task.title}"
        )


if __name__ == "__main__":
    main()
