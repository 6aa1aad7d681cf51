"""LoRA adapters on the original names, and our own: merged into the base model, or refused with the reason."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hub_configs.adapter import merged_weights
from hub_configs.checkpoint import ConversionError
from hub_configs.convert import adapted, convert
from hub_configs.folder import write_model_folder
from modeling import (
    StrandBertConfig,
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
)
from training.checkpoints import make_self_contained
from training.classification_data import SINGLE_LABEL, Labels
from training.classification_model import add_lora, load_classifier, load_config, load_tokenizer

from .conftest import SIZES, original_tokenizer, original_weights, write_checkpoint

TARGETS = ["Wqkv", "dense", "gated_layers", "wo"]


@pytest.fixture
def base(tmp_path):
    """The released masked-LM checkpoint, as a .bin: no pooler, no classifier."""
    return write_checkpoint(tmp_path / "DNABERT-2-117M", original_weights("mlm"))


def train_adapter(folder, base, model_class=StrandBertForSequenceClassification, bin=False, **changes):
    """An adapter as PEFT saves it after a step of training on the base's encoder; returns the trained model."""
    torch.manual_seed(1)
    model = model_class(StrandBertConfig(**SIZES, num_labels=3))
    model.load_state_dict(torch.load(base / "pytorch_model.bin", weights_only=True), strict=False)
    settings = {
        "task_type": "TOKEN_CLS" if model_class is StrandBertForTokenClassification else "SEQ_CLS",
        "r": 4,
        "lora_alpha": 12,
        "target_modules": TARGETS,
        "exclude_modules": ".*pooler.*",
        "modules_to_save": ["classifier", "pooler"],
        **changes,
    }
    trained = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter) if "lora_B" in name else 0.0
    trained.save_pretrained(folder)
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, "base_model_name_or_path": str(base)}))
    if bin:
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    return trained.eval()


def logits(model):
    ids = torch.randint(5, SIZES["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


def test_a_converted_adapter_gives_the_outputs_of_the_trained_model(base, tmp_path):
    trained = train_adapter(tmp_path / "adapter", base)
    convert(tmp_path / "adapter", tmp_path / "converted")
    converted = StrandBertForSequenceClassification.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(logits(converted), logits(trained), atol=1e-5, rtol=0)
    assert converted.config.num_labels == 3
    provenance = json.loads((tmp_path / "converted" / "conversion.json").read_text())
    assert set(provenance["adapter_files"]) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("bin", [False, True])
def test_merging_is_w_plus_alpha_by_r_times_b_a(base, tmp_path, bin):
    train_adapter(tmp_path / "adapter", base, bin=bin)
    merged = merged_weights(tmp_path / "adapter", base, SIZES)
    [file] = (tmp_path / "adapter").glob("adapter_model.*")
    adapter = torch.load(file, weights_only=True) if bin else load_file(file)
    name = "bert.encoder.layer.1.mlp.gated_layers"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = original_weights("mlm")[f"{name}.weight"] + 12 / 4 * b @ a
    torch.testing.assert_close(merged[f"{name}.weight"], expected, atol=1e-6, rtol=1e-6)


def test_token_classifiers_need_no_pooler(base, tmp_path):
    train_adapter(tmp_path / "adapter", base, StrandBertForTokenClassification, modules_to_save=["classifier"])
    assert merged_weights(tmp_path / "adapter", base, SIZES)["classifier.weight"].shape == (3, 48)


def test_a_pooler_that_was_random_and_never_saved_cannot_be_repeated(base, tmp_path):
    train_adapter(tmp_path / "adapter", base, modules_to_save=["classifier"])
    with pytest.raises(ConversionError, match="reads a pooler that is neither in the adapter nor in the base"):
        merged_weights(tmp_path / "adapter", base, SIZES)


def test_weights_that_fit_nowhere_are_named(base, tmp_path):
    train_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({**weights, "base_model.model.bert.encoder.layer.7.mlp.wo.lora_A.weight": torch.ones(4, 64)}, path)
    with pytest.raises(ConversionError, match="1 weights fit nowhere .*layer.7"):
        merged_weights(tmp_path / "adapter", base, SIZES)


def test_a_matrix_that_the_adapter_file_lacks_is_named(base, tmp_path):
    train_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {name: t for name, t in load_file(path).items() if "layer.2.mlp.wo.lora_B" not in name}
    save_file(weights, path)
    with pytest.raises(ConversionError, match="1 are missing .*layer.2.mlp.wo"):
        merged_weights(tmp_path / "adapter", base, SIZES)


def test_modules_that_the_base_lacks_and_other_sizes_are_named(base, tmp_path):
    train_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    for changes in ({"target_modules": ["query", "value"]}, {"r": 8}):
        path.write_text(json.dumps({**settings, **changes}))
        with pytest.raises(ConversionError, match="does not fit the base model"):
            merged_weights(tmp_path / "adapter", base, SIZES)


def test_other_kinds_of_adapters_are_named(base, tmp_path):
    train_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "IA3"}))
    with pytest.raises(ConversionError, match="peft_type is 'IA3'"):
        merged_weights(tmp_path / "adapter", base, SIZES)


