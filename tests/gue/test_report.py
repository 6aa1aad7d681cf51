"""The report: the papers' own figures come out of their tables, ours stand beside them, what is missing is named."""

import csv
import math
import shutil
import statistics
from pathlib import Path

import pytest

from gue.ranking import alike, average_ranks, critical_difference, friedman_p, top_two
from gue.report import BEGIN, END, common_tasks, main, measured_scores, published_scores
from gue.results import ResultsError, append_row, read_results
from gue.tasks import GROUPS, TASKS, read_table

ROOT = Path(__file__).resolve().parents[2]
GUE = [task.name for task in TASKS.values() if task.suite == "GUE"]
# Printed where the rows of the same paper say otherwise; docs/gue.md lists them.
NOT_THE_MEAN_OF_ITS_ROWS = {("NT-500M-1000g", "average"): 57.79}
SWAPPED = {"DNABERT (5-mer)", "NT-500M-human"}  # TF-H and CVC in table 3


def row(name="mine", task="tf/0", seed=0, rate="3e-05", mcc=0.5, **others):
    numbers = {"test_mcc": mcc, "test_f1": mcc + 0.1, "test_accuracy": mcc + 0.05, "eval_mcc": mcc}
    return {"name": name, "model": name, "task": task, "seed": seed, "learning_rate": rate, **numbers, **others}


@pytest.fixture
def results(tmp_path):
    """Function that writes rows to a results file and gives its path."""

    def write(*rows):
        path = tmp_path / "results.csv"
        for each in rows:
            append_row(path, each)
        return path

    return write


def dnabert2_summaries():
    return [row for row in read_table("published_summaries.csv") if row["source"] == "DNABERT-2 paper"]


@pytest.mark.parametrize("printed", dnabert2_summaries(), ids=lambda row: row["model"])
def test_mean_of_the_28_published_rows_is_the_printed_one(printed):
    scores = published_scores("DNABERT-2 paper")[printed["model"]]
    expected = NOT_THE_MEAN_OF_ITS_ROWS.get((printed["model"], "average"), float(printed["average"]))
    assert len(scores) == 28
    assert statistics.mean(scores.values()) == pytest.approx(expected, abs=0.011)  # the paper cuts, not rounds


@pytest.mark.parametrize("printed", dnabert2_summaries(), ids=lambda row: row["model"])
def test_group_means_are_those_of_table_3(printed):
    scores = published_scores("DNABERT-2 paper")[printed["model"]]
    for group in ("EMP", "TF-M", "CVC", "TF-H", "PD", "CPD", "SSP"):
        swapped = {"TF-H": "CVC", "CVC": "TF-H"} if printed["model"] in SWAPPED else {}
        mean = statistics.mean(scores[task.name] for task in GROUPS[group])
        assert mean == pytest.approx(float(printed[swapped.get(group, group)]), abs=0.011), group


def test_top_two_counts_are_those_of_table_2():
    scores = published_scores("DNABERT-2 paper")
    counted = top_two({model: [values[task] for task in GUE] for model, values in scores.items()})
    assert counted == {row["model"]: (int(row["first"]), int(row["second"])) for row in dnabert2_summaries()}


def test_top_two_counts_of_dnagrinder_are_printed_but_for_one():
    scores = {model: s for model, s in published_scores("dnaGrinder paper").items() if len(s) >= 30}
    tasks = [*GUE, "enhancers", "enhancers_types"]
    counted = top_two({model: [values[task] for task in tasks] for model, values in scores.items()})
    printed = {row["model"]: row for row in read_table("published_summaries.csv")}
    different = {m for m, c in counted.items() if c != (int(printed[m]["first"]), int(printed[m]["second"]))}
    assert different == {"DNABERT-2"} and counted["DNABERT-2"] == (7, 8)


@pytest.mark.parametrize(
    "model, mean",
    [
        ("HyenaDNA (1K)", 61.94),
        ("DNABERT-2", 73.79),
        ("NT-500M-1000g", 67.41),
        ("NT-2500M-multi", 70.53),
        ("NT-50M-multi-v2", 70.57),
        ("dnaGrinder", 75.28),
    ],
)
def test_averages_of_dnagrinders_rows_are_those_of_the_page(model, mean):
    scores = published_scores("dnaGrinder paper")[model]
    found = statistics.mean(scores[task] for task in [*GUE, "enhancers", "enhancers_types"])
    assert found == pytest.approx(mean, abs=0.005)
    (printed,) = (row for row in read_table("published_summaries.csv")
                  if row["source"] == "dnaGrinder paper" and row["model"] == model)  # fmt: skip
    page = (ROOT / "docs/gue.md").read_text(encoding="utf-8")
    assert f"| dnaGrinder, table 2, average of {model} | {printed['average']} | {mean}" in page


