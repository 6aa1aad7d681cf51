"""Tab Benchmarks: speed, memory and GUE scores, read from the result files of the project."""

import csv
from pathlib import Path

import gradio as gr
import pandas

from gue.report import COMPARISONS, METRIC_NAMES, gather_rows, measured_scores, published_scores
from gue.results import ResultsError
from gue.tasks import TASKS
from space.inputs import InputError
from space.parts import QUICK, guarded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GUE_RESULTS = ROOT / "gue" / "results"
# file: (columns that say which case a row belongs to, column of the rivals, what is drawn: title by column)
SPEED = {
    "encoder.csv": (["case", "dtype", "device", "machine"], "model",
                    {"tokens_per_s": "Encoder of 117 M parameters: tokens per second",
                     "peak_memory_gb": "Encoder of 117 M parameters: peak memory in GB"}),
    "attention.csv": (["tokens", "data", "dtype", "device", "machine"], "backend",
                      {"wall_s": "Attention alone: seconds"}),
    "training.csv": (["size", "case", "dtype", "device", "machine"], "model",
                     {"tokens_per_s": "Training steps: tokens per second",
                      "peak_memory_gb": "Training steps: peak memory in GB"}),
    "pretraining.csv": (["steps", "machine"], "run",
                        {"heldout_bits_per_base": "Short pre-training: bits per held-out base, less is better"}),
    "tokenizer.csv": (["what", "corpus", "setting"], "implementation",
                      {"ns_per_base": "Tokenizer: CPU nanoseconds per base",
                       "peak_memory_mb": "Tokenizer: peak memory in MB"}),
    "corpus.csv": (["measure", "case"], "tool",
                   {"mbp_per_cpu_s": "Reading genomes: Mbp per CPU second",
                    "peak_memory_mb": "Reading genomes: peak memory in MB"}),
    "haplotypes.csv": (["case", "machine"], "tool", {"ms_per_haplotype": "Haplotypes: milliseconds each"}),
    "embed.csv": (["case", "model", "bp", "machine"], "way",
                  {"bp_per_s": "Embedding: bp per second", "peak_memory_gb": "Embedding: peak memory in GB"}),
    "variants.csv": (["hidden_size", "layers", "flank", "variants", "machine"], "name",
                     {"variants_per_cpu_s": "Scoring variants: variants per CPU second"}),
}  # fmt: skip
UNITS = {"tokens": "{} tokens", "bp": "{} bp", "steps": "{} steps", "hidden_size": "hidden size {}",
         "layers": "{} layers", "flank": "flanks of {} bp", "variants": "{} variants"}  # fmt: skip


def speed_rows(file: str) -> list[dict[str, str]]:
    """
    Rows of a result file, each with `case`, the text of the columns that say what was measured.

    Raises:
        InputError: no such file.
    """
    if file not in speed_files():
        raise InputError(f"{file[:60]!r} is no result file; there are {', '.join(speed_files())}.")
    keys, _, _ = SPEED[file]
    with open(RESULTS / file, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{**row, "case": ", ".join(unit(key, row[key]) for key in keys if row[key])} for row in rows]


def unit(column: str, value: str) -> str:
    """A value with its unit where the column has one."""
    return UNITS[column].format(f"{int(value):,}") if column in UNITS and value.isdecimal() else value


def speed_files() -> list[str]:
    """Result files that are there and have the columns that say what was measured."""
    found = []
    for file, (keys, rival, _) in SPEED.items():
        if (RESULTS / file).is_file():
            with open(RESULTS / file, newline="", encoding="utf-8") as stream:
                if {*keys, rival} <= set(next(csv.reader(stream), [])):
                    found.append(file)
    return found


def measurements() -> dict[str, tuple[str, str]]:
    """(file, column) of what can be drawn, by title; nothing without a value."""
    drawn = ((title, file, column) for file in speed_files() for column, title in SPEED[file][2].items())
    return {title: (file, column) for title, file, column in drawn if cases(file, column)}


def gue_table() -> tuple[list[str], list[list[str]]]:
    """Headers and rows: measured scores x100 (mean ± deviation over seeds) beside the published ones, by task."""
    measured = measured_scores(gather_rows(sorted(GUE_RESULTS.glob("*.csv"))))
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
    if found := measurements():
        _speed(found)
    _gue()


def _speed(found: dict[str, tuple[str, str]]):
    gr.Markdown("## Speed and memory")
    title, measure = next(iter(found.items()))
    names = cases(*measure)
    with gr.Row():
        choice = gr.Dropdown(list(found), value=title, label="Measurement", min_width=300)
        case = gr.Dropdown(names, value=names[0], label="Case", min_width=300)
    chart = gr.BarPlot(**bars(*measure, names[0]), height=300, sort=None)
    with gr.Accordion("All rows", open=False):
        table = gr.Dataframe(_table(speed_rows(measure[0])), interactive=False, datatype="str", max_height=420,
                             show_label=False)  # fmt: skip

    @guarded
    def on_choice(chosen):
        file, column = found[chosen]
        names = cases(file, column)
        drawn = gr.BarPlot(**bars(file, column, names[0]))
        return gr.Dropdown(choices=names, value=names[0]), drawn, _table(speed_rows(file))

    @guarded
    def on_case(chosen, name):
        return gr.BarPlot(**bars(*found[chosen], name))

    choice.input(on_choice, choice, [case, chart, table], api_visibility="private", **QUICK)
    case.input(on_case, [choice, case], chart, api_visibility="private", **QUICK)


def cases(file: str, column: str) -> list[str]:
    """Cases in which a column of a file has a value, each once."""
    return list(dict.fromkeys(row["case"] for row in speed_rows(file) if row.get(column)))


def bars(file: str, column: str, case: str) -> dict:
    """Value and axes of the bar chart of one case: for each rival the last measurement; bars begin at 0."""
    _, rival, titles = SPEED[file]
    rows = {row[rival]: row for row in speed_rows(file) if row["case"] == case and row.get(column)}.values()
    data = pandas.DataFrame({rival: [row[rival] for row in rows], column: [float(row[column]) for row in rows]})
    axes = {
        "x": rival,
        "y": column,
        "y_title": titles[column].partition(": ")[2],
        "y_lim": [0, 1.1 * max(data[column], default=1)],
    }
    return {"value": data, "label": titles[column], "tooltip": [rival, column], **axes}


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