def test_base_is_only_for_adapters(base, tmp_path):
    with pytest.raises(ConversionError, match="--base is for adapters"):
        convert(base, tmp_path / "converted", base=base)


# ---- adapters of run_classification.py --use_lora


@pytest.fixture
def own_base(tmp_path):
    """A masked-LM folder as run_mlm.py leaves it."""
    torch.manual_seed(0)
    config = StrandBertConfig(**SIZES, initializer_range=0.1, architectures=["StrandBertForMaskedLM"])
    weights = StrandBertForMaskedLM(config).state_dict()
    del weights["cls.predictions.decoder.weight"]
    (tmp_path / "own").mkdir()
    write_model_folder(tmp_path / "own", json.loads(config.to_json_string()), weights, original_tokenizer())
    return tmp_path / "own"


def train_own_adapter(folder, base, **settings):
    """An adapter as run_classification.py saves it; returns the trained model."""
    torch.manual_seed(1)
    config = load_config(str(base), Labels(SINGLE_LABEL, ("acceptor", "donor", "neither")), **settings)
    classifier = load_classifier(config, load_tokenizer(str(base), config), str(base))
    add_lora(classifier, rank=4, alpha=12, dropout=0.0)
    trained = classifier.model
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained.save_pretrained(folder)
    trained.config.architectures = ["StrandBertForSequenceClassification"]
    trained.config.save_pretrained(folder)
    make_self_contained(folder, classifier.tokenizer)
    return trained.eval()


@pytest.mark.parametrize("head, pooling", [("pooler", "first"), ("mlp", "mean")])
def test_an_adapter_of_ours_gives_the_outputs_of_the_trained_model_with_its_labels(own_base, tmp_path, head, pooling):
    trained = train_own_adapter(tmp_path / "adapter", own_base, classifier_head=head, classifier_pooling=pooling)
    convert(tmp_path / "adapter", tmp_path / "converted")
    converted = StrandBertForSequenceClassification.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(logits(converted), logits(trained), atol=1e-5, rtol=1e-5)
    assert converted.config.id2label == {0: "acceptor", 1: "donor", 2: "neither"}
    assert converted.config.problem_type == SINGLE_LABEL
    assert (converted.config.classifier_head, converted.config.classifier_pooling) == (head, pooling)
    assert not (tmp_path / "converted" / "adapter_config.json").exists()


def test_an_adapter_of_ours_without_its_config_has_labels_without_names(own_base, tmp_path):
    train_own_adapter(tmp_path / "adapter", own_base)
    (tmp_path / "adapter" / "config.json").unlink()
    weights, model_class, config = adapted(tmp_path / "adapter", own_base)
    assert model_class is StrandBertForSequenceClassification and weights["classifier.weight"].shape == (3, 48)
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


def test_the_base_model_is_never_overwritten(own_base, tmp_path):
    train_own_adapter(tmp_path / "adapter", own_base)
    for output in (own_base, tmp_path / "adapter"):
        with pytest.raises(ConversionError, match="would replace the source"):
            convert(tmp_path / "adapter", output, overwrite=True)
    assert (own_base / "model.safetensors").is_file()
