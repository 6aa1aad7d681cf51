"""The task table: complete, true to the papers, found by the names users type."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gue.tasks import GROUPS, TASKS, UnknownTaskError, find_task, find_tasks, read_table


def test_table_holds_28_8_2_and_1_tasks():
    assert Counter(task.suite for task in TASKS.values()) == {"GUE": 28, "GUE+": 8, "NT": 2, "dnaGrinder": 1}


def test_groups_are_those_of_the_papers():
    sizes = {group: len(tasks) for group, tasks in GROUPS.items()}
    gue = {"EMP": 10, "CPD": 3, "PD": 3, "TF-H": 5, "TF-M": 5, "SSP": 1, "CVC": 1}
    assert sizes == {**gue, "EPI": 6, "SC": 2, "Enhancer": 2, "Species": 1}


@pytest.mark.parametrize(
    "typed, name",
    [
        ("tf/0", "tf/0"),
        ("mouse/2", "mouse/2"),
        ("prom_core_tata", "prom/prom_core_tata"),
        ("prom/prom_core_tata", "prom/prom_core_tata"),
        ("EMP/H3", "EMP/H3"),
        ("emp_H3K4me3", "EMP/H3K4me3"),
        ("H3", "EMP/H3"),
        ("splice/reconstructed", "splice/reconstructed"),
        ("virus/covid", "virus/covid"),
        ("covid", "virus/covid"),
        ("GUE/tf/0", "tf/0"),
        ("EPI/HeLa-S3", "EPI/HeLa-S3"),
        ("epi_hela_s3", "EPI/HeLa-S3"),
        ("enhancers_types", "enhancers_types"),
        ("species/120kb", "species/120kb"),
    ],
)
def test_names_as_users_type_them(typed, name):
    assert find_task(typed).name == name


@pytest.mark.parametrize(
    "typed, suggestion",
    [("prom_cor_tata", "prom/prom_core_tata"), ("mose/1", "mouse/1"), ("tf", "tf/4"), ("H3K4", "EMP/H3K4me1")],
)
def test_wrong_name_suggests_near_ones(typed, suggestion):
    with pytest.raises(UnknownTaskError, match=f"did you mean .*{suggestion}"):
        find_task(typed)


@given(st.text(max_size=20))
def test_any_text_is_a_task_or_a_clear_error(text):
    try:
        assert find_task(text).name in TASKS
    except UnknownTaskError as error:
        assert repr(text) in str(error)


def test_groups_and_suites_stand_for_their_tasks():
    assert len(find_tasks(["EMP", "tf/0", "H3"])) == 11
    assert len(find_tasks(["GUE"])) == 28
    assert len(find_tasks(["all"])) == 39


def test_split_sizes_agree_with_the_published_table(shared_data):
    import csv

    with open(shared_data("facts/gue_tasks.csv"), newline="") as file:
        for row in csv.DictReader(file):
            task = TASKS[row["dataset"]]
            paper = {known.split: known.rows for known in task.splits if known.source.startswith("DNABERT-2 paper")}
            assert paper == {split: int(row[split]) for split in ("train", "dev", "test")}
            assert (str(task.num_labels), task.metric) == (row["num_labels"], row["metric"])
            assert str(task.max_tokens) == row["upstream_max_tokens"]
            unit = f"{task.dnabert2_epochs} epochs" if task.dnabert2_epochs else f"{task.dnabert2_steps} steps"
            assert (unit, f"{task.dnagrinder_epochs} epochs") == (row["dnabert2_duration"], row["dnagrinder_duration"])


def test_labels_have_as_many_meanings_as_classes():
    assert all(len(task.labels) in (0, task.num_labels) for task in TASKS.values())


def test_strands_count_where_rows_are_written_along_a_gene_or_a_viral_genome():
    assert {task.group for task in TASKS.values() if task.stranded} == {"PD", "CPD", "SSP", "CVC"}
    assert {task.group for task in TASKS.values() if not task.stranded} == GROUPS.keys() - {"PD", "CPD", "SSP", "CVC"}


def test_every_hash_is_known_once():
    hashes = [row["sha256"] for row in read_table("splits.csv") if row["sha256"]]
    assert len(hashes) == len(set(hashes)) == 71
