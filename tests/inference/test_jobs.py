"""Jobs in blocks: what was finished is never computed again, and the output does not depend on how it came about."""

import os
import signal
import threading
from dataclasses import fields, replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inference import jobs
from inference.jobs import JobError, blocks, run, survey
from inference.reading import SequenceInputError, SequenceRecord
from inference.variant_windows import SCORED, Allele

RECORDS = [SequenceRecord(f"r{i}", b"ACGTN" * (i % 4 + 1), f"line {i}") for i in range(23)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(jobs, "BLOCK_RECORDS", 4)


class Process:
    """One of several processes, here threads."""

    def __init__(self, index=0, number=1, barrier=None):
        self.process_index, self.num_processes, self.is_main_process = index, number, index == 0
        self.wait_for_everyone = barrier.wait if barrier else lambda: None


class Lengths:
    """Computes the length of each sequence; fails at the block with the number `fails_at`."""

    def __init__(self, fails_at=None):
        self.blocks, self.fails_at = [], fails_at

    def __call__(self, first, records):
        if len(self.blocks) == self.fails_at:
            raise KeyboardInterrupt
        self.blocks.append(first)
        yield pyarrow.table({
            "name": [record.name for record in records],
            "record": range(first, first + len(records)),
            "length": [len(record.sequence) for record in records],
        })  # fmt: skip


def start(output, compute=None, settings=None, records=RECORDS, state=None, **options):
    return run(
        output, settings or {"model": "m"}, lambda: iter(records), compute or Lengths(), state or Process(), **options
    )


def test_blocks_hold_every_record_once_and_are_bounded():
    found = list(blocks(iter(RECORDS), 50))
    assert [record for block in found for record in block] == RECORDS
    assert all(len(block) <= 4 and sum(len(r.sequence) for r in block[:-1]) < 50 for block in found)


def test_the_survey_counts_what_there_is():
    found = survey(iter(RECORDS), 50)
    assert (found.sequences, found.bases) == (23, sum(len(record.sequence) for record in RECORDS))
    assert found.ambiguous == found.bases // 5 and sum(found.block_bases) == found.bases


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.tsv"])
@pytest.mark.parametrize("fails_at", range(0, 5, 2))
def test_interrupted_and_resumed_equals_uninterrupted_byte_for_byte(tmp_path, name, fails_at):
    start(tmp_path / name)
    (tmp_path / "second").mkdir()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "second" / name, Lengths(fails_at))
    assert not (tmp_path / "second" / name).exists()
    resumed = Lengths()
    start(tmp_path / "second" / name, resumed)
    assert (tmp_path / "second" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert len(resumed.blocks) == len(list(blocks(iter(RECORDS), 50))) - fails_at
    assert [path.name for path in (tmp_path / "second").iterdir()] == [name]


@pytest.mark.parametrize("number", [2, 3, 30])
def test_the_number_of_processes_does_not_change_the_output(tmp_path, number):
    start(tmp_path / "one.parquet")
    barrier, computed = threading.Barrier(number), [Lengths() for _ in range(number)]
    threads = [
        threading.Thread(
            target=start,
            args=(tmp_path / "many.parquet", compute),
            kwargs={"state": Process(index, number, barrier)},
        )
        for index, compute in enumerate(computed)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "many.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert len({first for c in computed for first in c.blocks}) == sum(len(c.blocks) for c in computed)


def test_a_job_interrupted_by_one_process_is_resumed_by_many(tmp_path):
    start(tmp_path / "one.parquet")
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "x.parquet", Lengths(3))
    barrier = threading.Barrier(2)
    second = threading.Thread(target=start, args=(tmp_path / "x.parquet",), kwargs={"state": Process(1, 2, barrier)})
    second.start()
    start(tmp_path / "x.parquet", state=Process(0, 2, barrier))
    second.join()
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": {"model": "other"}}, "model was 'm', now 'other'"),
        ({"records": [*RECORDS[:-1], SequenceRecord("r22", b"ACGTA" * 3, "")]}, "digest was"),
        ({"records": RECORDS[:-1]}, "sequences was 23, now 22"),
    ],
)
def test_another_job_does_not_go_on_with_what_is_there(tmp_path, change, message):
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "x.parquet", Lengths(2))
    with pytest.raises(JobError, match=message):
        start(tmp_path / "x.parquet", **change)