def test_published_scores_equal_the_reference(shared_data):
    with open(shared_data("facts/published_scores.csv"), newline="") as file:
        facts = [(row["source"], row["model"], row["dataset"], row["score_x100"]) for row in csv.DictReader(file)]
    ours = [(row["source"], row["model"], row["task"], row["score"]) for row in read_table("published_scores.csv")]
    assert ours == [(*fact[:2], fact[2].replace("species_classification", "species/120kb"), fact[3]) for fact in facts]


def test_mean_and_deviation_are_over_seeds(results):
    rows = read_results(results(row(seed=0, mcc=0.5), row(seed=1, mcc=0.6), row(seed=2, mcc=0.7)))
    cell = measured_scores(rows)["mine"]["tf/0"]
    assert cell.text("mcc") == "60.00 ± 10.00" and cell.seeds == (0, 1, 2)


def test_learning_rate_is_chosen_on_dev_not_on_test(results):
    low = [row(rate="1e-05", seed=seed, mcc=0.9, eval_mcc=0.4) for seed in range(2)]
    high = [row(rate="5e-05", seed=seed, mcc=0.6, eval_mcc=0.7) for seed in range(2)]
    lucky = [row(rate="7e-05", seed=0, mcc=0.99, eval_mcc=0.99)]  # one seed only
    cell = measured_scores(read_results(results(*low, *high, *lucky)))["mine"]["tf/0"]
    assert (cell.learning_rate, cell.text("mcc")) == ("5e-05", "60.00 ± 0.00")


def test_sweep_without_dev_scores_is_refused(results):
    rows = read_results(results(row(rate="1e-05", eval_mcc=""), row(rate="5e-05", eval_mcc="")))
    with pytest.raises(ResultsError, match="2 learning rates, but no eval_mcc"):
        measured_scores(rows)


def test_averages_are_over_tasks_that_all_models_have(results):
    path = results(row(task="tf/0"), row(task="tf/1"), row("other", task="tf/1"))
    assert [task.name for task in common_tasks(measured_scores(read_results(path)))] == ["tf/1"]


def test_report_shows_measured_beside_published_and_names_the_rest(results, tmp_path):
    path = results(*(row(task=task, seed=seed, mcc=0.8 + seed / 100) for task in ("tf/0", "tf/1") for seed in (0, 1)))
    append_row(path, row(task="EPI/K562"))
    assert main([str(path), "--output_dir", str(tmp_path / "out")]) == 0
    report = (tmp_path / "out/report.md").read_text()
    assert "| tf/0 | MCC | **80.50 ± 0.71** | 67.95 |" in report  # DNABERT (3-mer) in the DNABERT-2 paper
    assert "| tf/0 | accuracy | **85.50 ± 0.71** | 79.30 |" in report  # HyenaDNA in the dnaGrinder paper
    assert "| mean of 2 tasks |  | 80.50 |" in report
    assert "| mine | measured | - | - | 2 ‖ 0 | 80.50 | 1.00 | - |" in report
    assert "| EPI/K562 | MCC | 50.00 |" in report
    assert "36 of 39 tasks: EMP/H3," in report and "Fewer seeds: EPI/K562 (1 of 2)." in report
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.md",
        "scores.csv",
        "critical_difference_dnabert-2.png",
        "critical_difference_dnagrinder.png",
    }


def test_published_model_of_the_same_name_stands_beside_the_measured_one(results, tmp_path):
    main([str(results(row("DNABERT-2"), row("DNABERT-2", task="tf/1"))), "--output_dir", str(tmp_path)])
    report = (tmp_path / "report.md").read_text()
    assert "| task | metric | DNABERT-2 | DNABERT (3-mer) |" in report
    assert report.count(" | DNABERT-2 (published) | ") == 2  # heads of both papers' tables
    assert "| tf/0 | MCC | 50.00 |" in report and " | **71.99** | " in report
    assert "| DNABERT-2 | measured | - | - |" in report and "| DNABERT-2 (published) | as published | 117 M |" in report


