"""training.arguments and training.schedules: the papers' settings by name, batch sizes that add up."""

import pytest
import torch
from transformers import get_scheduler

from training.arguments import PretrainingArguments


def arguments(tmp_path, **values):
    return PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, **values)


def learning_rates(args, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_dnabert2_schedule_is_linear_up_and_linear_down(tmp_path):
    rates = learning_rates(arguments(tmp_path, schedule="dnabert2"), 100)
    assert rates[0] == 0
    assert rates[6] == max(rates) == pytest.approx(5e-4)  # 30,000 of 500,000 steps
    assert rates[53] == pytest.approx(2.5e-4)  # half-way down
    assert rates[100] == 0


def test_dnagrinder_schedule_is_linear_up_and_cosine_down(tmp_path):
    rates = learning_rates(arguments(tmp_path, schedule="dnagrinder"), 119)
    assert rates[16] == max(rates) == pytest.approx(4e-4)  # 16,000 of 119,000 steps
    assert rates[8] == pytest.approx(2e-4)
    assert rates[16 + 103 // 4] == pytest.approx(4e-4 * 0.856, rel=0.01)  # (1 + cos(pi / 4)) / 2 = 0.854
    assert rates[119] == pytest.approx(0, abs=1e-12)


def test_optimiser_of_the_papers_is_the_default(tmp_path):
    args = arguments(tmp_path)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay) == (0.9, 0.98, 1e-6, 1e-5)


def test_given_values_override_the_schedule(tmp_path):
    args = arguments(tmp_path, learning_rate=1e-3, lr_scheduler_type="constant_with_warmup", warmup_steps=7)
    assert args.learning_rate == 1e-3
    assert args.lr_scheduler_type == "constant_with_warmup"
    assert args.get_warmup_steps(1000) == 7


@pytest.mark.parametrize("values", [{"warmup_ratio": 0.25}, {"warmup_steps": 0.25}])
def test_warm_up_as_a_share_of_the_steps(tmp_path, values):
    assert arguments(tmp_path, **values).get_warmup_steps(100) == 25


def test_no_warm_up(tmp_path):
    assert arguments(tmp_path, warmup_ratio=0.0).get_warmup_steps(100) == 0


def test_unknown_schedule_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="schedule is 'bert'; it must be one of dnabert2, dnagrinder"):
        arguments(tmp_path, schedule="bert")


@pytest.mark.parametrize(("per_device", "accumulation"), [(32, 1), (8, 4), (1, 32)])
def test_accumulation_is_derived_from_the_global_batch(tmp_path, per_device, accumulation):
    args = arguments(tmp_path, global_batch_size=32, per_device_train_batch_size=per_device)
    assert args.gradient_accumulation_steps == accumulation


def test_accumulation_is_derived_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(PretrainingArguments, "world_size", 4)
    args = arguments(tmp_path, global_batch_size=64, per_device_train_batch_size=8)
    assert args.gradient_accumulation_steps == 2


def test_global_batch_is_derived_when_it_is_not_given(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    assert args.global_batch_size == 12


@pytest.mark.parametrize(
    ("processes", "global_batch", "message"),
    [
        (1, 12, r"12 is no multiple of 8 sequences per process x 1 processes; .*size to 4"),
        (1, 6, r"size to 2"),
        (4, 16, r"16 is no multiple of 8 sequences per process x 4 processes; .*size to 4"),
        (4, 9, "multiple of the 4 processes"),
    ],
)
def test_a_global_batch_that_does_not_divide_is_refused_with_advice(
    tmp_path, monkeypatch, processes, global_batch, message
):
    monkeypatch.setattr(PretrainingArguments, "world_size", processes)
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, global_batch_size=global_batch, per_device_train_batch_size=8)
