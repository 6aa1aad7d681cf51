"""What the scripts refuse before they start."""

import ast
import subprocess
import sys

import pytest
import torch

from tests.training.runs import ROOT, flags


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the processes train together")
def test_processes_that_would_each_train_alone_in_one_folder_are_refused(settings):
    words = flags({name: value for name, value in settings.items() if name != "use_cpu"})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.run([*launcher, "run_mlm.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert launched.returncode
    assert "2 processes were launched" in launched.stderr and "add --use_cpu" in launched.stderr


def test_modules_that_windows_lacks_are_imported_where_they_are_used_only():
    lacking = {"resource", "fcntl", "termios", "pwd", "grp"}
    files = [path for path in ROOT.glob("*/*.py") if path.parent.name not in ("tests", "benchmarks", "corpus")]
    assert len(files) > 60
    for path in [*files, *ROOT.glob("*.py")]:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in statement.names} | {getattr(statement, "module", None)}
                assert not names & lacking, path
