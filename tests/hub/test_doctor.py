"""`python -m modeling.doctor`: what is here, what would run and why, and what is wrong with a folder."""

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hub_configs.folder import write_model_folder
from modeling import StrandBertConfig, StrandBertForMaskedLM, alibi_attention
from modeling.configuration_strandbert import AUTO_MAP
from modeling.doctor import backend_reasons, check_folder, choices, main

from .conftest import SIZES, original_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A sound model folder."""
    torch.manual_seed(0)
    config = StrandBertConfig(**SIZES, architectures=["StrandBertForMaskedLM"])
    weights = StrandBertForMaskedLM(config).state_dict()
    del weights["cls.predictions.decoder.weight"]
    content = {**SIZES, "model_type": "strandbert", "architectures": config.architectures, "auto_map": AUTO_MAP}
    (tmp_path / "model").mkdir()
    write_model_folder(tmp_path / "model", content, weights, original_tokenizer())
    return tmp_path / "model"


def problems(folder):
    return "\n".join(check_folder(folder)[1])


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_sound_folder_has_no_problems_and_runs(folder, capsys):
    notes, found = check_folder(folder)
    assert found == [] and "StrandBertForMaskedLM, 3 layers, hidden 48" in notes[0]
    assert "runs             yes" in notes[-1]
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"torch            {torch.__version__.split('+')[0]}" in printed
    assert f"transformers     {transformers.__version__}" in printed and "the folder is sound" in printed


def test_weights_that_overflow_are_a_problem(folder):
    def grow(weights):
        weights["bert.embeddings.word_embeddings.weight"].fill_(3e38)
        weights["bert.embeddings.token_type_embeddings.weight"].fill_(3e38)

    change_weights(folder, grow)
    assert "the model does not compute with these weights" in problems(folder)


def test_the_table_is_that_of_choose_backend_with_a_reason():
    for line in choices("cpu"):
        device, dtype, length, _, backend, *reason = line.split()
        expected = alibi_attention.choose_backend(device, getattr(torch, dtype), int(length.replace(",", "")))
        assert backend == expected and reason


def test_every_backend_is_named_and_a_missing_one_has_a_reason():
    lines = backend_reasons()
    assert [line.split()[0] for line in lines] == list(alibi_attention.BACKENDS[1:])
    flash = next(line for line in lines if line.startswith("flash_attention_2"))
    assert "can be asked for" in flash or "flash-attn" in flash.split("no: ")[1]


def test_code_in_the_folder_is_compared_and_never_run(folder, tmp_path):
    code = folder / "modeling_strandbert.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (folder / "extra.py").write_text("")
    found = problems(folder)
    assert "modeling_strandbert.py: differs" in found and "extra.py: not a file of StrandBERT" in found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda f: os.remove(f / "model.safetensors"), "model.safetensors: missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs"), "model.safetensors: damaged"),
        (lambda f: os.remove(f / "configuration_strandbert.py"), "configuration_strandbert.py: missing"),
        (lambda f: os.remove(f / "tokenizer.json"), "tokenizer.json: "),
        (lambda f: change_config(f, auto_map={"AutoModel": "x.Y"}), "auto_map is not the full one"),
        (lambda f: change_config(f, intermediate_size=80), "is (48, 64), config.json gives (48, 80)"),
        (lambda f: change_config(f, pad_token_id=0), "[PAD] has id 3, config.json says 0"),
        (lambda f: change_config(f, vocab_size=90), "96 tokens, but the model has 90"),
        (lambda f: change_config(f, model_type="bert"), "model_type is 'bert'"),
        (lambda f: change_config(f, architectures=["BertModel"]), "none of ours"),
        (lambda f: change_config(f, num_attention_heads=7), "not divisible"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: "),
        (lambda f: (f / "training_args.bin").write_bytes(b"\x80"), "training_args.bin: pickle"),
        (lambda f: change_weights(f, lambda w: w.pop("bert.embeddings.LayerNorm.bias")), "LayerNorm.bias is missing"),
        (lambda f: change_weights(f, lambda w: w.update(x=torch.ones(2))), "x is not of this model"),
        (
            lambda f: change_weights(f, lambda w: w["bert.embeddings.LayerNorm.bias"].fill_(float("nan"))),
            "bert.embeddings.LayerNorm.bias holds NaN",
        ),
    ],
)
def test_a_problem_is_named_with_its_file(folder, damage, word, capsys):
    damage(folder)
    assert word in problems(folder)
    assert main([str(folder)]) == 1
    assert "PROBLEM" in capsys.readouterr().out
