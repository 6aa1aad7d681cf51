"""run_mlm.py on several processes, sharded, streaming, and stopped from outside: always the same result."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import run_mlm
from tests.training.conftest import random_dna
from tests.training.runs import (
    ROOT,
    WARM_UP,
    assert_same_curve,
    assert_same_weights,
    error_of,
    flags,
    losses,
    results,
    run,
    weights,
    without_batch_size,
)
from training.checkpoints import COMPLETE
from training.sources import SequenceFileError
from training.streaming import ParquetStore
from training.trainer import MlmTrainer

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def warm_up(settings) -> dict:
    """Settings of a run with sequence-length warm-up, a length schedule, packing, token budgets and accumulation."""
    return without_batch_size(settings) | WARM_UP


@pytest.fixture
def shards(tmp_path):
    """Five Parquet files of 10 to 22 sequences, in row groups of 6."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(5):
        rows = [random_dna(120 + 10 * (i % 5), seed=100 * shard + i) for i in range(10 + 3 * shard)]
        pyarrow.parquet.write_table(pyarrow.table({"sequence": rows}), folder / f"{shard}.parquet", row_group_size=6)
    return folder


@pytest.fixture
def streaming(settings, shards, genome_file) -> dict:
    """Settings of a run that streams; its sequences are longer than its windows, so another piece is cut each epoch."""
    changes = {"train_file": str(shards), "validation_file": str(genome_file), "streaming": True, "packing": True}
    return settings | changes | {"max_train_samples": 0, "max_steps": 14}


def two_processes(tmp_path, script: str, *arguments, **environment):
    """Run a script in two processes that talk by gloo."""
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    end = "\nimport torch\ntorch.distributed.destroy_process_group()\n"  # gloo aborts now and then when it is left
    (tmp_path / "script.py").write_text(start + script + end)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    completed = subprocess.run(
        [*command, tmp_path / "script.py", tmp_path, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr


# -- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [4, 8])
def test_resuming_with_warm_up_packing_and_accumulation_is_exact(warm_up, with_dropout, tmp_path, checkpoint):
    options = warm_up | {"config_name": with_dropout["config_name"], "max_steps": 18}  # two epochs of 17 steps
    whole = run(options, save_total_limit=0)
    resumed = run(options, output_dir=tmp_path / "again", resume_from_checkpoint=whole / f"checkpoint-{checkpoint}")
    assert_same_weights(whole, resumed)
    assert losses(whole)[checkpoint:] == losses(resumed)[checkpoint:]


def test_sequence_length_warm_up_takes_short_sequences_first(warm_up, settings, tokenizer):
    del warm_up["sequence_length_schedule"]
    _, data_args, args = run_mlm.parse_arguments(flags(warm_up), "")
    dataset, _, _ = run_mlm.load_datasets(data_args, args, tokenizer)
    plan = run_mlm.make_plan(data_args, args, dataset)
    taken = [len(dataset.window(index)) for step in range(plan.steps_per_epoch) for index in sorted(plan.step(0, step))]
    steps = [[len(dataset.window(index)) for index in plan.step(0, step)] for step in range(plan.steps_per_epoch)]
    assert sorted(taken) == sorted(dataset.lengths)
    assert all(max(first) <= min(second) for first, second in zip(steps[:-1], steps[1:], strict=True))


def test_a_length_schedule_shortens_the_first_steps(warm_up, tmp_path):
    seen = [int(entry) for entry in losses(run(warm_up), "tokens")]
    per_step = {second - first for first, second in zip(seen[:-1], seen[1:], strict=True) if second != first}
    del warm_up["sequence_length_schedule"]
    whole = [int(entry) for entry in losses(run(warm_up, output_dir=tmp_path / "whole"), "tokens")]
    assert max(seen) < max(whole) and min(per_step) < 230


def stop_after(step: int, settings: dict, monkeypatch, **changes):
    """Run with a SIGTERM within a step."""
    training_step = MlmTrainer.training_step

    def signalled(self, *rest):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(MlmTrainer, "training_step", signalled)
        with pytest.raises(SystemExit) as caught:
            run(settings, **changes)
    assert caught.value.code == 128 + signal.SIGTERM


def test_sigterm_saves_a_checkpoint_and_the_run_goes_on_exactly(warm_up, with_dropout, tmp_path, monkeypatch, caplog):
    options = warm_up | {"config_name": with_dropout["config_name"]}
    stop_after(7, options, monkeypatch)
    assert "stopped by SIGTERM after step 7; a checkpoint is saved, run the same command again to go on" in caplog.text
    assert (tmp_path / "run" / "checkpoint-7" / COMPLETE).is_file() and not (tmp_path / "run" / "config.json").exists()
    resumed, whole = run(options), run(options, output_dir=tmp_path / "whole")
    assert_same_weights(resumed, whole)
    assert losses(resumed) == losses(whole) and losses(resumed, "eval_loss") == losses(whole, "eval_loss")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (6, {}),  # no step at which a checkpoint is due
        (4, {"eval_steps": 4, "load_best_model_at_end": True, "greater_is_better": True}),  # the first is the best
        (12, {"eval_steps": 4, "load_best_model_at_end": True}),  # the last step
        (12, {"eval_steps": 5}),  # evaluated because it is the last
        (10, {"eval_strategy": "epoch", "eval_on_start": True}),
        (7, {"eval_strategy": "epoch"}),  # within an epoch
    ],
)
def test_sigterm_loses_no_evaluation(settings, tmp_path, monkeypatch, step, options):
    whole = run(settings, **options, output_dir=tmp_path / "whole")
    stop_after(step, settings, monkeypatch, **options)
    resumed = run(settings, **options)
    assert losses(resumed, "eval_loss") == losses(whole, "eval_loss") and losses(resumed, "eval_loss")
    assert losses(resumed, "step") == losses(whole, "step")
    assert_same_weights(resumed, whole)
    assert results(resumed)["eval_loss"] == pytest.approx(results(whole)["eval_loss"], rel=1e-6)


