"""models.toml and the config folders: what is published, in one place, and true."""

import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import modeling
from hub_configs.folder import code_files
from modeling.configuration_strandbert import AUTO_MAP

from ..conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = tomllib.loads((ROOT / "hub_configs" / "models.toml").read_text())  # a group may have added its own
MODELS = {name: TABLES[name] for name in ("dnabert2-117m", "dnagrinder-64m", "strandbert-tiny")}
FIELDS = {"title", "config", "architecture", "parameters", "tokenizer", "papers", "licence", "weights"}


def config_of(name):
    return AutoConfig.from_pretrained(ROOT / MODELS[name]["config"])


def test_the_shipped_model_loads_from_the_checkout_because_its_code_is_linked():
    folder = ROOT / "hub_configs" / "strandbert-tiny"
    assert {path.name for path in folder.glob("*.py")} == {path.name for path in code_files()}
    for path in folder.glob("*.py"):
        assert path.is_symlink() and path.resolve() == ROOT / "modeling" / path.name


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_config_folder_has_a_row_and_every_row_of_ours_a_folder():
    folders = {path.parent.name for path in (ROOT / "hub_configs").glob("*/config.json")}
    assert set(MODELS) <= folders <= set(TABLES)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_complete(name):
    row = MODELS[name]
    assert FIELDS <= set(row) and row["config"] == f"hub_configs/{name}/config.json"
    assert row["weights"] in ("convert", "shipped", "none")


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_one_stated(name):
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config_of(name))
    assert parameters(model) == MODELS[name]["parameters"]


def test_dnabert2_has_the_parameters_of_the_release():
    assert MODELS["dnabert2-117m"]["parameters"] == 117_074_176


def test_dnagrinder_is_within_one_percent_of_the_paper():
    assert abs(MODELS["dnagrinder-64m"]["parameters"] / 63.6e6 - 1) < 0.01


def test_tiny_is_small():
    assert 3e6 < MODELS["strandbert-tiny"]["parameters"] < 6e6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("auto_class", "class_name"),
    [
        (AutoModel, "StrandBertModel"),
        (AutoModelForMaskedLM, "StrandBertForMaskedLM"),
        (AutoModelForSequenceClassification, "StrandBertForSequenceClassification"),
        (AutoModelForTokenClassification, "StrandBertForTokenClassification"),
    ],
)
def test_auto_classes_build_it_from_its_config(name, auto_class, class_name):
    with torch.device("meta"):
        model = auto_class.from_config(config_of(name))
    assert type(model) is getattr(modeling, class_name)


@pytest.mark.parametrize("name", MODELS)
def test_config_names_all_five_auto_classes_and_the_special_tokens(name):
    config = config_of(name)
    assert config.model_type == "strandbert" and config.auto_map == AUTO_MAP and len(AUTO_MAP) == 5
    ids = [getattr(config, f"{token}_token_id") for token in ("unk", "cls", "sep", "pad", "mask")]
    assert ids == [0, 1, 2, 3, 4]


def test_the_two_papers_differ_where_they_say_they_do():
    dnabert2, dnagrinder = config_of("dnabert2-117m"), config_of("dnagrinder-64m")
    assert (dnabert2.glu_activation, dnabert2.intermediate_size, dnabert2.classifier_head) == ("gelu", 3072, "pooler")
    assert (dnagrinder.glu_activation, dnagrinder.intermediate_size, dnagrinder.classifier_head) == (
        "silu",
        1152,
        "mlp",
    )
    assert dnagrinder.hidden_dropout_prob == 0 and dnabert2.hidden_dropout_prob == 0.1


def test_tiny_computes_on_a_cpu():
    model = AutoModelForMaskedLM.from_config(config_of("strandbert-tiny")).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[1, 20, 4, 300, 2]])).logits
    assert logits.shape == (1, 5, 4096) and logits.isfinite().all()
