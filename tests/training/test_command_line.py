"""What the scripts refuse before they start."""

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
