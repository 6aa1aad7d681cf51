"""A small model with random weights and the shipped vocabulary, as a folder and loaded."""

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling import StrandBertConfig, StrandBertForSequenceClassification, StrandBertModel

from ..conftest import ROOT

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def save_model(folder, model_class, seed=0, **changes):
    torch.manual_seed(seed)
    model_class(StrandBertConfig(**SIZES, **changes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tokenization" / "vocabulary" / name, folder / name)
    return folder


def with_infinite_bias(folder, copy):
    """A copy of a model's folder whose outputs are not finite."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("embeddings.LayerNorm.bias")]
    weights[name][0] = float("inf")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def random_sequences(seed, lengths, letters="ACGT"):
    """Sequences of the given lengths in bp."""
    source = random.Random(seed)
    return ["".join(source.choices(letters, k=length)) for length in lengths]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), StrandBertModel)


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    names = {0: "background", 1: "promoter", 2: "enhancer"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    return save_model(tmp_path_factory.mktemp("classifier"), StrandBertForSequenceClassification, **labels)


@pytest.fixture(scope="session")
def model(model_folder):
    return StrandBertModel.from_pretrained(model_folder)