def test_every_field_of_a_record_counts_but_its_place(tmp_path):
    allele = Allele("a", b"ACGT", "line 3", b"ACT", "1", 2, "rs1", "CG", "C", SCORED)
    digest = survey(iter([allele])).digest
    assert survey(iter([replace(allele, where="line 4")])).digest == digest
    changes = {"name": "b", "sequence": b"ACG", "pair": None, "contig": "2", "position": 3, "id": "rs2", "ref": "G",
               "alt": "T", "status": "breakend"}  # fmt: skip
    assert {field.name for field in fields(allele)} == {"where", *changes}
    for name, value in changes.items():
        assert survey(iter([replace(allele, **{name: value})])).digest != digest


@pytest.mark.parametrize(
    "second, message",
    [
        (
            [*RECORDS[:9], SequenceRecord("r9", b"A" * 10, "line 9"), *RECORDS[10:]],
            "^at or after line 8, record 'r8', ",
        ),
        (RECORDS[:12], "^the input has changed"),
        (RECORDS[:10], "^at or after line 8"),
    ],
)
def test_an_input_that_changes_while_the_command_runs_is_refused(tmp_path, second, message):
    readings = [RECORDS, second]
    computed = Lengths()
    with pytest.raises(JobError, match=message + ".*since it was checked"):
        run(tmp_path / "x.csv", {}, lambda: iter(readings.pop(0)), computed, Process())
    assert computed.blocks == list(range(0, len(second) if "^at" not in message else 8, 4))
    assert not (tmp_path / "x.csv").exists()