def test_learning_rate_is_named(results, tmp_path):
    main([str(results(row(rate="0.0003"))), "--output_dir", str(tmp_path)])
    assert "1 tasks, seeds 0, learning rate 0.0003" in (tmp_path / "report.md").read_text()


def test_collapsed_runs_are_named(results, tmp_path):
    path = results(row(collapsed="the same answer for every sequence", mcc=0.0), row(seed=1), row(seed=2))
    main([str(path), "--output_dir", str(tmp_path)])
    assert "collapsed to one answer: tf/0 (1 of 3)" in (tmp_path / "report.md").read_text()


def test_every_origin_of_the_data_is_named(results, tmp_path):
    path = results(
        row(data="published"),
        row(seed=1, data="other"),
        row(task="tf/1", data="unknown"),
        row(task="tf/2", data="published"),
    )
    main([str(path), "--output_dir", str(tmp_path)])
    line = "; not the published files: tf/0; no hash of the published files known: tf/1\n"
    assert line in (tmp_path / "report.md").read_text()
    with open(tmp_path / "scores.csv", newline="") as file:
        data = {row["task"]: row["data"] for row in csv.DictReader(file) if row["source"] == "measured"}
    assert data == {"tf/0": "other published", "tf/1": "unknown", "tf/2": "published"}


def test_published_scores_of_other_files_are_shown_but_not_averaged(results, tmp_path):
    tasks = {"tf/0": "published", "tf/1": "published", "enhancers": "variant"}
    path = results(*(row(name, task=task, data=data) for name in ("mine", "theirs") for task, data in tasks.items()))
    main([str(path), "--output_dir", str(tmp_path)])
    report = (tmp_path / "report.md").read_text()
    assert "published files, but not those of the published scores: enhancers\n" in report
    assert "| enhancers † | accuracy | 55.00 | 55.00 | 71.75 | 79.25 |" in report and "**79.25**" not in report
    assert "| mean of 2 tasks |" in report and "Average ranks over 2 tasks" in report and "of 3 |" not in report
    assert "| 2: tf/0, tf/1 | MCC | 50.00 | 50.00 |\n| 1: enhancers | accuracy | 55.00 | 55.00 |" in report


def test_scores_csv_holds_measured_and_published(results, tmp_path):
    main([str(results(row(seed=0), row(seed=1, mcc=0.7))), "--output_dir", str(tmp_path)])
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["source"] != "measured"]) == len(read_table("published_scores.csv"))
    mcc = next(row for row in rows if row["source"] == "measured" and row["metric"] == "mcc")
    assert (float(mcc["mean"]), mcc["seeds"]) == (60.0, "0 1")
    assert float(mcc["deviation"]) == pytest.approx(math.sqrt(200), abs=1e-4)


def test_report_goes_between_the_marks_of_a_page(results, tmp_path):
    page = tmp_path / "gue.md"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    for _ in range(2):  # the second time gives the same page
        main([str(results(row(), row(task="tf/1"))), "--output_dir", str(tmp_path / "plots"), "--page", str(page)])
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
        assert text.count("### What was run") == 1 and "](plots/critical_difference_dnabert-2.png)" in text


