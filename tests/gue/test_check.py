"""What a download is checked for, and what the message says."""

import errno
import gzip
import os

import pytest

from gue import check
from gue.check import check_task, leakage, main, published_form, read_content, reverse_complement
from gue.tasks import TASKS, find_task
from tests.gue.conftest import random_rows, write_split

TF0 = find_task("tf/0")


def problems(data_dir, task=TF0):
    return "\n".join(check_task(task, data_dir).problems)


@pytest.fixture
def train(data_dir):
    return data_dir / "GUE/tf/0/train.csv"


def edit(path, old, new):
    content = path.read_bytes()
    assert content.count(old)
    path.write_bytes(content.replace(old, new, 1))


def test_missing_split_is_named(data_dir, train):
    train.unlink()
    assert "tf/0: train.csv (or .csv.gz) is missing" in problems(data_dir)


def test_wrong_row_count_names_both_numbers(data_dir, train):
    assert f"{train}: 12 rows; expected are 32,378 (DNABERT-2 paper, table 8)" in problems(data_dir)


def test_both_known_covid_sizes_are_expected(data_dir):
    assert "77,669 (DNABERT-2 paper, table 8) or 73,335" in problems(data_dir, find_task("virus/covid"))


def test_gzip_reads_like_plain_text(data_dir, train):
    before = check_task(TF0, data_dir).splits["train"]
    train.with_name("train.csv.gz").write_bytes(gzip.compress(train.read_bytes()))
    train.unlink()
    after = check_task(TF0, data_dir).splits["train"]
    assert (after.rows, after.sha256) == (before.rows, before.sha256)


def test_damaged_gzip_is_named(data_dir, train):
    packed = train.with_name("train.csv.gz")
    packed.write_bytes(gzip.compress(train.read_bytes())[:-20])
    train.unlink()
    assert f"{packed}: damaged gzip file" in problems(data_dir)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (b"sequence,label", b"seq,label", "line 1: the columns are seq,label, not sequence,label"),
        (b"sequence,label", b"Sequence,Label", "line 1: the columns are Sequence,Label, not sequence,label"),
        (b"sequence,label", b"sequence\tlabel", "line 1: the fields are separated by '\\t', not by commas"),
        (b",1\r\n", b",2\r\n", "label '2' in 1 rows; the labels are 0 to 1"),
        (b",1\r\n", b",bound\r\n", "label 'bound' in 1 rows"),
        (b",1\r\n", b",\r\n", "line 3: no label ('')"),
        (b",1\r\n", b",nan\r\n", "line 3: no label ('nan')"),
        (b",1\r\n", b"\r\n", "line 3: 1 fields instead of 2"),
        (b",1\r\n", b",1,2\r\n", "line 3: 3 fields instead of 2"),
        (b",1\r\n", b" ACGT,1\r\n", "line 3: white space within the sequence"),
        (b",1\r\n", b"|ACGT,1\r\n", "line 3: character '|' at position 102 is not a nucleotide"),
        (b",0\r\n", b"Z,0\r\n", "line 2: character 'Z' at position 102 is not a nucleotide"),
        (b",0\r\n", b"ACGT,0\r\n", "1 rows are longer than 101 bp (longest 105)"),
        (b",0\r\n", b"\xff,0\r\n", "line 2: byte 0xff is no text"),
    ],
)
def test_damage_is_named_with_file_line_and_value(data_dir, train, old, new, message):
    edit(train, old, new)
    assert f"{train}" in problems(data_dir) and message in problems(data_dir)


@pytest.mark.parametrize("value", ["", "NA", "nan"])
def test_missing_sequence_is_named(data_dir, train, value):
    first = train.read_bytes().splitlines()[1]
    edit(train, first, f"{value},0".encode())
    assert f"{train}, line 2: no sequence ({value!r})" in problems(data_dir)


def test_missing_sequence_of_a_pair_is_named(tmp_path):
    task = find_task("EPI/K562")
    write_split(tmp_path / task.name / "dev.csv", [("ACGT", "NA", 1)], ("enhancer", "promoter", "label"))
    assert "dev.csv, line 2: no sequence ('NA')" in problems(tmp_path, task)


def test_many_rows_of_one_kind_are_counted_not_listed(data_dir, train):
    train.write_bytes(train.read_bytes().replace(b",1\r\n", b",\r\n"))
    assert problems(data_dir).count("no label") == 4  # three lines and the count
    assert "6 rows in all with no label" in problems(data_dir)