def test_sigterm_names_the_flags_that_would_lose_the_checkpoint(settings, tmp_path, monkeypatch, caplog):
    stop_after(5, settings, monkeypatch, overwrite_output_dir=True)
    assert "run again without --overwrite_output_dir to go on" in caplog.text
    back = {"resume_from_checkpoint": tmp_path / "run" / "checkpoint-4", "output_dir": tmp_path / "back"}
    stop_after(6, settings, monkeypatch, **back)
    assert "run again without --resume_from_checkpoint to go on" in caplog.text
    assert results(run(settings, output_dir=tmp_path / "back"))["global_step"] == 12


# -- several processes ---------------------------------------------------------------------------------------------

SCALE = """
import os, signal
import run_mlm
from training.trainer import MlmTrainer

folder, *flags = sys.argv[1:]
run_mlm.main([*flags, "--output_dir", folder + "/whole"])

training_step = MlmTrainer.training_step
def signalled(self, *rest):
    if self.state.global_step == 6 and self.args.process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return training_step(self, *rest)
MlmTrainer.training_step = signalled
try:
    run_mlm.main([*flags, "--output_dir", folder + "/stopped"])
    sys.exit("was not stopped")
except SystemExit as error:
    assert error.code == 143, error.code
assert os.path.isdir(folder + "/stopped/checkpoint-7")
MlmTrainer.training_step = training_step
run_mlm.main([*flags, "--output_dir", folder + "/stopped"])
"""

STREAMING = """
import run_mlm

folder, *flags = sys.argv[1:]
run_mlm.main([*flags, "--output_dir", folder + "/streaming"])
"""