def test_before_anything_was_finished_settings_may_change(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "x.parquet", Lengths(0))
    start(tmp_path / "x.parquet", settings={"model": "other"})
    start(tmp_path / "y.parquet", settings={"model": "other"})
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_no_file_is_overwritten_unless_told(tmp_path):
    output, figure = tmp_path / "x.csv", tmp_path / "x.png"
    jobs.check_files(output, [figure], [tmp_path / "in.fa", None], overwrite=False)
    figure.touch()
    with pytest.raises(JobError, match="x.png already exists"):
        jobs.check_files(output, [figure], [], overwrite=False)
    jobs.check_files(output, [figure], [], overwrite=True)
    with pytest.raises(JobError, match="is the input itself"):
        jobs.check_files(output, [figure], [figure], overwrite=True)
    (tmp_path / "x.csv.parts").mkdir()  # says nothing about the figure
    with pytest.raises(JobError, match="x.png already exists"):
        jobs.check_files(output, [figure], [], overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_output(tmp_path, overwrite):
    (tmp_path / "x.csv").mkdir()
    for output, also in (("x.csv", "y.png"), ("y.csv", "x.csv")):
        with pytest.raises(JobError, match="x.csv is a folder; choose another name"):
            jobs.check_files(tmp_path / output, [tmp_path / also], [], overwrite)


def test_an_interrupted_job_overwrites_only_what_it_was_to_write(tmp_path):
    output, ours, other = (tmp_path / name for name in ("x.csv", "x.png", "y.png"))

    def write_also(tables):
        ours.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(output, write_also=write_also, also=[ours])
    jobs.check_files(output, [ours], [], overwrite=False)
    other.write_text("of somebody else")
    with pytest.raises(JobError, match="y.png already exists"):
        jobs.check_files(output, [ours, other], [], overwrite=False)
    resumed = Lengths()
    start(output, resumed, also=[ours])
    assert resumed.blocks == [] and output.exists()
    with pytest.raises(JobError, match="x.csv already exists"):
        jobs.check_files(output, [], [], overwrite=False)


def test_an_existing_output_is_kept_unless_overwritten(tmp_path):
    start(tmp_path / "x.csv", records=RECORDS[:2])
    with pytest.raises(JobError, match="already exists"):
        start(tmp_path / "x.csv")
    start(tmp_path / "x.csv", overwrite=True)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 24


class Vectors(Lengths):
    """Vectors of two numbers, all `value`."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __call__(self, first, records):
        for table in super().__call__(first, records):
            values = pyarrow.array(np.full(2 * len(table), self.value, np.float32))
            yield table.append_column("embedding", pyarrow.FixedSizeListArray.from_arrays(values, 2))


@pytest.mark.parametrize("column", ["score", "embedding"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_end_the_job(tmp_path, column, value):
    def compute(first, records):
        numbers = range(first, first + len(records))
        values = {"score": [None] * len(records), "embedding": np.zeros((len(records), 2))}
        if first == 4:
            values[column][1:3] = [value] * 2 if column == "score" else [[0, value]] * 2
        vectors = pyarrow.FixedSizeListArray.from_arrays(values["embedding"].ravel(), 2)
        score = pyarrow.array(values["score"], pyarrow.float32(), from_pandas=False)
        yield pyarrow.table({"name": ["r"] * len(records), "record": numbers, "score": score, "embedding": vectors})

    with pytest.raises(JobError, match=r"line 5, record 'r5' \(and 1 more\): the outputs are not finite"):
        start(tmp_path / "x.parquet", compute)
    assert [path.name for path in (tmp_path / "x.parquet.parts").glob("*.parquet")] == ["part-00000000.parquet"]
    start(tmp_path / "y.parquet", compute, records=RECORDS[:4])  # empty values are no numbers
    assert (tmp_path / "y.parquet").exists()


class Positions(Lengths):
    """A table for each record, with a row for each bp."""

    def __call__(self, first, records):
        for number, record in enumerate(records, first):
            length = len(record.sequence)
            yield pyarrow.table({
                "name": [record.name] * length, "record": [number] * length, "position": range(length),
            })  # fmt: skip


@pytest.mark.parametrize("rows, groups", [(1 << 16, [280]), (100, [100, 100, 80]), (12, None)])
def test_tables_of_many_records_share_a_row_group(tmp_path, monkeypatch, rows, groups):
    monkeypatch.setattr(jobs, "GROUP_ROWS", rows)
    start(tmp_path / "x.parquet", Positions())
    with pyarrow.parquet.ParquetFile(tmp_path / "x.parquet") as file:
        found = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        table = file.read()
    lengths = [len(record.sequence) for record in RECORDS]
    assert table["record"].to_pylist() == [number for number, n in enumerate(lengths) for _ in range(n)]
    assert table["position"].to_pylist() == [place for n in lengths for place in range(n)]
    assert found == groups if groups else (max(found) == 20 and sum(found) == 280)


def test_a_row_group_is_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "GROUP_BYTES", 600)
    start(tmp_path / "x.parquet", Positions())
    with pyarrow.parquet.ParquetFile(tmp_path / "x.parquet") as file:
        assert 10 < file.num_row_groups < 20


def test_an_index_never_stands_beside_an_older_matrix(tmp_path, monkeypatch):
    output, index = tmp_path / "x.npy", tmp_path / "x.npy.index.tsv"
    start(output, Vectors(1), records=RECORDS[:5])
    replace = os.replace

    def fail(source, target):
        if target == output:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        start(output, Vectors(2), overwrite=True)
    assert len(index.read_text().splitlines()) == 24 and not output.exists()
    monkeypatch.undo()
    monkeypatch.setattr(jobs, "BLOCK_RECORDS", 4)
    computed = Vectors(3)
    start(output, computed)
    assert computed.blocks == [] and (np.load(output) == 2).all() and len(np.load(output)) == 23
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.npy.index.tsv"]


def test_two_jobs_do_not_write_one_output(tmp_path):
    def compute(first, records):
        with pytest.raises(JobError, match="x.csv.parts: another job is writing this output; wait"):
            start(tmp_path / "x.csv", settings={"model": "other"})
        yield from Lengths()(first, records)

    start(tmp_path / "x.csv", compute)
    start(tmp_path / "y.csv")
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()


def test_what_another_job_wrote_meanwhile_is_kept(tmp_path):
    def records():
        yield from RECORDS
        (tmp_path / "x.csv").write_text("of another job")

    with pytest.raises(JobError, match="already exists"):
        run(tmp_path / "x.csv", {}, records, Lengths(), Process())
    assert (tmp_path / "x.csv").read_text() == "of another job"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_sigterm_ends_a_command_like_ctrl_c(tmp_path):
    def compute(first, records):
        yield from Lengths()(first, records)
        if first == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="the same command goes on"), jobs.said_in_one_line():
        start(tmp_path / "x.csv", compute)
    assert signal.getsignal(signal.SIGTERM) is before
    names = [path.name for path in (tmp_path / "x.csv.parts").iterdir()]
    assert sorted(names) == ["job.json", "part-00000000.parquet", "part-00000001.parquet"]
    resumed = Lengths()
    start(tmp_path / "x.csv", resumed)
    assert resumed.blocks[0] == 8


def test_a_bad_record_at_the_end_is_found_before_anything_is_computed(tmp_path):
    def records():
        yield from RECORDS
        raise SequenceInputError("x.csv, line 24: no nucleotide")

    computed = Lengths()
    with pytest.raises(SequenceInputError, match="line 24"):
        run(tmp_path / "x.csv", {}, records, computed, Process())
    assert computed.blocks == [] and not list(tmp_path.iterdir())


def test_something_else_in_the_way_is_not_removed(tmp_path):
    (tmp_path / "x.csv.parts").mkdir()
    (tmp_path / "x.csv.parts" / "thesis.txt").touch()
    with pytest.raises(JobError, match="in the way"):
        start(tmp_path / "x.csv")


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="--output"):
        start(tmp_path / "file" / "x.csv")
