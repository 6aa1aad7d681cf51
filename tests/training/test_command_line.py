"""What the scripts refuse before they start."""

import ast
import subprocess
import sys

import pytest
import torch

from tests.training.runs import ROOT, flags
from training.command_line import SettingsError
from training.settings import parse_arguments


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the processes train together")
def test_processes_that_would_each_train_alone_in_one_folder_are_refused(settings):
    words = flags({name: value for name, value in settings.items() if name != "use_cpu"})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.run([*launcher, "run_mlm.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert launched.returncode
    assert "2 processes were launched" in launched.stderr and "add --use_cpu" in launched.stderr


@pytest.mark.parametrize("content", ["seed: 1\n\tbf16: true\n", '{"seed": [1}', "[1]", "seed: \xff"])
@pytest.mark.parametrize("as_recipe", [False, True])
def test_a_file_of_settings_that_cannot_be_read_is_named(tmp_path, content, as_recipe):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=f"^{path}: [^\n]*$"):
        parse_arguments(["--recipe", str(path)] if as_recipe else [str(path)], "")


def test_no_is_a_strategy_in_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"train_file: a.fa\noutput_dir: {tmp_path}\neval_strategy: no\nbf16: no\n")
    _, _, args = parse_arguments([str(tmp_path / "mine.yaml")], "")
    assert args.eval_strategy == "no" and args.bf16 is False


def test_modules_that_windows_lacks_are_imported_where_they_are_used_only():
    lacking = {"resource", "fcntl", "termios", "pwd", "grp"}
    files = [path for path in ROOT.glob("*/*.py") if path.parent.name not in ("tests", "benchmarks", "corpus")]
    assert len(files) > 60
    for path in [*files, *ROOT.glob("*.py")]:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in statement.names} | {getattr(statement, "module", None)}
                assert not names & lacking, path
