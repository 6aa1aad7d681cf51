"""
Print measured scores beside the published ones: markdown, CSV, critical-difference plots.

    python -m gue.report runs/kmer/results.csv runs/mine/results.csv --output_dir report
    python -m gue.report gue/results/*.csv --output_dir docs/gue --page docs/gue.md

Scores are times 100, mean +- standard deviation over seeds. Of several learning rates the one with the best mean on
dev is shown. --page replaces what stands between the two marks in a page.
"""

import argparse
import csv
import io
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gue.cost import COUNTED_FLOPS, KMER_LOGISTIC
from gue.ranking import average_ranks, critical_difference, friedman_p, plot_critical_difference, top_two
from gue.results import ResultsError, read_results, row_key
from gue.tasks import TASKS, Task, read_table
from tokenization.tokenizer_files import write_text_atomically
from training.storage import StorageError, check_writable

PUBLISHED = " (published)"  # behind the name of a published model, where a measured one has the same
METRIC_NAMES = {"mcc": "MCC", "f1": "F1", "accuracy": "accuracy"}
BEGIN, END = "<!-- begin: python -m gue.report -->", "<!-- end: python -m gue.report -->"


@dataclass(frozen=True)
class Measured:
    """
    One model on one task: the values of each metric over seeds (times 100), and how they came about.

    `collapsed`: runs that gave one and the same answer; their scores count. `data`: what `gue.run.data_origin` said of
    the runs' files, each value once.
    """

    values: dict[str, list[float]]
    seeds: tuple[int, ...]
    learning_rate: str
    learning_rates: int
    data: str
    collapsed: int

    def mean(self, metric: str) -> float | None:
        """Mean over seeds."""
        return statistics.mean(self.values[metric]) if self.values[metric] else None

    def text(self, metric: str) -> str:
        """mean ± deviation."""
        values = self.values[metric]
        if not values:
            return "-"
        return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Comparison:
    """A paper's scores and the metric that it prints for each task."""

    source: str
    metric: Callable[[Task], str]
    flops_unit: str


DATA_NOTES = (
    ("other", "not the published files"),
    ("variant", "published files, but not those of the published scores"),
    ("unknown", "no hash of the published files known"),
)

COMPARISONS = (
    Comparison("DNABERT-2 paper", lambda task: task.metric, "DNABERT-2"),
    Comparison("dnaGrinder paper", lambda task: "mcc" if task.group == "EMP" else "accuracy", "dnaGrinder"),
)


def published_scores(source: str) -> dict[str, dict[str, float]]:
    """Scores x100 by model and task name, of one paper."""
    scores: dict[str, dict[str, float]] = {}
    for row in read_table("published_scores.csv"):
        if row["source"] == source:
            scores.setdefault(row["model"], {})[row["task"]] = float(row["score"])
    return scores


def measured_scores(rows: list[dict[str, str]]) -> dict[str, dict[str, Measured]]:
    """
    Gather the rows of results files by name and task; choose the learning rate on dev.

    Raises:
        ResultsError: several learning rates without scores on dev.
    """
    runs: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for row in rows:
        runs.setdefault((row["name"], row["task"]), {}).setdefault(row["learning_rate"], []).append(row)
    scores: dict[str, dict[str, Measured]] = {}
    for (name, task), by_rate in runs.items():
        if task not in TASKS:
            raise ResultsError(f"results of {name} name the task {task!r}, which is none; see python -m gue.tasks")
        rate = _best_rate(name, TASKS[task], by_rate)
        chosen = sorted(by_rate[rate], key=lambda row: int(row["seed"]))
        values = {
            metric: [100 * float(row[f"test_{metric}"]) for row in chosen if row[f"test_{metric}"]]
            for metric in METRIC_NAMES
        }
        seeds = tuple(int(row["seed"]) for row in chosen)
        data = " ".join(sorted({row["data"] or "unknown" for row in chosen}))
        collapsed = sum(bool(row.get("collapsed")) for row in chosen)
        scores.setdefault(name, {})[task] = Measured(values, seeds, rate, len(by_rate), data, collapsed)
    return scores


def _best_rate(name: str, task: Task, by_rate: dict[str, list[dict]]) -> str:
    """The learning rate with the best mean on dev, among those with the most seeds."""
    most = max(len(rows) for rows in by_rate.values())
    rates = [rate for rate, rows in by_rate.items() if len(rows) == most]
    if len(rates) == 1:
        return rates[0]
    key = f"eval_{task.metric}"
    if not all(row[key] for rate in rates for row in by_rate[rate]):
        raise ResultsError(f"{name} on {task.name}: {len(rates)} learning rates, but no {key} to choose one by")
    return max(rates, key=lambda rate: statistics.mean(float(row[key]) for row in by_rate[rate]))


