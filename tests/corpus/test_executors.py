"""Other executors make the same corpus: Ray on this machine, Slurm's job script run by a stand-in for the scheduler."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import corpus

ROOT = Path(corpus.__file__).resolve().parents[1]
GENOME = ">chr1\n" + "ACGTTGCATTAGCCGA" * 500 + "\n"
STAND_INS = {
    # sbatch runs every task of the array at once; the job that merges statistics has no array
    "sbatch": """#!/bin/bash
for script; do :; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
if [ -n "$last" ] && grep -q launch_pickled_pipeline "$script"; then
  for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=node1 bash "$script" >&2 || true
  done
fi
echo Submitted batch job 1
""",
    "srun": '#!/bin/bash\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/bash\necho node1\n",
}


@pytest.fixture
def command(tmp_path):
    """Function from an output and more options to the finished process of corpus.build on two small genomes."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.fa").write_text(GENOME)
    (tmp_path / "table.csv").write_text("species,category,path\na,plant,a.fa\nb,plant,b.fa\n")
    (tmp_path / "recipe.yaml").write_text("recipe: dnabert2\ngenomes: table.csv\n")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)

    def run(output, *options):
        return subprocess.run(
            [sys.executable, "-m", "corpus.build", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / output)]
            + list(options),
            cwd=ROOT,
            env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "train").iterdir()} | {
        "manifest": (folder / "manifest.json").read_bytes()
    }


@pytest.mark.slow
def test_ray_with_two_workers_gives_the_same_bytes(tmp_path, command):
    pytest.importorskip("ray")
    assert command("local").returncode == 0
    finished = command("ray", "--executor", "ray", "--workers", "2")
    assert finished.returncode == 0, finished.stderr
    assert shards_of(tmp_path / "ray") == shards_of(tmp_path / "local")


def test_slurm_submits_an_array_and_the_second_call_writes_the_manifest(tmp_path, command):
    assert command("local").returncode == 0
    options = ("--executor", "slurm", "--slurm-partition", "cpu")
    submitted = command("slurm", *options)
    assert submitted.returncode == 0, submitted.stderr
    assert "train: 16 sequences" in submitted.stdout or "Submitted" in submitted.stdout
    finished = command("slurm", *options)
    assert "train: 16 sequences, 16,000 bp" in finished.stdout, finished.stderr
    assert shards_of(tmp_path / "slurm") == shards_of(tmp_path / "local")


def test_slurm_tells_of_a_genome_that_an_earlier_round_refused(tmp_path, command):
    (tmp_path / "b.fa").write_text(">chr1\nACGT!\n")
    options = ("--executor", "slurm", "--slurm-partition", "cpu")
    assert "not finished" not in command("slurm", *options).stderr
    again = command("slurm", *options)
    assert "Submitted" in again.stdout
    (line,) = [line for line in again.stderr.splitlines() if "not finished" in line]
    assert "b.fa: not finished: " in line and "letter '!' is no nucleotide" in line


def test_slurm_without_a_partition_is_refused(command):
    refused = command("out", "--executor", "slurm")
    assert refused.returncode == 2 and "--slurm-partition" in refused.stderr
