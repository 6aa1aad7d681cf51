"""The grid: complete, resumable after a kill, shared by several runners, and honest about what failed."""

import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gue.results import locked, read_results
from gue.run import data_origin, main
from gue.tasks import SPLITS, KnownSplit, find_task
from modeling import StrandBertConfig
from tests.gue.conftest import random_rows, write_split

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--model", "kmer-logistic", "--tasks", "tf/0", "mouse/2", "--seeds", "0", "1", "2"]


@pytest.fixture
def flags(data_dir, stand_in):
    return [*FLAGS, "--data_dir", str(data_dir), "--script", str(stand_in)]


def table(path):
    """The rows, in a fixed order and without the time they took."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_results(path)]
    return sorted(rows, key=lambda row: (row["task"], row["learning_rate"], row["seed"]))


def start(*flags):
    return subprocess.Popen([sys.executable, "-m", "gue.run", *map(str, flags)], cwd=ROOT, stdout=subprocess.PIPE)


def test_grid_has_one_row_per_task_learning_rate_and_seed(flags, tmp_path):
    assert main([*flags, "--learning_rates", "1e-5", "3e-5", "--output_dir", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out/results.csv")
    assert len(rows) == 2 * 2 * 3
    assert {(row["task"], row["learning_rate"], row["seed"]) for row in rows} == {
        (task, rate, seed) for task in ("tf/0", "mouse/2") for rate in ("1e-05", "3e-05") for seed in "012"
    }
    assert {row["data"] for row in rows} == {"other"}  # random rows are not the published files


def test_data_are_published_variant_other_or_unknown(data_dir):
    task = find_task("tf/0")
    known = {split: hashlib.sha256(task.file(data_dir, split).read_bytes()).hexdigest() for split in SPLITS}

    def origin(scored=True, **changes):
        splits = tuple(KnownSplit(split, 12, sha256, "here", scored) for split, sha256 in (known | changes).items())
        return data_origin(dataclasses.replace(task, splits=splits), data_dir)

    assert origin() == "published"
    assert origin(train="") == "unknown"
    assert origin(train="0" * 64) == "other"
    assert origin(train="", test="0" * 64) == "other"
    assert origin(scored=False) == "variant"
    assert origin(scored=False, train="") == "variant"


def test_real_enhancer_files_are_not_those_of_the_published_scores(shared_data):
    folder = shared_data("data")
    assert find_task("enhancers").file(folder, "train")
    assert data_origin(find_task("enhancers"), folder) == "variant"


def test_same_command_again_runs_nothing(flags, tmp_path):
    flags += ["--output_dir", str(tmp_path / "out"), "--", "--count", str(tmp_path / "count")]
    main(flags)
    before = (tmp_path / "out/results.csv").read_bytes()
    main(flags)
    assert (tmp_path / "out/results.csv").read_bytes() == before
    assert len((tmp_path / "count").read_text().splitlines()) == 6


def test_killed_and_resumed_grid_gives_the_same_table(flags, tmp_path):
    main([*flags, "--output_dir", str(tmp_path / "whole"), "--", "--sleep", "0.2"])
    resumed = [*flags, "--output_dir", tmp_path / "killed", "--", "--sleep", "0.2"]
    runner = start(*resumed)
    results = tmp_path / "killed/results.csv"
    while not read_results(results):
        time.sleep(0.02)
    runner.kill()  # its run lives on, holds the lock and ends by itself
    runner.wait()
    assert 0 < len(read_results(results)) < 6
    assert main([str(flag) for flag in resumed]) == 0
    assert table(results) == table(tmp_path / "whole/results.csv")


def test_run_of_a_killed_runner_is_not_started_twice(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("gue.run.WAIT_SECONDS", 0.1)
    resumed = [*flags, "--output_dir", tmp_path / "out", "--", "--sleep", "1", "--count", tmp_path / "count"]
    resumed[resumed.index("0") : resumed.index("2") + 1] = ["0"]
    runner = start(*resumed)
    while not (tmp_path / "count").exists():
        time.sleep(0.02)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert main([str(flag) for flag in resumed]) == 0
    assert sorted((tmp_path / "count").read_text().splitlines()) == ["mouse/2 0 3e-05", "tf/0 0 3e-05"]


def test_two_runners_share_a_grid_and_lose_no_row(flags, tmp_path):
    shared = [*flags, "--output_dir", tmp_path / "out", "--", "--sleep", "0.1", "--count", tmp_path / "count"]
    runners = [start(*shared) for _ in range(2)]
    assert [runner.wait(60) for runner in runners] == [0, 0]
    assert len(table(tmp_path / "out/results.csv")) == 6
    assert len((tmp_path / "count").read_text().splitlines()) == 6


def without_locks(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
@pytest.mark.parametrize("wait", [False, True])
def test_a_file_system_without_locks_keeps_nobody_waiting(tmp_path, monkeypatch, number, wait):
    monkeypatch.setattr("fcntl.flock", without_locks(number))
    with pytest.warns(UserWarning, match="no locks: start one runner at a time"):
        with locked(tmp_path / "lock", wait) as lock:
            assert lock is not None


def test_a_lock_that_fails_otherwise_is_not_taken_for_one_that_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", without_locks(errno.EBADF))
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)), locked(tmp_path / "lock", wait=False):
        pass


def test_a_lock_that_is_held_is_not_given(tmp_path):
    with locked(tmp_path / "lock"), locked(tmp_path / "lock", wait=False) as lock:
        assert lock is None


def test_failed_run_is_named_and_tried_again(flags, tmp_path, capsys):
    (tmp_path / "fail").write_text("tf/0 1")
    flags += ["--output_dir", str(tmp_path / "out"), "--", "--fail", str(tmp_path / "fail")]
    assert main(flags) == 1
    printed = capsys.readouterr().out
    assert "no result: tf/0 lr 3e-05 seed 1" in printed and "no luck today" in printed
    assert len(table(tmp_path / "out/results.csv")) == 5
    (tmp_path / "fail").unlink()
    assert main(flags) == 0
    assert len(table(tmp_path / "out/results.csv")) == 6


def test_stops_when_everything_fails(flags, tmp_path, capsys):
    (tmp_path / "fail").write_text("all")
    settings = ["--fail", str(tmp_path / "fail"), "--count", str(tmp_path / "count")]
    assert main([*flags, "--output_dir", str(tmp_path / "out"), "--", *settings]) == 1
    assert len((tmp_path / "count").read_text().splitlines()) == 3
    assert "stopped: 3 runs in a row failed" in capsys.readouterr().out


def test_task_without_data_is_named_not_run(flags, tmp_path, capsys, data_dir):
    (data_dir / "GUE/tf/0/dev.csv").unlink()
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 1
    assert f"not run: tf/0 (no dev under {data_dir})" in capsys.readouterr().out
    assert {row["task"] for row in table(tmp_path / "out/results.csv")} == {"mouse/2"}


def test_models_are_deleted_unless_kept(flags, tmp_path):
    main([*flags, "--output_dir", str(tmp_path / "out")])
    main([*flags, "--output_dir", str(tmp_path / "kept"), "--keep_models"])
    left = {path.name for path in (tmp_path / "out/tf-0/lr-3e-05_seed-0").iterdir()}
    kept = {path.name for path in (tmp_path / "kept/tf-0/lr-3e-05_seed-0").iterdir()}
    assert left == {"all_results.json", "log.txt"}
    assert kept - left == {"model.safetensors", "checkpoint-1"}


def test_one_name_cannot_stand_for_two_settings(flags, tmp_path, capsys):
    results = ["--results", str(tmp_path / "results.csv")]
    main([*flags, *results, "--output_dir", str(tmp_path / "a")])
    with pytest.raises(SystemExit):
        main([*flags, *results, "--output_dir", str(tmp_path / "b"), "--", "--sleep", "0.01"])
    assert "choose another --name" in capsys.readouterr().err


def test_folder_begun_with_other_data_is_not_continued(flags, tmp_path, data_dir):
    output = ["--output_dir", str(tmp_path / "out")]
    main([*flags, *output])
    os.rename(data_dir, tmp_path / "moved")
    flags[flags.index(str(data_dir))] = str(tmp_path / "moved")
    with pytest.raises(SystemExit, match="out was begun with data_dir"):
        main([*flags, *output, "--seeds", "7"])  # not even with runs of its own
    assert len(table(tmp_path / "out/results.csv")) == 6


def test_folder_begun_with_a_recipe_that_has_changed_is_not_continued(flags, tmp_path, stand_in):
    stand_in.write_text(stand_in.read_text().replace('"count"', '"count", "recipe"'))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("num_train_epochs: 3\n")
    flags += ["--output_dir", str(tmp_path / "out"), "--", "--recipe", str(recipe)]
    assert main(flags) == 0 and main(flags) == 0
    recipe.write_text("num_train_epochs: 4\n")
    with pytest.raises(SystemExit, match="recipe --num_train_epochs=3, now it is --num_train_epochs=4; give"):
        main(flags)


@pytest.mark.parametrize(
    "old, new", [('"test_mcc"', '"test_matthews"'), ('"test_mcc": number', '"test_mcc": float("nan")')]
)
def test_results_without_the_tasks_metric_are_a_failure(flags, tmp_path, stand_in, capsys, old, new):
    stand_in.write_text(stand_in.read_text().replace(old, new))
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 1
    assert "wrote no test_mcc into all_results.json" in capsys.readouterr().out
    assert not (tmp_path / "out/results.csv").exists()


def test_other_numbers_that_are_not_finite_are_left_empty(flags, tmp_path, stand_in):
    stand_in.write_text(stand_in.read_text().replace('"eval_mcc": 1 - number', '"eval_loss": float("inf")'))
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    assert {row["eval_loss"] for row in table(tmp_path / "out/results.csv")} == {""}


@pytest.mark.parametrize("name, message", [("", "{} is a folder; give a file"), ("f/r.csv", "--results {}: {} is not")])
def test_results_that_cannot_be_written_are_said_before_the_first_run(flags, tmp_path, capsys, name, message):
    (tmp_path / "f").touch()
    flags += ["--results", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*flags, "--", "--count", str(tmp_path / "count")])
    place = tmp_path / name.removesuffix("/r.csv")
    assert "error: " + message.format(place, place) in capsys.readouterr().err and not (tmp_path / "count").exists()


@pytest.mark.parametrize("left", ['{"train_loss": 0.5}', '{"test_mcc": 0.', ""])
def test_run_that_was_killed_while_writing_its_results_is_repeated(flags, tmp_path, left):
    folder = tmp_path / "out/tf-0/lr-3e-05_seed-0"
    folder.mkdir(parents=True)
    (folder / "all_results.json").write_text(left)
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    main([*flags, "--output_dir", str(tmp_path / "whole")])
    assert table(tmp_path / "out/results.csv") == table(tmp_path / "whole/results.csv")


def test_launcher_starts_every_run(flags, tmp_path):
    mark = tmp_path / "starter.py"
    mark.write_text(
        "import runpy, sys; open(__file__ + '.log', 'a').write('x'); del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    launcher = f"{Path(sys.executable).name} {mark}"
    assert main([*flags, "--launcher", launcher, "--output_dir", str(tmp_path / "out")]) == 0
    assert len(table(tmp_path / "out/results.csv")) == 6
    assert (tmp_path / "starter.py.log").read_text() == "x" * 6


def test_launcher_that_is_not_there_is_named(flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*flags, "--launcher", "acelerate launch", "--output_dir", str(tmp_path)])
    assert "no program 'acelerate'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "instead"), [("--learning_rate", "--learning_rates"), ("--seed=5", "--seeds"), ("--model", "--model")]
)
def test_what_the_grid_sets_is_refused_among_the_settings(flags, tmp_path, capsys, setting, instead):
    with pytest.raises(SystemExit):
        main([*flags, "--output_dir", str(tmp_path / "out"), "--", setting, "1"])
    assert f"the grid sets it; use {instead}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "adapter_model.safetensors"],
)
def test_changed_weights_are_not_filed_under_the_old_name(flags, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("gue.run.count_flops", lambda *_: None)
    weights = tmp_path / "model" / name
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    flags[flags.index("kmer-logistic")] = str(weights.parent)
    command = [*flags, "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0 and main(command) == 0
    weights.write_bytes(b"new")
    with pytest.raises(SystemExit):
        main(command)
    assert "had other weights then" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--data_dir", "--script"])
def test_missing_folder_or_script_is_named(flags, tmp_path, flag, capsys):
    flags[flags.index(flag) + 1] = "nowhere"
    with pytest.raises(SystemExit):
        main([*flags, "--output_dir", str(tmp_path / "out")])
    assert f"error: {flag} nowhere: no such" in capsys.readouterr().err


def test_full_disk_is_said_and_nothing_is_computed_twice(flags, tmp_path, monkeypatch):
    flags += ["--output_dir", str(tmp_path / "out"), "--", "--count", str(tmp_path / "count")]

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("gue.results.write_text_atomically", full)
        with pytest.raises(SystemExit, match="the disk is full.*; the same command goes on from here"):
            main(flags)
    assert main(flags) == 0
    assert len((tmp_path / "count").read_text().splitlines()) == 6


def test_learning_rates_are_those_of_the_script_and_the_paper(flags, tmp_path):
    from gue.run import LEARNING_RATE, LORA_LEARNING_RATE, parse
    from training import classification_arguments

    assert classification_arguments.LEARNING_RATE == LEARNING_RATE
    assert classification_arguments.LORA_LEARNING_RATE == LORA_LEARNING_RATE
    output = ["--output_dir", str(tmp_path)]
    assert parse([*flags, *output])[1].learning_rates == [3e-5]
    assert parse([*flags, *output, "--", "--use_lora"])[1].learning_rates == [1e-4]
    assert parse([*flags, *output, "--", "--use-lora"])[1].learning_rates == [1e-4]
    assert parse([*flags, *output, "--", "--use_lora=False"])[1].learning_rates == [3e-5]


def test_a_recipe_decides_what_the_flags_do_not(flags, tmp_path, capsys):
    from gue.run import parse

    flags += ["--output_dir", str(tmp_path)]
    recipe = tmp_path / "mine.yaml"
    choose = ["--", "--recipe", str(recipe)]
    recipe.write_text("learning_rate: 7.0e-5\nuse_lora: true\n")
    assert parse([*flags, *choose])[1].learning_rates == [7e-5]
    assert parse([*flags, "--learning_rates", "2e-5", *choose])[1].learning_rates == [2e-5]
    recipe.write_text("use_lora: true\npooling: max\n")
    assert parse([*flags, *choose])[1].learning_rates == [1e-4]
    assert parse([*flags, *choose, "--use_lora", "false"])[1].learning_rates == [3e-5]
    assert parse([*flags, "--", "--recipe", "dnabert2"])[1].learning_rates == [3e-5]
    recipe.write_text("seed: 5\n")
    with pytest.raises(SystemExit):
        parse([*flags, *choose])
    assert "--seed behind -- or in a recipe: the grid sets it; use --seeds" in capsys.readouterr().err


def test_recipes_are_those_of_the_script():
    from gue.run import RECIPES
    from training import classification_arguments

    assert classification_arguments.RECIPES == RECIPES


def test_random_weights_take_the_config_only(flags, tmp_path, stand_in):
    stand_in.write_text(stand_in.read_text().replace("model_name_or_path", "config_name"))
    assert main([*flags, "--random_weights", "--output_dir", str(tmp_path)]) == 0
    row = table(tmp_path / "results.csv")[0]
    assert (row["name"], row["settings"]) == ("kmer-logistic, random weights", "random weights")


@pytest.mark.slow
def test_real_script_runs_a_strandbert_from_its_config(data_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "tokenization/vocabulary", model)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    StrandBertConfig(vocab_size=4096, **sizes).save_pretrained(model)
    write_split(data_dir / "GUE/EMP/H3/test.csv", random_rows(3, 500, 0))
    flags = ["--model", str(model), "--random_weights", "--data_dir", str(data_dir), "--tasks", "tf/0", "--seeds", "1"]
    assert main([*flags, "--output_dir", str(tmp_path / "out"), "--", "--max_steps", "2"]) == 0
    (row,) = table(tmp_path / "out/results.csv")
    assert -1 <= float(row["test_mcc"]) <= 1 and 0 <= float(row["test_accuracy"]) <= 1 and row["eval_mcc"]
    assert (row["train_rows"], row["test_rows"], row["settings"]) == ("12", "12", "random weights --max_steps 2")
    assert int(row["parameters"]) > 4096 * 32 and int(row["flops_500bp"]) > 0
