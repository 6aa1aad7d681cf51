"""training.weight_average: what is averaged, and when the model holds it."""

from types import SimpleNamespace

import pytest
import torch

from training.weight_average import WeightAverage


@pytest.mark.parametrize(("step", "expected"), [(1000, 2.0), (1, 4 * 9 / 11)])
def test_the_average_follows_the_weights_faster_at_first_and_changes_places_with_them(step, expected):
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = WeightAverage(model, 0.5)
        average.on_train_begin(None, None, None)
        model.weight.fill_(4.0)
        average.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert average.other.keys() == {"weight"}
    with average.swapped():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 4.0


def test_going_on_from_a_checkpoint_gives_both_back(tmp_path):
    model = torch.nn.Linear(2, 1)
    average = WeightAverage(model, 0.9)
    average.on_train_begin(None, None, None)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.on_step_end(None, SimpleNamespace(global_step=50), None)
    with average.swapped():
        average.save(tmp_path)
        loaded = torch.nn.Linear(2, 1)
        loaded.load_state_dict(model.state_dict())  # what model.safetensors holds
    again = WeightAverage(loaded, 0.9)
    again.checkpoint = tmp_path
    again.on_train_begin(None, None, None)
    assert torch.equal(loaded.weight, model.weight) and torch.equal(again.other["weight"], average.other["weight"])
    assert not torch.equal(loaded.weight, again.other["weight"])
