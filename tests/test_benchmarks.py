"""The benchmarks treat rivals alike, measure nothing twice, and say what is missing."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_finetuning, bench_tokenizer, compare_pretraining, harness

from .conftest import ROOT

TOKENIZER = str(ROOT / "tokenization" / "vocabulary" / "tokenizer.json")


@pytest.fixture
def suite(tmp_path):
    """Function from CPU seconds ("" for a process that died) to a suite with rows of "ours" and "tokenizers"."""

    def make(ours, tokenizers):
        made = bench_tokenizer.Suite(tmp_path / "rows.csv", tmp_path)
        for name, seconds in (("ours", ours), ("tokenizers", tokenizers)):
            died = {} if seconds else {"note": "killed"}
            made.add(made._empty("train", name, "genome", "words") | {"cpu_s": seconds} | died)
            if seconds:
                made._file("train", name, "genome", "words").write_text("[1]")
        return made

    return make


@pytest.mark.parametrize("seconds, note", [(2.0, "merges equal: True; 4.0x its speed"), ("", "")])
def test_a_rival_that_died_has_no_ratio(suite, seconds, note):
    rows = suite(0.5, seconds)
    rows.compare("train", "genome", "words", "merges equal")
    assert rows.row("train", "ours", "genome", "words")["note"] == note


def test_a_row_that_the_file_has_is_not_measured_again_unless_it_failed(suite, monkeypatch):
    measured = []

    def run(command, **options):
        measured.append(command[4])
        return subprocess.CompletedProcess(command, 1, "", "killed again")

    rows = suite(0.5, "")
    rows._file("train", "ours", "genome", "words").unlink()
    monkeypatch.setattr(bench_tokenizer.subprocess, "run", run)
    for name in ("ours", "tokenizers"):
        rows.measure("train", name, "genome", "words", 1000)
    assert measured == ["train_tokenizers"]
    assert [row["note"] for row in rows.rows] == ["", "killed again"]


def test_both_encoders_give_the_same_and_are_run_as_often(monkeypatch):
    passes, measured = [], bench_tokenizer.measured
    monkeypatch.setattr(bench_tokenizer, "measured", lambda work: (passes.append(1), measured(work))[1])
    ours, figures = bench_tokenizer.encode_ours(["ACGTTGCA", "GGATTACA"], TOKENIZER)
    count = len(passes)
    rival, rival_figures = bench_tokenizer.encode_tokenizers(["ACGTTGCA", "GGATTACA"], TOKENIZER)
    assert ours == rival and figures.keys() == rival_figures.keys()
    assert len(passes) - count == count > 1


def test_me_bpe_is_measured_once_beside_exact_training_on_species_that_neither_saw(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    names = ("vertebrates_softmasked/hg38", "vertebrates_softmasked/galGal4", "fungi/a", "bacteria/a", "plants/a")
    for name in (*names, "plants/rice_a"):
        path = tmp_path / "genomes" / f"{name}.fa"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f">{name}\n{random.choice(list(b'ACGT'), 3000).astype(np.uint8).tobytes().decode()}\n")
    monkeypatch.setattr(bench_tokenizer, "VOCABULARY", 64)
    genomes = list((tmp_path / "genomes").rglob("*.fa"))
    suite = bench_tokenizer.Suite(tmp_path / "rows.csv", tmp_path)
    for _ in range(2):
        bench_tokenizer.me_bpe_suite(suite, genomes)
    assert [row["implementation"] for row in suite.rows] == [
        "exact",
        "ME-BPE, vertebrates first",
        "ME-BPE, vertebrates last",
    ]
    assert {row["bases"] for row in suite.rows} == {12_000}
    assert all("tokens per base of other species" in row["note"] for row in suite.rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere a child begins with its parent's peak")
def test_memory_of_a_measured_process_is_its_own():
    ballast = b"x" * (200 << 20)
    program = "from benchmarks.bench_tokenizer import peak_memory; print(peak_memory())"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 5 < float(printed) < len(ballast) / 2**20


def test_what_the_warm_up_has_left_to_the_gpu_is_not_timed(monkeypatch):
    events = []
    monkeypatch.setattr(harness, "synchronize", lambda: events.append("synchronize"))
    harness.interleave({"work": lambda: events.append("work")}, 1)
    assert events == ["work", "synchronize", "work", "synchronize"]


def test_a_padded_run_without_its_baseline_is_refused(tmp_path, monkeypatch, capsys):
    command = ["compare_pretraining", "a.fa", "--heldout", "b.fa", "--output", str(tmp_path), "--runs", "padded"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        compare_pretraining.main()
    assert "all_results.json, which is missing; add baseline to --runs" in capsys.readouterr().err


def test_the_row_of_a_finished_run_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    row = {**harness.machine(), "run": "baseline", "steps": 244, "accuracy": 0.0635}
    path = tmp_path / "pretraining.csv"
    assert compare_pretraining.new_rows([row], path) == [row]
    harness.append_rows("pretraining", [row])
    later, longer = {**row, "date": "2000-01-01"}, {**row, "steps": 488}
    assert compare_pretraining.new_rows([later, longer], path) == [longer]


def test_fine_tuning_of_long_rows_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    genome = tmp_path / "genome.fa"
    genome.write_text(">a\n" + "ACGGTTCAGA" * 60 + "\n>short\nACGT\n")
    monkeypatch.setattr("sys.argv", ["bench_finetuning", str(genome), "--lengths", "500", "601"])
    with pytest.raises(SystemExit, match="no sequence of 601 bp or more"):
        bench_finetuning.main()
    monkeypatch.setattr("sys.argv", ["bench_finetuning", str(tmp_path / "absent.fa")])
    with pytest.raises(SystemExit, match="absent.fa: no such file"):
        bench_finetuning.main()
    (row,) = csv.DictReader((tmp_path / "finetuning.csv").open())
    assert row["bp"] == "500" and float(row["step_s"]) > 0 and 0.1 < float(row["peak_memory_gb"]) < 4