def test_missing_class_is_named(data_dir, train):
    train.write_bytes(train.read_bytes().replace(b",1\r\n", b",0\r\n"))
    assert f"{train}: no row has label 1" in problems(data_dir)


def test_byte_order_mark_and_lower_case_are_read(data_dir, train):
    rows = check_task(TF0, data_dir).splits["train"].rows
    header, _, body = train.read_bytes().partition(b"\r\n")
    train.write_bytes(b"\xef\xbb\xbf" + header + b"\r\n" + body.lower())
    assert check_task(TF0, data_dir).splits["train"].rows == rows


def test_pair_task_reads_two_sequences(tmp_path):
    task = find_task("EPI/K562")
    rows = [(a, b, label) for (a, label), (b, _) in zip(random_rows(4, 50, 0), random_rows(4, 30, 1), strict=True)]
    for split in ("train", "dev", "test"):
        write_split(tmp_path / task.name / f"{split}.csv", rows, ("enhancer", "promoter", "label"))
    report = check_task(task, tmp_path)
    assert not report.problems
    assert report.splits["train"].rows[0] == (f"{rows[0][0]}|{rows[0][1]}", "0")
    assert reverse_complement("AAC|GGT") == "GTT|ACC"


def test_leakage_counts_exact_and_reverse_complement_rows(tmp_path):
    (a, _), (b, _), (c, _), (d, _) = random_rows(4, 101, 7)
    write_split(tmp_path / "tf/0/train.csv", [(a, 0), (a, 1), (b, 1), (reverse_complement(b), 1)])
    write_split(tmp_path / "tf/0/dev.csv", [(c, 0), (a, 0)])
    write_split(tmp_path / "tf/0/test.csv", [(reverse_complement(a), 1), (b, 0), (c, 0), (d, 1)])
    splits = check_task(TF0, tmp_path).splits
    counts = {
        row["where"]: (row["exact"], row["reverse_complement"], row["other_label"]) for row in leakage(TF0, splits)
    }
    assert counts == {
        "train": (1, 1, 1),
        "dev": (0, 0, 0),
        "test": (0, 0, 0),
        "dev in train": (1, 0, 0),
        "test in train": (1, 1, 1),
        "test in dev": (1, 1, 1),
    }


def test_overlaps_are_those_of_a_search_for_every_stretch(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "BLOCK_LENGTH", 300)  # several blocks
    (a, _), (b, _), (c, _), (d, _) = random_rows(4, 101, 8)
    train = [(a, 0), (b, 1), (c, 1), (d[:60] + "N" + d[61:], 0), ("ACGT" * 5, 0)]
    test = [
        (c[:70] + a[:31], 0),  # 70 bp of one with the other label; 31 bp are too few
        (reverse_complement(b)[40:80] + d[20:61], 1),  # 40 bp of the other strand; 40 bp up to an N, of the other label
        (d[30:90], 0),  # 30 bp, N, 29 bp
        (a[:31] + b[:31], 1),  # nothing across a border
        (reverse_complement(a)[:32], 1),
        ("ACGT" * 5, 0),  # a repeat that is too short to overlap
    ]
    write_split(tmp_path / "tf/0/train.csv", train)
    write_split(tmp_path / "tf/0/test.csv", test)
    stretches = {}
    for sequence, label in train:
        for strand in (sequence, reverse_complement(sequence)):
            for start in range(len(strand) - 31):
                stretches.setdefault(strand[start : start + 32], set()).add(label)
    labels = [set().union(*(stretches.get(s[i : i + 32], set()) for i in range(len(s) - 31))) for s, _ in test]
    expected = (
        sum(map(bool, labels)),
        sum(bool(there) and test[row][1] not in there for row, there in enumerate(labels)),
    )
    found = leakage(TF0, check_task(TF0, tmp_path).splits)[-1]
    assert found["where"] == "test in train"
    assert (found["overlapping"], found["overlapping_other_label"]) == expected == (3, 2)
    notes = check_task(TF0, tmp_path).notes
    assert "tf/0: test in train: 3 of 6 sequences share 32 bp or more (2 with other labels only)" in notes


