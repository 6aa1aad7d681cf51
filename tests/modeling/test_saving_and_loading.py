"""Saved models come back equal, complete and with their code; a weight that is missing or left over raises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM

from modeling import (
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
)

from .conftest import build, random_ids, tiny_config

AUTO_CLASSES = {
    "AutoConfig",
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
}
MODELING = Path(__file__).parents[2] / "modeling"
CODE_FILES = {path.name for path in MODELING.glob("*.py")} - {"__init__.py", "doctor.py"}


def same(output, expected):
    """Equal but for the last bit: matrix products may differ with the alignment of weights mapped from a file."""
    tolerance = 1e-6 if output.dtype == torch.float32 else 2e-2
    return torch.allclose(output, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture
def folder(tmp_path):
    build(StrandBertForMaskedLM).save_pretrained(tmp_path)
    return tmp_path


def change_weights(folder: Path, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_saved_folder_is_self_contained(folder):
    assert CODE_FILES <= {path.name for path in folder.iterdir()}
    source = Path(sys.modules["modeling"].__file__).parent
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in CODE_FILES)
    assert set(json.loads((folder / "config.json").read_text())["auto_map"]) == AUTO_CLASSES


def test_nothing_but_safetensors_and_text_is_written(folder):
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".json", ".py", ".safetensors"}


def test_the_tied_decoder_is_stored_once(folder):
    weights = load_file(folder / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in weights
    loaded = StrandBertForMaskedLM.from_pretrained(folder)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert "cls.predictions.decoder.bias" in weights


def test_saving_twice_writes_the_same_bytes(folder, tmp_path):
    StrandBertForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_model_is_equal(folder, dtype, backend):
    ids = random_ids(2, 9)
    expected = build(StrandBertForMaskedLM, backend, dtype=dtype)(ids).logits
    loaded = StrandBertForMaskedLM.from_pretrained(folder, dtype=dtype, attn_implementation=backend)
    assert same(loaded(ids).logits, expected)


def test_loading_in_a_process_without_the_checkout(folder, tmp_path):
    ids = random_ids(1, 7)
    script = (
        "import sys, torch; from transformers import AutoModelForMaskedLM\n"
        f"model = AutoModelForMaskedLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"torch.save(model(torch.tensor({ids.tolist()})).logits, {str(tmp_path / 'logits.pt')!r})\n"
        "assert type(model).__module__.startswith('transformers_modules.')\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, check=True)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert same(logits, build(StrandBertForMaskedLM)(ids).logits)


def test_uninitialised_memory_never_shows(folder, monkeypatch):
    """transformers 5 fills models made on the meta device from torch.empty_like; poison it."""

    def poisoned(function):
        def wrapper(*args, **kwargs):
            tensor = function(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return wrapper

    ids, expected = random_ids(1, 7), build(StrandBertForMaskedLM)(random_ids(1, 7)).logits
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    model = StrandBertForMaskedLM.from_pretrained(folder)
    classifier = StrandBertForSequenceClassification.from_pretrained(folder, num_labels=3)
    monkeypatch.undo()
    assert same(model(ids).logits, expected)
    assert all(torch.isfinite(parameter).all() for parameter in classifier.parameters())


def test_model_built_on_the_meta_device_loads(folder):
    ids = random_ids(1, 7)
    with torch.device("meta"):
        model = StrandBertForMaskedLM(AutoConfig.from_pretrained(folder))
    model = model.to_empty(device="cpu")
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    model.load_state_dict(weights)
    assert same(model.eval()(ids).logits, build(StrandBertForMaskedLM)(ids).logits)


@pytest.mark.parametrize(
    "name",
    ["bert.encoder.layer.1.mlp.wo.weight", "bert.embeddings.LayerNorm.bias", "bert.embeddings.word_embeddings.weight"],
)
@pytest.mark.parametrize(
    "model_class",
    [StrandBertModel, StrandBertForMaskedLM, StrandBertForSequenceClassification, StrandBertForTokenClassification],
)
def test_a_missing_backbone_weight_raises_and_is_named(folder, name, model_class):
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(RuntimeError, match=f"missing from the checkpoint.*{name.removeprefix('bert.')}"):
        model_class.from_pretrained(folder)


def test_a_missing_weight_raises_through_auto_classes_too(folder):
    change_weights(folder, lambda weights: weights.pop("bert.encoder.layer.0.attention.self.Wqkv.bias"))
    with pytest.raises(RuntimeError, match="layer.0.attention.self.Wqkv.bias"):
        AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)


def test_a_checkpoint_with_more_layers_than_the_config_raises(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(RuntimeError, match="in the checkpoint but not in the model.*encoder.layer.2"):
        StrandBertForMaskedLM.from_pretrained(folder)


def test_a_weight_of_another_shape_raises_even_when_mismatches_are_waved_through(folder):
    def cut(weights):
        weights["bert.encoder.layer.0.mlp.wo.bias"] = weights["bert.encoder.layer.0.mlp.wo.bias"][:5].clone()

    change_weights(folder, cut)
    with pytest.raises(RuntimeError, match="layer.0.mlp.wo.bias"):
        StrandBertForMaskedLM.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_new_heads_on_a_pre_trained_encoder_are_allowed(folder):
    expected = build(StrandBertForMaskedLM).bert.state_dict()
    for model_class in (StrandBertForSequenceClassification, StrandBertForTokenClassification):
        model = model_class.from_pretrained(folder, num_labels=5)
        assert all(torch.equal(model.bert.state_dict()[name], weight) for name, weight in expected.items())


def test_a_classifier_of_another_size_is_new_when_asked(tmp_path):
    build(StrandBertForSequenceClassification, num_labels=2).save_pretrained(tmp_path)
    model = StrandBertForSequenceClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model(random_ids(1, 4)).logits.shape == (1, 7)


def test_a_random_pooler_is_never_handed_out(folder):
    assert StrandBertModel.from_pretrained(folder).pooler is None
    with pytest.raises(RuntimeError, match="pooler.dense.weight"):
        StrandBertModel.from_pretrained(folder, add_pooling_layer=True)


def test_a_trained_pooler_can_be_loaded(tmp_path):
    classifier = build(StrandBertForSequenceClassification)
    classifier.save_pretrained(tmp_path)
    model = StrandBertModel.from_pretrained(tmp_path, add_pooling_layer=True)
    assert same(model(random_ids(1, 5)).pooler_output, classifier.bert(random_ids(1, 5)).pooler_output)


def test_stock_bert_refuses_the_folder(folder):
    from transformers import BertModel

    with pytest.raises(KeyError, match="geglu"):
        BertModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "model_class", [StrandBertForSequenceClassification, StrandBertForTokenClassification, StrandBertForMaskedLM]
)
def test_labels_and_options_survive_a_round_trip(tmp_path, model_class):
    model = build(model_class, id2label={0: "background", 1: "promoter"}, label2id={"background": 0, "promoter": 1})
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "background", 1: "promoter"}
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_backend_can_be_changed_after_loading(folder):
    model = StrandBertForMaskedLM.from_pretrained(folder)
    assert model.config._attn_implementation == "auto"
    for backend in ("eager", "sdpa", "alibi_banded", "auto"):
        model.set_attn_implementation(backend)
        assert model.bert.config._attn_implementation == backend


def test_loading_with_a_device_map(folder):
    model = StrandBertForMaskedLM.from_pretrained(folder, device_map={"": "cpu"})
    assert same(model(random_ids(1, 5)).logits, build(StrandBertForMaskedLM)(random_ids(1, 5)).logits)


@pytest.mark.parametrize("name", ["classifier.weight", "bert.pooler.dense.bias"])
def test_half_a_head_in_the_checkpoint_raises(tmp_path, name):
    build(StrandBertForSequenceClassification).save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(RuntimeError, match=f"missing from a head.*{name}"):
        StrandBertForSequenceClassification.from_pretrained(tmp_path)


def test_a_pooler_that_was_trained_gets_a_new_classifier(tmp_path):
    encoder = StrandBertModel(tiny_config(), add_pooling_layer=True)
    encoder.save_pretrained(tmp_path)
    model = StrandBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert torch.equal(model.bert.pooler.dense.weight, encoder.pooler.dense.weight)


def test_half_a_language_model_head_raises(folder):
    change_weights(folder, lambda weights: weights.pop("cls.predictions.transform.dense.weight"))
    with pytest.raises(RuntimeError, match="missing from a head.*transform.dense.weight"):
        StrandBertForMaskedLM.from_pretrained(folder)


def test_weights_offloaded_to_disk_give_the_same_logits(tmp_path, monkeypatch):
    from modeling import fused_linear

    monkeypatch.setattr(fused_linear, "SMALLEST_PRODUCT", 0)
    build(StrandBertForMaskedLM).save_pretrained(tmp_path)
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "cls": "cpu"}
    model = StrandBertForMaskedLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offloaded")
    ids = random_ids(4, 50)
    expected = build(StrandBertForMaskedLM)(ids).logits
    assert (model(ids).logits - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert (model(ids).logits - expected).abs().max() < 1e-5


def test_lora_classifier_with_pooler_saved_predicts_the_same_when_reloaded(folder, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    targets = ["Wqkv", "dense", "gated_layers", "wo"]
    settings = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=targets,
        modules_to_save=["classifier", "pooler"],
        exclude_modules=r".*pooler.*",
        init_lora_weights=False,
    )
    model = get_peft_model(StrandBertForSequenceClassification.from_pretrained(folder, num_labels=2), settings).eval()
    model.save_pretrained(tmp_path / "adapter")
    base = StrandBertForSequenceClassification.from_pretrained(folder, num_labels=2)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = random_ids(2, 9)
    assert (reloaded(ids).logits - model(ids).logits).abs().max() < 1e-6
