"""
A card for each task: source, labels, sizes, hashes, settings, published scores, known defects, leakage as measured.

    python -m gue.cards tf/4
    python -m gue.cards --output docs/gue_tasks.md
"""

import argparse
import json
import sys
from pathlib import Path

from gue.report import COMPARISONS, METRIC_NAMES, published_scores
from gue.tasks import DATA, GROUPS, SPLITS, Task, UnknownTaskError, find_tasks, read_table
from tokenization.tokenizer_files import write_text_atomically

INTRODUCTION = """# Tasks

Written by `python -m gue.cards --output docs/gue_tasks.md` from `gue/data/`. `python -m gue.check DIR` compares a
download with it. Hashes are sha256 of the uncompressed file with CRLF line ends, as distributed. Leakage was measured
with `python -m gue.check` on the files that were at hand; a split that is not listed was not.
"""
COMMON_SETTINGS = (
    "DNABERT-2: AdamW, learning rate 3e-5, batch 32, warm-up 50 steps, weight decay 0.01, dev every 200 steps, lowest "
    "dev loss kept, 3 seeds{tokens}. dnaGrinder: 20 learning rates from 1e-5 to 7e-5 x 5 seeds, best result."
)


def card(task: Task) -> str:
    """One task as markdown."""
    about = json.loads((DATA / "groups.json").read_text(encoding="utf-8"))[task.group]
    classes = f"{task.num_labels} classes" if task.num_labels else "classes as in the data"
    meanings = ", ".join(f"{number} {meaning}" for number, meaning in enumerate(task.labels))
    lines = [
        f"### {task.name}",
        "",
        f"{task.title[0].upper()}{task.title[1:]}. {task.organism.capitalize()}, {task.length:,} bp"
        f"{', two sequences' if task.pair else ''}, {classes}, {METRIC_NAMES[task.metric]}.",
        "",
        f"- Labels: {meanings + '. ' if meanings else ''}{about['labels']}",
        f"- Source: {about['source']}",
        f"- Licence: {about['licence']}",
        f"- Settings: {_settings(task)}",
        f"- Published: {_published(task)}",
        *(f"- Known: {defect}" for defect in about["defects"]),
        *(f"- Measured: {text}" for text in _leakage(task)),
    ]
    return "\n".join([*lines, "", _splits(task)]).rstrip() + "\n"


def _settings(task: Task) -> str:
    durations = []
    if task.dnabert2_epochs or task.dnabert2_steps:
        unit = f"{task.dnabert2_epochs} epochs" if task.dnabert2_epochs else f"{task.dnabert2_steps} steps"
        durations.append(f"DNABERT-2 {unit}")
    if task.dnagrinder_epochs:
        durations.append(f"dnaGrinder {task.dnagrinder_epochs} epochs")
    tokens = f", at most {task.max_tokens} tokens" if task.max_tokens else ""
    length = f"{', '.join(durations)}. " if durations else "No duration is printed. "
    return length + COMMON_SETTINGS.format(tokens=tokens)


def _published(task: Task) -> str:
    parts = []
    for comparison in COMPARISONS:
        scores = {model: of[task.name] for model, of in published_scores(comparison.source).items() if task.name in of}
        if scores:
            best = max(scores, key=scores.get)
            own = comparison.flops_unit
            shown = dict.fromkeys([own, best] if own in scores else [best])
            text = ", ".join(f"{model} {scores[model]:.2f}" for model in shown)
            parts.append(f"{comparison.source}, {METRIC_NAMES[comparison.metric(task)]}: {text}")
    return "; ".join(parts) + (" (own model, and the best if another)." if parts else "no score at hand.")


def _leakage(task: Task) -> list[str]:
    texts, clean = [], []
    for row in read_table("leakage.csv"):
        if row["task"] != task.name:
            continue
        counts = {name: int(value or 0) for name, value in row.items() if name not in ("task", "where")}
        if not counts["exact"] + counts["reverse_complement"] + counts["overlapping"]:
            clean.append(row["where"])
            continue
        kinds = [f"{counts[kind]} {kind.replace('_', ' ')}" for kind in ("exact", "reverse_complement") if counts[kind]]
        if counts["other_label"]:
            kinds.append(f"{counts['other_label']} with another label")
        if counts["overlapping"]:
            kinds.append(f"{counts['overlapping']} share 32 bp or more")
        if counts["overlapping_other_label"]:
            kinds.append(f"{counts['overlapping_other_label']} of these only with other labels")
        place = row["where"] if " in " in row["where"] else f"repeated within {row['where']}"
        texts.append(f"{place}: of {counts['rows']:,} rows {', '.join(kinds)}.")
    if clean:
        texts.append(f"no repeated sequence, on either strand ({', '.join(clean)}).")
    return texts


def _splits(task: Task) -> str:
    if not task.splits:
        return ""
    lines = ["| split | rows | sha256 | as in |", "|---|---:|---|---|"]
    for known in sorted(task.splits, key=lambda known: SPLITS.index(known.split)):
        digest = f"`{known.sha256}`" if known.sha256 else "not known"
        lines.append(f"| {known.split} | {known.rows:,} | {digest} | {known.source} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """All cards, by group."""
    parts = [INTRODUCTION]
    about = json.loads((DATA / "groups.json").read_text(encoding="utf-8"))
    for group, tasks in GROUPS.items():
        parts.append(f"## {about[group]['title']} ({group})\n")
        parts.extend(card(task) for task in tasks)
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Print cards, or write all of them to a page."""
    parser = argparse.ArgumentParser(
        prog="python -m gue.cards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", help="names, groups (EMP) or suites (GUE); default: all")
    parser.add_argument("--output", type=Path, help="write the page of all cards here")
    arguments = parser.parse_args(argv)
    try:
        tasks = find_tasks(arguments.tasks or ["all"])
    except UnknownTaskError as error:
        parser.error(str(error))
    if arguments.output:
        write_text_atomically(arguments.output, page())
    else:
        print("\n".join(card(task) for task in tasks), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