def common_tasks(measured: dict[str, dict[str, Measured]]) -> list[Task]:
    """Tasks that every measured model has."""
    return [task for task in TASKS.values() if measured and all(task.name in scores for scores in measured.values())]


def other_files(measured: dict[str, dict[str, Measured]]) -> set[str]:
    """Tasks that a model was trained or tested on in another published form than that of the published scores."""
    return {task for scores in measured.values() for task, cell in scores.items() if "variant" in cell.data.split()}


def render(measured: dict[str, dict[str, Measured]], rows: list[dict], folder: Path, page: Path | None) -> str:
    """The whole report as markdown; draws the plots into `folder`."""
    parts = [_what_was_run(measured, rows)]
    for comparison in COMPARISONS:
        parts.append(_comparison(comparison, measured, rows, folder, page))
    parts += [_measured_means(measured), _without_published(measured), _not_run(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_was_run(measured, rows) -> str:
    lines = ["### What was run", ""]
    for name, scores in measured.items():
        seeds = sorted({seed for cell in scores.values() for seed in cell.seeds})
        row = next(row for row in rows if row["name"] == name)
        swept = max(cell.learning_rates for cell in scores.values())
        rates = f", learning rate chosen on dev of {swept}"
        if swept == 1:
            used = _list(sorted({cell.learning_rate for cell in scores.values()}, key=float))
            rates = "" if row["model"] == KMER_LOGISTIC else f", learning rate {used}"
        settings = f" `{row['settings']}`" if row["settings"] else ""
        collapsed = [f"{task} ({c.collapsed} of {len(c.seeds)})" for task, c in scores.items() if c.collapsed]
        collapse = f"; collapsed to one answer: {_list(collapsed)}" if collapsed else ""
        data = ""
        for value, words in DATA_NOTES:
            if tasks := [task for task, cell in scores.items() if value in cell.data.split()]:
                data += f"; {words}: {_list(tasks)}"
        count = f"{len(scores)} tasks, seeds {_list(seeds)}"
        lines.append(f"- **{name}** (`{row['model']}`{settings}): {count}{rates}{collapse}{data}")
    return "\n".join(lines)


def _comparison(comparison: Comparison, measured, rows, folder: Path, page: Path | None) -> str:
    published = published_scores(comparison.source)
    tasks = [task for task in TASKS.values() if any(task.name in scores for scores in measured.values())]
    tasks = [task for task in tasks if any(task.name in scores for scores in published.values())]
    if not tasks:
        return f"### Beside the {comparison.source}\n\nNone of its tasks was run."
    published = {
        model + PUBLISHED * (model in measured): scores
        for model, scores in published.items()
        if any(t.name in scores for t in tasks)
    }
    numbers = {
        name: {t.name: scores[t.name].mean(comparison.metric(t)) for t in tasks if t.name in scores}
        for name, scores in measured.items()
    }
    numbers = {**numbers, **published}
    common = [task for task in common_tasks(measured) if task in tasks and task.name not in other_files(measured)]
    full = {
        model: [scores[task.name] for task in common]
        for model, scores in numbers.items()
        if common and all(scores.get(task.name) is not None for task in common)
    }
    parts = [f"### Beside the {comparison.source}", _scores_table(comparison, measured, numbers, tasks, common)]
    if any(task.name in other_files(measured) for task in tasks):
        parts.append(
            "† The published scores are of other files than the measured ones (see the task's card): in no mean, rank "
            "or count, and no best score is marked."
        )
    if full:
        parts.append(_summary_table(comparison, measured, rows, full))
    if len(full) > 1 and len(common) > 1:
        path = folder / f"critical_difference_{comparison.flops_unit.lower()}.png"
        plot_critical_difference(full, path, set(measured))
        link = os.path.relpath(path, page.parent if page else folder)
        difference = critical_difference(len(full), len(common))
        parts.append(
            f"Average ranks over {len(common)} tasks; models joined by a bar cannot be told apart by them (Nemenyi "
            f"test, p < 0.05, critical difference {difference:.2f}; Friedman test p = {friedman_p(full):.2g}).\n\n"
            f"![Critical difference]({Path(link).as_posix()})"
        )
    return "\n\n".join(parts)


def _measured_means(measured) -> str:
    common = common_tasks(measured)
    if len(measured) < 2 or len(common) < 2:
        return ""
    table = [["tasks", "metric", *measured]]
    for metric, title in METRIC_NAMES.items():
        of = [task for task in common if task.metric == metric]
        means = [{task.name: scores[task.name].mean(metric) for task in of} for scores in measured.values()]
        if of:
            table.append([f"{len(of)}: {_list(task.name for task in of)}", title, *(_mean(each, of) for each in means)])
    return f"### Means of the measured models\n\nOver the tasks that all of them ran.\n\n{_markdown(table)}"


def _without_published(measured) -> str:
    known = set().union(*(scores for paper in COMPARISONS for scores in published_scores(paper.source).values()))
    tasks = [task for task in TASKS.values() if task.name not in known]
    tasks = [task for task in tasks if any(task.name in scores for scores in measured.values())]
    table = [["task", "metric", *measured]]
    for task in tasks:
        cells = [scores[task.name].text(task.metric) if task.name in scores else "-" for scores in measured.values()]
        table.append([task.name, METRIC_NAMES[task.metric], *cells])
    return f"### Tasks without published scores\n\n{_markdown(table)}" if tasks else ""


def _scores_table(comparison: Comparison, measured, numbers, tasks: list[Task], common: list[Task]) -> str:
    table = [["task", "metric", *numbers]]
    for task in tasks:
        metric = comparison.metric(task)
        values = {model: scores.get(task.name) for model, scores in numbers.items()}
        mark = " †" * (task.name in other_files(measured))
        best = None if mark else max(value for value in values.values() if value is not None)
        cells = []
        for model, value in values.items():
            text = "-" if value is None else f"{value:.2f}"
            if model in measured and task.name in measured[model]:
                text = measured[model][task.name].text(metric)
            cells.append(f"**{text}**" if value is not None and value == best else text)
        table.append([task.name + mark, METRIC_NAMES[metric], *cells])
    groups: dict[str, list[Task]] = {}
    for task in common:
        groups.setdefault(task.group, []).append(task)
    means = {f"mean {group} ({len(of)})": of for group, of in groups.items() if len(of) > 1}
    if common:
        means[f"mean of {len(common)} tasks"] = common
    for title, of in means.items():
        table.append([title, "", *(_mean(scores, of) for scores in numbers.values())])
    return _markdown(table)


def _mean(scores: dict[str, float | None], tasks: list[Task]) -> str:
    values = [scores.get(task.name) for task in tasks]
    return "-" if not values or None in values else f"{statistics.mean(values):.2f}"


def _summary_table(comparison: Comparison, measured, rows, full: dict[str, list[float]]) -> str:
    printed = {row["model"]: row for row in read_table("published_summaries.csv") if row["source"] == comparison.source}
    places, ranks = top_two(full), average_ranks(full)
    number = len(next(iter(full.values())))
    unit = COUNTED_FLOPS[comparison.flops_unit]
    table = [
        [
            "model",
            "",
            "parameters",
            f"FLOPs, {comparison.flops_unit} = 1",
            f"first ‖ second of {number}",
            f"mean of {number}",
            "average rank",
            "mean of all, as printed",
        ]
    ]
    for model, values in full.items():
        if model in measured:
            row = next(row for row in rows if row["name"] == model)
            parameters = _parameters(float(row["parameters"]) / 1e6) if row["parameters"] else "-"
            flops = f"{float(row['flops_500bp']) / unit:.3g}" if row["flops_500bp"] else "-"
            kind, average = "measured", "-"
        else:
            row = printed.get(model.removesuffix(PUBLISHED), {})
            parameters = _parameters(float(row["parameters_m"])) if row else "-"
            flops, kind, average = row.get("relative_flops") or "-", "as published", row.get("average") or "-"
        first, second = places[model]
        table.append(
            [
                model,
                kind,
                parameters,
                flops,
                f"{first} ‖ {second}",
                f"{statistics.mean(values):.2f}",
                f"{ranks[model]:.2f}",
                average,
            ]
        )
    return _markdown(table)


def _parameters(millions: float) -> str:
    if millions < 0.1:
        return f"{1e6 * millions:,.0f}"
    return f"{millions:.3g} M" if millions < 1000 else f"{millions:,.0f} M"


def _not_run(measured) -> str:
    lines = ["### What was not run", ""]
    for name, scores in measured.items():
        absent = [task.name for task in TASKS.values() if task.name not in scores]
        most = max(len(cell.seeds) for cell in scores.values())
        fewer = [f"{task} ({len(cell.seeds)} of {most})" for task, cell in scores.items() if len(cell.seeds) < most]
        lines.append(f"- **{name}**: {len(absent)} of {len(TASKS)} tasks: {_list(absent) or 'none'}.")
        if fewer:
            lines.append(f"  Fewer seeds: {_list(fewer)}.")
    return "\n".join(lines)


def _list(items) -> str:
    return ", ".join(map(str, items))


def _markdown(table: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    numbers = ["---" if index == 0 else "---:" for index in range(len(table[0]))]
    return "\n".join([lines[0], "|" + "|".join(numbers) + "|", *lines[1:]])


def scores_csv(measured: dict[str, dict[str, Measured]]) -> str:
    """Measured and published scores, one row per model, task and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["source", "model", "task", "group", "metric", "mean", "deviation", "seeds", "learning_rate", "data"]
    )
    for name, scores in measured.items():
        for task, cell in scores.items():
            for metric, values in cell.values.items():
                if values:
                    deviation = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
                    seeds = " ".join(map(str, cell.seeds))
                    writer.writerow(
                        [
                            "measured",
                            name,
                            task,
                            TASKS[task].group,
                            metric,
                            f"{statistics.mean(values):.4f}",
                            deviation,
                            seeds,
                            cell.learning_rate,
                            cell.data,
                        ]
                    )
    for row in read_table("published_scores.csv"):
        group = TASKS[row["task"]].group
        writer.writerow([row["source"], row["model"], row["task"], group, row["metric"], row["score"], "", "", "", ""])
    return text.getvalue()


def insert(page: Path, report: str):
    """
    Replace what stands between the two marks of a page.

    Raises:
        ResultsError: no such page, or no marks in it.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ResultsError(f"--page {page}: the page must hold the lines {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    write_text_atomically(page, f"{before}{BEGIN}\n\n{report}\n{END}{rest.split(END)[1]}")


def gather_rows(paths: list[Path]) -> list[dict[str, str]]:
    """
    Rows of several results files.

    Raises:
        ResultsError: no such file; one name for two models, settings or weights; two files differ about one run.
    """
    rows: dict[tuple[str, ...], tuple[dict[str, str], str]] = {}
    uses: dict[tuple[str, str], tuple[str, str]] = {}
    for path in paths:
        if not path.exists():
            raise ResultsError(f"{path}: no such file; python -m gue.run makes one")
        for number, row in enumerate(read_results(path), 2):
            place = f"{path}, line {number}"
            for what, use in (("", f"{row['model']} {row['settings']}".strip()), ("weights ", row["weights"])):
                before, where = uses.setdefault((row["name"], what), (use, place)) if use else (use, place)
                if before != use:
                    raise ResultsError(
                        f"{place}: the name {row['name']!r} stands for {what}{use}, in {where} for {what}{before}; "
                        "give one of the grids another --name"
                    )
            before, where = rows.setdefault(row_key(row), (row, place))
            if before != row:
                raise ResultsError(
                    f"{place}: {' '.join(row_key(row))} has other results in {where}; delete one of the two, or give "
                    "one of the grids another --name"
                )
    return [row for row, _ in rows.values()]


def main(argv: list[str] | None = None) -> int:
    """Write report.md, scores.csv and plots."""
    parser = argparse.ArgumentParser(
        prog="python -m gue.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="results files of gue.run")
    parser.add_argument("--output_dir", type=Path, required=True, help="report.md, scores.csv and plots go here")
    parser.add_argument("--page", type=Path, help="put the report between the marks of this page, not into report.md")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.output_dir, "--output_dir")
        rows = gather_rows(arguments.results)
        measured = measured_scores(rows)
        if not measured:
            raise ResultsError(f"{', '.join(map(str, arguments.results))}: no results yet")
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        report = render(measured, rows, arguments.output_dir, arguments.page)
        if arguments.page:
            insert(arguments.page, report)
    except (ResultsError, StorageError) as error:
        parser.error(str(error))
    if not arguments.page:
        write_text_atomically(arguments.output_dir / "report.md", f"# GUE\n\n{report}")
    write_text_atomically(arguments.output_dir / "scores.csv", scores_csv(measured))
    print(f"{arguments.page or arguments.output_dir / 'report.md'}: {len(measured)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
