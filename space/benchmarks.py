"""Tab Benchmarks: speed, memory and GUE scores, read from the result files of the project."""

import csv
from pathlib import Path

import gradio as gr
import pandas

from gue.report import COMPARISONS, METRIC_NAMES, measured_scores, published_scores
from gue.results import ResultsError, read_results
from gue.tasks import TASKS
from space.inputs import InputError
from space.parts import QUICK, guarded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GUE_RESULTS = ROOT / "gue" / "results"
# file: (what it measures, columns that say which case a row belongs to, column of the rivals, column that is drawn)
SPEED = {
    "encoder.csv": ("Encoder of 117 M parameters: tokens per second", ["case", "dtype", "device", "machine"], "model",
                    "tokens_per_s"),
    "attention.csv": ("Attention alone: seconds", ["tokens", "data", "dtype", "device", "machine"], "backend",
                      "wall_s"),
    "corpus.csv": ("Reading genomes: Mbp per CPU second", ["measure", "case"], "tool", "mbp_per_cpu_s"),
    "haplotypes.csv": ("Haplotypes: milliseconds each", ["case", "machine"], "tool", "ms_per_haplotype"),
    "embed.csv": ("Embedding: bp per second", ["case", "model", "bp", "machine"], "way", "bp_per_s"),
}  # fmt: skip


def speed_rows(file: str) -> list[dict[str, str]]:
    """
    Rows of a result file, each with `case`, the text of the columns that say what was measured.

    Raises:
        InputError: no such file.
    """
    if file not in speed_files():
        raise InputError(f"{file[:60]!r} is no result file; there are {', '.join(speed_files())}.")
    _, keys, _, _ = SPEED[file]
    with open(RESULTS / file, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{**row, "case": ", ".join(unit(key, row[key]) for key in keys if row[key])} for row in rows]


def unit(column: str, value: str) -> str:
    """A value with its unit where the column has one."""
    return f"{int(value):,} {column}" if column in ("tokens", "bp") and value.isdecimal() else value


def speed_files() -> list[str]:
    """Result files that are there and have the columns that are drawn."""
    found = []
    for file, (_, keys, rival, value) in SPEED.items():
        if (RESULTS / file).is_file():
            with open(RESULTS / file, newline="", encoding="utf-8") as stream:
                if {*keys, rival, value} <= set(next(csv.reader(stream), [])):
                    found.append(file)
    return found


def gue_table() -> tuple[list[str], list[list[str]]]:
    """Headers and rows: measured scores x100 (mean ± deviation over seeds) beside the published ones, by task."""
    measured: dict = {}
    for path in sorted(GUE_RESULTS.glob("*.csv")):
        measured |= measured_scores(read_results(path))
    comparison = COMPARISONS[0]
    published = published_scores(comparison.source)
    rows = []
    for task in TASKS.values():
        if not any(task.name in scores for scores in measured.values()):
            continue
        metric = comparison.metric(task)
        own = [scores[task.name].text(metric) if task.name in scores else "-" for scores in measured.values()]
        others = [f"{scores[task.name]:.2f}" if task.name in scores else "-" for scores in published.values()]
        rows.append([task.name, METRIC_NAMES[metric], *own, *others])
    return ["task", "metric", *(f"{name} (measured)" for name in measured), *published], rows


def build():
    """Components and events of the tab."""
    gr.Markdown("Measured by this project's own scripts; each row names the machine. Nothing here is computed now.")
    files = speed_files()
    if files:
        _speed(files)
    _gue()


def _speed(files: list[str]):
    gr.Markdown("## Speed and memory")
    start = speed_rows(files[0])
    with gr.Row():
        file = gr.Dropdown([(SPEED[f][0], f) for f in files], value=files[0], label="Measurement", min_width=300)
        case = gr.Dropdown(cases(files[0]), value=cases(files[0])[0], label="Case", min_width=300)
    chart = gr.BarPlot(**bars(files[0], cases(files[0])[0]), height=300, sort=None)
    with gr.Accordion("All rows", open=False):
        table = gr.Dataframe(_table(start), interactive=False, datatype="str", max_height=420, show_label=False)

    @guarded
    def on_file(name):
        rows, choices = speed_rows(name), cases(name)
        return gr.Dropdown(choices=choices, value=choices[0]), gr.BarPlot(**bars(name, choices[0])), _table(rows)

    @guarded
    def on_case(name, chosen):
        return gr.BarPlot(**bars(name, chosen))

    file.input(on_file, file, [case, chart, table], api_visibility="private", **QUICK)
    case.input(on_case, [file, case], chart, api_visibility="private", **QUICK)


def cases(file: str) -> list[str]:
    """What was measured and can be drawn, each once."""
    return list(dict.fromkeys(row["case"] for row in speed_rows(file) if row[SPEED[file][3]]))


def bars(file: str, case: str) -> dict:
    """Value and axes of the bar chart of one case: for each rival the last measurement; bars begin at 0."""
    title, _, rival, value = SPEED[file]
    rows = {row[rival]: row for row in speed_rows(file) if row["case"] == case and row[value]}.values()
    data = pandas.DataFrame({rival: [row[rival] for row in rows], value: [float(row[value]) for row in rows]})
    axes = {
        "x": rival,
        "y": value,
        "y_title": title.partition(": ")[2],
        "y_lim": [0, 1.1 * max(data[value], default=1)],
    }
    return {"value": data, "label": title, "tooltip": [rival, value], **axes}


def _table(rows: list[dict]) -> dict:
    headers = [name for name in rows[0] if any(row[name] for row in rows)]
    return {"headers": headers, "data": [[row[name] for name in headers] for row in rows]}


def _gue():
    gr.Markdown(
        "## GUE\n\nScores times 100 on the test sets. Measured here: mean ± deviation over seeds. The others are "
        "as the DNABERT-2 paper prints them."
    )
    try:
        headers, rows = gue_table()
    except (ResultsError, OSError) as error:
        gr.Markdown(f"The results cannot be read: {type(error).__name__}.")
        return
    if not rows:
        gr.Markdown("No task has been measured yet.")
        return
    gr.Dataframe({"headers": headers, "data": rows}, interactive=False, datatype="str", max_height=520,
                 label="GUE, score x 100", pinned_columns=1)  # fmt: skip