def test_command_prints_and_fails_when_something_is_wrong(data_dir, capsys, tmp_path):
    assert main([str(data_dir), "--tasks", "tf/0", "tf/1", "--csv", str(tmp_path / "leakage.csv")]) == 1
    printed = capsys.readouterr().out
    assert "0 of 2 tasks are complete and as known" in printed and "not there at all: tf/1" in printed
    assert (tmp_path / "leakage.csv").read_text().splitlines()[
        0
    ] == "task,where,rows,exact,reverse_complement,other_label,overlapping,overlapping_other_label"


def test_tasks_of_which_nothing_is_known_are_not_called_as_known(tmp_path, capsys):
    for split in ("train", "dev", "test"):
        write_split(tmp_path / f"EPI/K562/{split}.csv", [("ACGT", "ACG", 0), ("ACGT", "AC", 1)], ("a", "b", "label"))
    assert main([str(tmp_path), "--tasks", "EPI/K562"]) == 0
    said = "0 of 1 tasks are complete and as known\ncomplete, but nothing is known to compare with: EPI/K562\n"
    assert said in capsys.readouterr().out


def test_table_that_cannot_be_written_is_said_at_the_start(data_dir, train, tmp_path, capsys):
    for path, message in (
        (tmp_path, f"--csv {tmp_path} is a folder; name a file"),
        (train / "x.csv", f"--csv {train}: {train} is not a folder"),
    ):
        with pytest.raises(SystemExit):
            main([str(data_dir), "--tasks", "tf/0", "--csv", str(path)])
        printed = capsys.readouterr()
        assert f"error: {message}" in printed.err and not printed.out
    main([str(data_dir), "--tasks", "tf/0", "--csv", str(tmp_path / "new/folder/x.csv")])
    assert (tmp_path / "new/folder/x.csv").exists()


def test_a_table_of_an_earlier_check_survives_a_full_disk(data_dir, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    command = [str(data_dir), "--tasks", "tf/0", "--csv", str(tmp_path / "x.csv")]
    main(command)
    before = (tmp_path / "x.csv").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match=f"error: cannot write to {tmp_path}: the disk is full"):
        main(command)
    assert before and (tmp_path / "x.csv").read_bytes() == before


def test_command_names_near_tasks(data_dir, capsys):
    with pytest.raises(SystemExit):
        main([str(data_dir), "--tasks", "prom_core_tat"])
    assert "did you mean prom/prom_core_tata" in capsys.readouterr().err


def test_published_form_without_known_hash_is_a_note(tmp_path):
    write_split(tmp_path / "enhancers/test.csv", random_rows(400, 200, 0))
    write_split(tmp_path / "enhancers/train.csv", random_rows(14968, 200, 1))
    report = check_task(find_task("enhancers"), tmp_path)
    assert not report.problems and "train.csv: as many rows as published; no hash is known" in " ".join(report.notes)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mouse/2", "prom/prom_core_tata", "tf/4", "enhancers", "enhancers_types"])
def test_real_sets_are_as_published(shared_data, name):
    report = check_task(TASKS[name], shared_data("data"))
    assert report.problems == []
    assert all(published_form(report.task, split, read_content(found.path)) for split, found in report.splits.items())


@pytest.mark.shared
def test_one_changed_base_and_other_line_ends_are_noticed(shared_data, tmp_path):
    real = read_content(TASKS["mouse/2"].file(shared_data("data"), "test"))
    for split in ("train", "dev", "test"):
        source = read_content(TASKS["mouse/2"].file(shared_data("data"), split))
        write_split(tmp_path / f"mouse/2/{split}.csv", [])
        (tmp_path / f"mouse/2/{split}.csv").write_bytes(source)
    changed = tmp_path / "mouse/2/test.csv"
    changed.write_bytes(real.replace(b"\r\n", b"\n"))
    report = check_task(TASKS["mouse/2"], tmp_path)
    assert not report.problems and f"{changed}: as published, with other line ends" in report.notes
    base = b"A" if real[20:21] != b"A" else b"C"
    changed.write_bytes(real[:20] + base + real[21:])
    assert f"{changed}: as many rows as published, other content" in problems(tmp_path, TASKS["mouse/2"])


@pytest.mark.shared
def test_leakage_table_is_what_the_real_sets_hold(shared_data):
    from gue.tasks import read_table

    for name in ("tf/4", "prom/prom_core_tata", "enhancers_types"):
        report = check_task(TASKS[name], shared_data("data"))
        kept = [row for row in read_table("leakage.csv") if row["task"] == name]
        assert [{key: str(value) for key, value in row.items()} for row in report.leakage] == kept