def test_two_processes_equal_one_with_warm_up_also_after_sigterm(warm_up, tmp_path):
    two_processes(tmp_path, SCALE, *flags(warm_up))
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert_same_curve(run(warm_up), tmp_path / "whole")


def test_two_processes_equal_one_when_streaming(streaming, tmp_path):
    streaming = streaming | {"per_device_train_batch_size": 2}  # two passes for each process
    two_processes(tmp_path, STREAMING, *flags(streaming))
    assert_same_curve(run(streaming, output_dir=tmp_path / "one"), tmp_path / "streaming")


SHARDED = """
import accelerate.state
from accelerate.utils import DistributedType

# accelerate shards over GPUs only; gloo and FSDP2 themselves run on CPUs as well
initialise = accelerate.state.AcceleratorState.__init__
def on_cpu(self, *arguments, fsdp_plugin=None, **keywords):
    initialise(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
accelerate.state.AcceleratorState.__init__ = on_cpu

import run_mlm
from torch.distributed.tensor import DTensor
from training.trainer import MlmTrainer

training_step = MlmTrainer.training_step
def sharded(self, model, *rest):
    assert any(isinstance(weight, DTensor) for weight in model.parameters())
    return training_step(self, model, *rest)
MlmTrainer.training_step = sharded

folder, *flags = sys.argv[1:]
run_mlm.main([*flags, "--output_dir", folder + "/whole"])
run_mlm.main([*flags, "--output_dir", folder + "/resumed", "--resume_from_checkpoint", folder + "/whole/checkpoint-4"])
best = ["--load_best_model_at_end", "true", "--greater_is_better", "true", "--eval_steps", "4"]
run_mlm.main([*flags, *best, "--output_dir", folder + "/best"])
"""


