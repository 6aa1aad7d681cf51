"""Checkpoints in the format of the original DNABERT-2 code, small and random or with the weights of a golden file."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hub_configs.card import read_models

from .local_hub import LocalHub

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 64,
}


def original_config(**changes):
    """config.json as the DNABERT-2 release has it (no model_type, no architectures, no pad_token_id), tiny sizes."""
    return {
        "_name_or_path": "zhihan1996/DNABERT-2-117M",
        "alibi_starting_size": 512,
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "bert_layers.BertModel"},
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "use_cache": True,
        **SIZES,
        **changes,
    }


def original_tokenizer():
    """96 tokens in the original's layout: specials, A C G T, merges; Whitespace pre-tokenizer, no normalizer."""
    tokens, merges = list("ACGT"), []
    for left in (left for size in (1, 2, 3) for left in list(tokens) if len(left) == size):
        for right in "ACGT":
            if len(SPECIAL) + len(tokens) < SIZES["vocab_size"]:
                tokens.append(left + right)
                merges.append((left, right))
    vocabulary = {token: index for index, token in enumerate(SPECIAL + tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def original_weights(head="mlm", num_labels=3):
    """Random state dict, named as the original code names it; head: mlm, sequence, token, base or base+pooler."""
    random = torch.Generator().manual_seed(0)
    h, inner, vocab = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["vocab_size"]
    weights = {}

    def linear(name, rows, columns, bias=True):
        weights[name + ".weight"] = torch.randn(rows, columns, generator=random) * 0.1
        if bias:
            weights[name + ".bias"] = torch.randn(rows, generator=random) * 0.1

    def norm(name):
        weights[name + ".weight"] = 1 + torch.randn(h, generator=random) * 0.1
        weights[name + ".bias"] = torch.randn(h, generator=random) * 0.1

    linear("bert.embeddings.word_embeddings", vocab, h, bias=False)
    linear("bert.embeddings.token_type_embeddings", 2, h, bias=False)
    norm("bert.embeddings.LayerNorm")
    for layer in range(SIZES["num_hidden_layers"]):
        p = f"bert.encoder.layer.{layer}."
        linear(p + "attention.self.Wqkv", 3 * h, h)
        linear(p + "attention.output.dense", h, h)
        norm(p + "attention.output.LayerNorm")
        linear(p + "mlp.gated_layers", 2 * inner, h, bias=False)
        linear(p + "mlp.wo", h, inner)
        norm(p + "mlp.layernorm")
    if head in ("sequence", "base+pooler"):
        linear("bert.pooler.dense", h, h)
    if head in ("sequence", "token"):
        linear("classifier", num_labels, h)
    if head == "mlm":
        linear("cls.predictions.transform.dense", h, h)
        norm("cls.predictions.transform.LayerNorm")
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
        weights["cls.predictions.decoder.bias"] = torch.randn(vocab, generator=random) * 0.1
    return weights


def write_checkpoint(folder, weights, config=None, form="bin", shards=1):
    """Save a checkpoint folder the way users have them; form is bin or safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or original_config()))
    original_tokenizer().save(str(folder / "tokenizer.json"))
    stem = "pytorch_model" if form == "bin" else "model"
    names = list(weights)
    parts = {f"{stem}.{form}": names}
    if shards > 1:
        parts = {f"{stem}-{i + 1:05}-of-{shards:05}.{form}": names[i::shards] for i in range(shards)}
        weight_map = {name: file for file, part in parts.items() for name in part}
        (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, part in parts.items():
        content = {name: weights[name] for name in part}
        if form == "bin":
            torch.save(content, folder / file)
        else:
            save_file({name: tensor.clone() for name, tensor in content.items()}, folder / file, {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def golden(shared_data):
    """Weights, inputs and outputs that the original DNABERT-2 code produced for a tiny random configuration."""
    return load_file(shared_data("golden/dnabert2_official_tiny.safetensors"))


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """The tables of models.toml, where strandbert-tiny has the sizes of the small random models."""
    config = tmp_path_factory.mktemp("models") / "config.json"
    config.write_text(json.dumps({**SIZES, "glu_activation": "gelu"}))
    models = read_models()
    return {**models, "strandbert-tiny": {**models["strandbert-tiny"], "config": str(config)}}


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """A Hub on loopback that this process may talk to; user "tester" has the token "hf_write"."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with LocalHub({"hf_write": "tester"}) as hub:
        yield hub