def test_page_and_scores_are_what_the_kept_results_give(tmp_path):
    shutil.copy(ROOT / "docs/gue.md", tmp_path)
    kept = sorted(map(str, (ROOT / "gue/results").glob("*.csv")))
    main([*kept, "--output_dir", str(tmp_path / "gue"), "--page", str(tmp_path / "gue.md")])
    for name in ("gue.md", "gue/scores.csv"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_page_without_marks_is_left_alone(results, tmp_path, capsys):
    page = tmp_path / "gue.md"
    page.write_text("mine\n")
    with pytest.raises(SystemExit):
        main([str(results(row())), "--output_dir", str(tmp_path), "--page", str(page)])
    assert "must hold the lines" in capsys.readouterr().err and page.read_text() == "mine\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file; python -m gue.run makes one"),
        ("a,b\n1,2\n", "line 1: no column 'name'"),
        ("name,task,seed,learning_rate\nx,tf/0\n", "line 2: not as many fields as line 1"),
        ("name,task,seed,learning_rate\nx,tf/0,one,3e-5\n", "line 2: seed is 'one', no finite number"),
        *(
            (
                f"name,task,seed,learning_rate,{column}\nx,tf/0,1,3e-5,{value}\n",
                f"r.csv, line 2: {column} is {value!r}, no finite number; mend or delete this line",
            )
            for column, value in [
                ("test_mcc", "high"),
                ("test_mcc", "nan"),
                ("eval_f1", "-inf"),
                ("parameters", "5 M"),
                ("flops_500bp", "many"),
            ]
        ),
    ],
)
def test_unusable_results_file_is_named(tmp_path, capsys, content, message):
    path = tmp_path / "r.csv"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        main([str(path), "--output_dir", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_folder_and_file_are_told_apart(results, tmp_path, capsys):
    path = results(row())
    for given, output, message in (
        (tmp_path, tmp_path, f"{tmp_path} is a folder; give a file of results"),
        (path, path, f"--output_dir {path}: {path} is not a folder"),
    ):
        with pytest.raises(SystemExit):
            main([str(given), "--output_dir", str(output)])
        assert f"error: {message}" in capsys.readouterr().err


def test_columns_that_a_results_file_lacks_are_empty(tmp_path):
    (tmp_path / "r.csv").write_text("name,task,seed,learning_rate,test_mcc\nmine,tf/0,0,3e-05,0.5\n")
    assert main([str(tmp_path / "r.csv"), "--output_dir", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "| tf/0 | MCC | 50.00 |" in report and "no hash of the published files known: tf/0" in report


def test_files_that_differ_about_a_run_are_refused(results, tmp_path, capsys):
    path = results(row(mcc=0.5))
    append_row(tmp_path / "other.csv", row(mcc=0.6))
    assert main([str(path), str(path), "--output_dir", str(tmp_path)]) == 0
    with pytest.raises(SystemExit):
        main([str(path), str(tmp_path / "other.csv"), "--output_dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert f"other.csv, line 2: mine tf/0 0 3e-05 has other results in {path}, line 2" in said
    assert "give one of the grids another --name" in said


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({}, {"settings": "--use_lora", "rate": "1e-04"}, "mine --use_lora, in {}, line 2 for mine;"),
        ({"model": "a/mine"}, {"model": "b/mine", "seed": 1}, "b/mine, in {}, line 2 for a/mine;"),
        ({"weights": "0a1b"}, {"weights": "2c3d", "seed": 1}, "weights 2c3d, in {}, line 2 for weights 0a1b;"),
    ],
)
def test_one_name_for_two_models_is_refused(results, tmp_path, capsys, first, second, message):
    path = results(row(**first))
    append_row(tmp_path / "other.csv", row(**second))
    with pytest.raises(SystemExit):
        main([str(path), str(tmp_path / "other.csv"), "--output_dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert "other.csv, line 2: the name 'mine' stands for " + message.format(path) in said
    assert "give one of the grids another --name" in said


def test_files_that_share_a_grid_make_one_model(results, tmp_path):
    path = results(row(weights="0a1b"))
    append_row(tmp_path / "other.csv", row(seed=1))  # without weights, as older files
    main([str(path), str(tmp_path / "other.csv"), "--output_dir", str(tmp_path)])
    assert "- **mine** (`mine`): 1 tasks, seeds 0, 1, " in (tmp_path / "report.md").read_text()


def test_row_of_the_same_run_replaces_the_older_one(results):
    path = results(row(mcc=0.1), row(task="tf/1"), row(mcc=0.2, rate="0.00003"))
    assert [(r["task"], r["test_mcc"]) for r in read_results(path)] == [("tf/1", "0.5"), ("tf/0", "0.2")]


def test_ranks_share_places_when_scores_are_equal():
    scores = {"a": [3, 3], "b": [2, 3], "c": [1, 1]}
    assert average_ranks(scores) == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert top_two(scores) == {"a": (2, 0), "b": (1, 1), "c": (0, 1)}


def test_critical_difference_is_that_of_demsar_2006():
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)  # his section 3.2.4
    assert critical_difference(10, 1) * math.sqrt(6 / 110) == pytest.approx(3.164, abs=0.001)  # his table 5


def test_friedman_needs_three_models():
    assert math.isnan(friedman_p({"a": [1, 2], "b": [2, 1]}))
    assert friedman_p({"a": list(range(20)), "b": list(range(1, 21)), "c": list(range(2, 22))}) < 1e-6


def test_bars_join_models_that_do_not_differ():
    assert alike({"a": 1.0, "b": 1.5, "c": 2.4, "d": 4.0}, 1.0) == [(1.0, 1.5), (1.5, 2.4)]
    assert alike({"a": 1.0, "b": 3.0}, 1.0) == []