def test_fsdp2_trains_saves_and_goes_on_in_two_processes_and_in_one(warm_up, tmp_path):
    sharding = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "StrandBertLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }
    two_processes(tmp_path, SHARDED, *flags(warm_up), **sharding)
    kinds = {path.suffix for path in (tmp_path / "whole" / "checkpoint-4").iterdir()}
    assert kinds == {".safetensors", ".json", ".py"}
    one = run(warm_up, output_dir=tmp_path / "one")
    from_sharded = {"resume_from_checkpoint": tmp_path / "whole" / "checkpoint-4", "output_dir": tmp_path / "unsharded"}
    unsharded = run(warm_up, **from_sharded)
    assert_same_curve(one, tmp_path / "whole")
    for folder in (tmp_path / "resumed", unsharded):
        assert_same_curve(one, folder)
        assert weights(folder).keys() == weights(one).keys()
    state = json.loads((tmp_path / "best" / "checkpoint-12" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name != "checkpoint-12"  # the loss falls, and the highest counts as the best
    assert_same_weights(tmp_path / "best", best)


def test_sharding_that_would_be_ignored_is_refused(settings, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "over GPUs only" in error_of(settings, capsys)


# -- streaming -----------------------------------------------------------------------------------------------------


def test_streaming_writes_no_tokens_and_resumes_exactly(streaming, tmp_path):
    whole = run(streaming, save_total_limit=0)
    assert all(path.stat().st_size <= 128 for path in whole.rglob("train.tokens.npy"))  # nothing but the header
    found = results(whole)
    assert found["global_step"] == 14 and found["data"]["splits"]["train"]["windows"] == 80
    assert found["eval_loss"] < 3 and "eval_markov_bits_per_base" not in found
    resumed = run(streaming, output_dir=tmp_path / "again", resume_from_checkpoint=whole / "checkpoint-4")
    assert_same_weights(whole, resumed)
    workers = run(streaming, output_dir=tmp_path / "workers", dataloader_num_workers=2)
    assert_same_weights(whole, workers)


def test_other_shards_under_the_same_names_are_refused_when_resuming(streaming, shards, capsys):
    run(streaming, max_steps=4)
    (shards / "0.parquet").touch()
    run(streaming, max_steps=5)
    rows = [random_dna(150, seed=i) for i in range(10)]
    pyarrow.parquet.write_table(pyarrow.table({"sequence": rows}), shards / "0.parquet", row_group_size=5)
    assert "the content of the data has changed" in error_of(streaming, capsys, max_steps=6)


def test_data_workers_may_be_spawned(streaming, warm_up, tokenizer):
    for options in (streaming, warm_up):
        _, data_args, args = run_mlm.parse_arguments(flags(options), "")
        dataset, _, _ = run_mlm.load_datasets(data_args, args, tokenizer)
        plan = run_mlm.make_plan(data_args, args, dataset)
        expected = plan.step(0, 1).tolist()
        copied_dataset, copied_plan = pickle.loads(pickle.dumps((dataset, plan)))
        assert copied_plan.step(0, 1).tolist() == expected
        assert (copied_dataset[0, 5]["labels"] == dataset[0, 5]["labels"]).all()


def test_streaming_takes_every_row_once_in_an_epoch(streaming, tokenizer):
    _, data_args, args = run_mlm.parse_arguments(flags(streaming), "")
    dataset, _, _ = run_mlm.load_datasets(data_args, args, tokenizer)
    plan = run_mlm.make_plan(data_args, args, dataset)
    epochs = [[index for step in range(10) for index in plan.step(epoch, step).tolist()] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(80))
    assert epochs[0] != epochs[1]
    texts = pyarrow.parquet.read_table(data_args.train_file[1])["sequence"].to_pylist()
    window = dataset.window(10 + 7)  # the eighth of the second file
    assert "".join(tokenizer.convert_ids_to_tokens(window[1:-1])) == texts[7]
    assert max(len(dataset[0, index]["input_ids"]) for index in range(80)) == 32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sequence_order": "length"}, "take --sequence_order file"),
        ({"min_run_length": 20}, "leave out --min_run_length"),
        ({"validation_file": None}, "give --validation_file"),
        ({"train_file": "genome.fa"}, "genome.fa is none"),
        ({"sequence_column": "dna"}, "no column 'dna'; the columns are sequence"),
    ],
)
def test_streaming_that_cannot_be_is_refused(streaming, capsys, changes, expected):
    streaming = {name: value for name, value in (streaming | changes).items() if value is not None}
    assert expected in error_of(streaming, capsys)


def test_a_row_that_is_no_dna_is_named(streaming, shards, capsys):
    pyarrow.parquet.write_table(pyarrow.table({"sequence": ["ACGT" * 30, "MVHL"]}), shards / "9.parquet")
    message = error_of(streaming, capsys, max_steps=30)
    assert "9.parquet, row group 0, row 2: character 'L' at position 4 is not a nucleotide" in message


def test_the_longest_run_of_a_row_is_read_and_another_row_for_one_without_a_base(tokenizer, tmp_path, caplog):
    rows = ["N" * 40, "ACGTT" * 3 + "N" + "AACG" * 5, "N", "GGTTA"]
    pyarrow.parquet.write_table(pyarrow.table({"sequence": rows}), tmp_path / "a.parquet")
    store = ParquetStore([str(tmp_path / "a.parquet")], "sequence", tokenizer, kept=1)
    texts = ["".join(tokenizer.convert_ids_to_tokens(store[row].tolist())) for row in range(4)]
    assert texts == ["AACG" * 5, "AACG" * 5, "AACG" * 5, "GGTTA"]
    assert "a.parquet, row group 0: 2 rows hold no A, C, G or T" in caplog.text


def test_a_row_group_without_a_base_is_named(tokenizer, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"sequence": ["NNN", "N"]}), tmp_path / "a.parquet")
    with pytest.raises(SequenceFileError, match=r"a\.parquet, row group 0: no A, C, G or T in any row"):
        ParquetStore([str(tmp_path / "a.parquet")], "sequence", tokenizer, kept=1)
