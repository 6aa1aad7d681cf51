"""training.checkpoints: whole or ignored, without pickle, and loadable without this project."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from training.checkpoints import (
    COMPLETE,
    CheckpointError,
    last_whole_checkpoint,
    load_optimizer,
    make_self_contained,
    mark_complete,
    move_files,
    remove_old_checkpoints,
    save_optimizer,
    what_is_wrong,
)


@pytest.fixture
def make(tmp_path):
    def checkpoint(step: int):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
        (folder / "trainer_state.json").write_text("{}")
        mark_complete(folder)
        return folder

    return checkpoint


def test_a_marked_checkpoint_is_whole(make):
    assert what_is_wrong(make(10)) is None


def test_a_checkpoint_without_the_mark_is_not_whole(make):
    folder = make(10)
    (folder / COMPLETE).unlink()
    assert "saving it was interrupted" in what_is_wrong(folder)


def test_a_file_of_another_size_is_named(make):
    folder = make(10)
    (folder / "model.safetensors").write_bytes(b"x" * 400)
    assert what_is_wrong(folder) == "model.safetensors holds 400 bytes instead of 1,000"


def test_a_missing_file_is_named(make):
    folder = make(10)
    (folder / "trainer_state.json").unlink()
    assert what_is_wrong(folder) == "trainer_state.json is missing"


def test_a_damaged_mark_is_named(make):
    folder = make(10)
    (folder / COMPLETE).write_text('{"model.saf')
    assert what_is_wrong(folder) == f"its {COMPLETE} is damaged"


def test_the_last_whole_checkpoint_is_taken_by_number(make, tmp_path):
    for step in (90, 100, 1000):
        make(step)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-1000"


def test_an_interrupted_checkpoint_is_passed_over_with_a_warning(make, tmp_path, caplog):
    make(10)
    (make(20) / COMPLETE).unlink()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-10"
    assert "checkpoint-20: it has no" in caplog.text


def test_no_checkpoint_at_all(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "absent") is None


def test_old_checkpoints_go_the_newest_and_the_best_stay(make, tmp_path):
    for step in (10, 20, 30, 40, 50):
        make(step)
    remove_old_checkpoints(tmp_path, keep=2, best=str(tmp_path / "checkpoint-10"), step=40)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-10", "checkpoint-30", "checkpoint-40", "checkpoint-50"]


def test_moved_files_replace_older_ones_and_the_folder_is_gone(tmp_path):
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "config.json").write_text("new")
    (tmp_path / "config.json").write_text("old")
    move_files(tmp_path / "aside", tmp_path)
    assert (tmp_path / "config.json").read_text() == "new"
    assert not (tmp_path / "aside").exists()


def trained(steps: int, **options):
    """A layer with its optimiser and scheduler after some steps."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), **({"lr": 0.1} | options))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    take_steps(layer, optimizer, scheduler, steps)
    return layer, optimizer, scheduler


def take_steps(layer, optimizer, scheduler, steps):
    for step in range(steps):
        layer(torch.full((1, 3), 0.1 * (step + 1))).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def test_optimiser_and_scheduler_go_on_exactly_from_safetensors_and_json(tmp_path):
    layer, optimizer, scheduler = trained(3)
    save_optimizer(tmp_path, optimizer, scheduler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["optimizer.json", "optimizer.safetensors"]
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # whoever may read one may read the other
    copy, copy_optimizer, copy_scheduler = trained(0)
    copy.load_state_dict(layer.state_dict())
    load_optimizer(tmp_path, copy_optimizer, copy_scheduler)
    take_steps(layer, optimizer, scheduler, 4)
    take_steps(copy, copy_optimizer, copy_scheduler, 4)
    assert torch.equal(layer.weight, copy.weight) and torch.equal(layer.bias, copy.bias)
    assert scheduler.get_last_lr() == copy_scheduler.get_last_lr()


def test_a_changed_learning_rate_and_weight_decay_count_from_the_next_step_on(tmp_path):
    _, optimizer, scheduler = trained(3)
    save_optimizer(tmp_path, optimizer, scheduler)
    layer, optimizer, scheduler = trained(0, lr=0.4, weight_decay=0.5)
    load_optimizer(tmp_path, optimizer, scheduler)
    (group,) = optimizer.param_groups
    assert group["lr"] == scheduler.get_last_lr()[0] == 0.4 / (1 + 3) and group["weight_decay"] == 0.5
    take_steps(layer, optimizer, scheduler, 1)
    assert scheduler.get_last_lr() == [0.4 * (1 / (1 + 4))]


def test_a_folder_without_optimiser_state_says_how_to_use_its_weights(tmp_path):
    _, optimizer, scheduler = trained(0)
    with pytest.raises(CheckpointError, match="--model_name_or_path"):
        load_optimizer(tmp_path, optimizer, scheduler)


def test_the_mark_lists_every_other_file(make):
    assert json.loads((make(10) / COMPLETE).read_text()) == {"model.safetensors": 1000, "trainer_state.json": 2}


@pytest.mark.parametrize(("stated", "kept"), [(2048, 2048), (int(1e30), 1_000_000)])
def test_the_length_at_which_the_tokenizer_cuts_is_kept(tmp_path, tokenizer_folder, stated, kept):
    (tmp_path / "config.json").write_text("{}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tokenizer_folder), model_max_length=stated)
    make_self_contained(tmp_path, tokenizer)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == kept
