"""`python -m hub_configs.convert`: every form of a DNABERT-2 checkpoint becomes a folder of ours, or raises."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hub_configs.card import CardError
from hub_configs.checkpoint import ConversionError, read_weights
from hub_configs.convert import checked_weights, convert, converted_config, main, model_class_of
from modeling import (
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
)

from .conftest import original_config, original_tokenizer, original_weights, write_checkpoint

LABELS = {"id2label": {"0": "acceptor", "1": "donor", "2": "neither"}, "problem_type": "single_label_classification"}
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def weights_after_reading(folder):
    """What the converter would write for a checkpoint folder, without writing it."""
    weights = read_weights(folder)
    model_class = model_class_of(weights)
    return checked_weights(weights, converted_config(folder / "config.json", model_class), model_class)


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory):
    """(source, output) of a converted .bin with the masked-LM head."""
    source = write_checkpoint(tmp_path_factory.mktemp("original") / "dnabert2", original_weights("mlm"))
    output = source.parent / "converted"
    convert(source, output)
    return source, output


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """(source, output) of a converted fine-tune: safetensors in two shards, pooler, three named labels."""
    source = tmp_path_factory.mktemp("fine-tune") / "splice"
    write_checkpoint(source, original_weights("sequence"), original_config(**LABELS), form="safetensors", shards=2)
    output = source.parent / "converted"
    convert(source, output)
    return source, output


# ---- what comes out


def test_every_weight_keeps_name_and_value_and_the_tied_decoder_is_stored_once(masked_lm):
    source, output = masked_lm
    original = torch.load(source / "pytorch_model.bin", weights_only=True)
    converted = load_file(output / "model.safetensors")
    assert set(original) - set(converted) == {"cls.predictions.decoder.weight"}
    assert all(torch.equal(original[name], converted[name]) for name in converted)


def test_the_folder_holds_code_config_tokenizer_weights_and_where_they_came_from(masked_lm):
    _, output = masked_lm
    names = {path.name for path in output.iterdir()}
    assert {"modeling_strandbert.py", "configuration_strandbert.py", "config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors", "reference_outputs.safetensors"} <= names
    assert "__init__.py" not in names and not any(name.endswith((".bin", ".pkl", ".pt")) for name in names)
    assert json.loads((output / "conversion.json").read_text())["source_files"].keys() == {
        "config.json",
        "tokenizer.json",
        "pytorch_model.bin",
    }


def test_padding_id_is_that_of_the_tokenizer_whatever_the_source_says(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"), original_config(pad_token_id=0))
    assert converted_config(source / "config.json", StrandBertForMaskedLM)["pad_token_id"] == 3


def test_tokenizer_gives_the_ids_of_the_original(masked_lm):
    _, output = masked_lm
    sequence = "ACGTTGCATTACGGATNNAC"
    assert AutoTokenizer.from_pretrained(output)(sequence)["input_ids"] == original_tokenizer().encode(sequence).ids


def test_truncation_and_padding_left_in_the_tokenizer_are_not_carried_over(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    tokenizer = original_tokenizer()
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(pad_id=3, pad_token="[PAD]", length=20)
    tokenizer.save(str(source / "tokenizer.json"))
    convert(source, tmp_path / "b")
    content = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    assert content["truncation"] is None and content["padding"] is None


def test_a_fine_tune_keeps_label_names_and_problem_type(classifier):
    model = StrandBertForSequenceClassification.from_pretrained(classifier[1])
    assert model.config.id2label == {0: "acceptor", 1: "donor", 2: "neither"}
    assert model.config.label2id == {"acceptor": 0, "donor": 1, "neither": 2}
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.shared
def test_outputs_equal_the_original_code_masked_lm(golden, tmp_path):
    weights = {name.removeprefix("mlm.w."): t for name, t in golden.items() if name.startswith("mlm.w.")}
    convert(write_checkpoint(tmp_path / "original", weights), tmp_path / "converted")
    model = StrandBertForMaskedLM.from_pretrained(tmp_path / "converted").eval()
    mask = golden["in.attention_mask"]
    with torch.no_grad():
        logits = model(golden["in.input_ids"], mask).logits
    torch.testing.assert_close(logits[mask.bool()], golden["mlm.logits"][mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.shared
def test_outputs_equal_the_original_code_sequence_classification(golden, tmp_path):
    weights = {name.removeprefix("seq.w."): t for name, t in golden.items() if name.startswith("seq.w.")}
    source = write_checkpoint(tmp_path / "original", weights, original_config(**LABELS), form="safetensors")
    convert(source, tmp_path / "converted")
    model = StrandBertForSequenceClassification.from_pretrained(tmp_path / "converted").eval()
    with torch.no_grad():
        logits = model(golden["in.input_ids"], golden["in.attention_mask"]).logits
    torch.testing.assert_close(logits, golden["seq.logits"], atol=1e-4, rtol=0)


# ---- every form in which checkpoints are found


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_bin_and_safetensors_whole_and_sharded(tmp_path, form, shards):
    weights = original_weights("mlm")
    found = weights_after_reading(write_checkpoint(tmp_path / "a", weights, form=form, shards=shards))
    assert set(found) == set(weights) - {"cls.predictions.decoder.weight"}
    assert all(torch.equal(found[name], weights[name]) for name in found)


@pytest.mark.parametrize(
    ("head", "model_class"),
    [
        ("mlm", StrandBertForMaskedLM),
        ("sequence", StrandBertForSequenceClassification),
        ("token", StrandBertForTokenClassification),
        ("base", StrandBertModel),
        ("base+pooler", StrandBertModel),
    ],
)
def test_the_weights_decide_which_head_it_is(tmp_path, head, model_class):
    source = write_checkpoint(tmp_path / "a", original_weights(head), original_config(**LABELS))
    assert model_class_of(read_weights(source)) is model_class
    assert len(weights_after_reading(source)) > 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_stripped(tmp_path, prefix):
    weights = original_weights("sequence")
    source = write_checkpoint(tmp_path / "a", {prefix + n: t for n, t in weights.items()}, original_config(**LABELS))
    assert weights_after_reading(source).keys() == weights.keys()


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_bare_encoder_may_have_the_bert_prefix_or_not(tmp_path, prefix):
    weights = {prefix + n.removeprefix("bert."): t for n, t in original_weights("base").items()}
    found = weights_after_reading(write_checkpoint(tmp_path / "a", weights))
    assert found.keys() == {name.removeprefix("bert.") for name in weights}


def test_a_safetensors_file_without_the_tied_copy_is_complete(tmp_path):
    weights = original_weights("mlm")
    del weights["cls.predictions.decoder.weight"]
    assert weights_after_reading(write_checkpoint(tmp_path / "a", weights, form="safetensors")).keys() == weights.keys()


# ---- what is refused: each names the weight, file or setting


def failure(source, output):
    """Message of the ConversionError that converting raises; nothing may be left where the output was to be."""
    with pytest.raises(ConversionError) as error:
        convert(source, output)
    assert not output.exists() and not list(output.parent.glob(f".{output.name}*"))
    return str(error.value)


def test_missing_weights_are_named(tmp_path):
    weights = original_weights("mlm")
    del weights["bert.encoder.layer.1.mlp.wo.bias"]
    message = failure(write_checkpoint(tmp_path / "a", weights), tmp_path / "b")
    assert "missing: bert.encoder.layer.1.mlp.wo.bias (48,)" in message


def test_unexpected_weights_are_named(tmp_path):
    weights = {**original_weights("mlm"), "bert.embeddings.position_embeddings.weight": torch.zeros(512, 48)}
    message = failure(write_checkpoint(tmp_path / "a", weights), tmp_path / "b")
    assert "unexpected: bert.embeddings.position_embeddings.weight (512, 48)" in message


def test_wrong_shapes_are_named_with_both_shapes(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"), original_config(intermediate_size=80))
    assert "bert.encoder.layer.0.mlp.wo.weight is (48, 64) in the checkpoint, (48, 80) by config.json" in failure(
        source, tmp_path / "b"
    )


def test_more_classifier_rows_than_labels_in_the_config_raises(tmp_path):
    message = failure(write_checkpoint(tmp_path / "a", original_weights("sequence")), tmp_path / "b")
    assert "classifier.weight is (3, 48) in the checkpoint, (2, 48) by config.json" in message


def test_a_decoder_that_is_not_tied_raises(tmp_path):
    weights = original_weights("mlm")
    weights["cls.predictions.decoder.weight"] = weights["cls.predictions.decoder.weight"] + 1e-3
    assert "differs from bert.embeddings.word_embeddings.weight" in failure(
        write_checkpoint(tmp_path / "a", weights), tmp_path / "b"
    )


def test_two_heads_raise(tmp_path):
    weights = {**original_weights("mlm"), **original_weights("sequence")}
    assert "masked-LM head" in failure(write_checkpoint(tmp_path / "a", weights), tmp_path / "b")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_raise(tmp_path, value):
    weights = original_weights("mlm")
    weights[WORD_EMBEDDINGS][7, 3] = value
    del weights["cls.predictions.decoder.weight"]
    assert f"not finite: {WORD_EMBEDDINGS}" in failure(write_checkpoint(tmp_path / "a", weights), tmp_path / "b")


def test_the_same_weight_twice_raises(tmp_path):
    weights = original_weights("base")
    weights["module.embeddings.LayerNorm.bias"] = weights["bert.embeddings.LayerNorm.bias"]
    assert "both stand for bert.embeddings.LayerNorm.bias" in failure(
        write_checkpoint(tmp_path / "a", weights), tmp_path / "b"
    )


class Payload:
    """Pickles into a call of os.system: what a malicious checkpoint does."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_poisoned_pickle_is_refused_and_does_not_run(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    torch.save({"weight": Payload(f"touch {tmp_path / 'ran'}")}, source / "pytorch_model.bin")
    assert "is refused: it holds more than weights" in failure(source, tmp_path / "b")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, form):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"), form=form)
    [path] = source.glob(f"*.{form}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{path} cannot be read; it is damaged or incomplete" in failure(source, tmp_path / "b")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 468354893\n", "run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "not a checkpoint: it begins with b'<!DOCTYPE html>"),
        (b"", "not a checkpoint: it is empty"),
    ],
)
def test_a_failed_download_is_not_taken_for_an_attack(tmp_path, name, content, word):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    (source / "pytorch_model.bin").unlink()
    (source / name).write_bytes(content)
    message = failure(source, tmp_path / "b")
    assert word in message and name in message and "run code" not in message


@pytest.mark.parametrize("size", [1, 2, 30, 200, 400, 1000, 2200])
def test_a_truncated_file_of_an_old_torch_raises(tmp_path, size):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(500)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: min(size, path.stat().st_size - 1)])
    with pytest.raises(ConversionError, match="pytorch_model.bin"):
        read_weights(tmp_path)


def test_a_training_state_in_place_of_weights_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    torch.save({"epoch": 3, "state_dict": original_weights("mlm")}, source / "pytorch_model.bin")
    assert "'epoch', a int" in failure(source, tmp_path / "b")


def test_a_missing_shard_is_named(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"), shards=3)
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin" in failure(source, tmp_path / "b")


def test_a_folder_without_weights_says_what_is_looked_for(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    (source / "pytorch_model.bin").unlink()
    assert "pytorch_model.bin" in failure(source, tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"num_attention_heads": 7}, "not divisible by num_attention_heads 7"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the labels 0, 1, 2"),
        ({"vocab_size": 90}, "vocab_size is 90"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, changes, word):
    weights = original_weights("mlm")
    if "vocab_size" in changes:  # let the weights agree, so that only the tokenizer is too large
        for name in [n for n in weights if n.endswith(("word_embeddings.weight", "decoder.weight", "decoder.bias"))]:
            weights[name] = weights[name][: changes["vocab_size"]].clone()
    assert word in failure(write_checkpoint(tmp_path / "a", weights, original_config(**changes)), tmp_path / "b")


def test_a_folder_of_ours_has_nothing_to_convert(masked_lm, tmp_path):
    message = failure(masked_lm[1], tmp_path / "b")
    assert f"{masked_lm[1]} already is a StrandBERT folder" in message and "hub_configs.verify" in message


def test_a_config_without_sizes_says_which_are_missing(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    (source / "config.json").write_text('{"vocab_size": 96, "hidden_size": 48}')
    assert "lacks num_hidden_layers, num_attention_heads, intermediate_size" in failure(source, tmp_path / "b")


def test_broken_json_is_named_with_its_line(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    (source / "config.json").write_text('{"vocab_size": 96,\n"hidden_size" 48}')
    assert "config.json is not JSON" in (message := failure(source, tmp_path / "b")) and "line 2" in message


def test_a_missing_tokenizer_says_where_to_get_it(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    (source / "tokenizer.json").unlink()
    assert "copy tokenizer.json of the original model" in failure(source, tmp_path / "b")


def test_a_tokenizer_with_other_special_ids_raises(tmp_path):
    source = write_checkpoint(tmp_path / "a", original_weights("mlm"))
    content = json.loads((source / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["id"] = {3: 0, 0: 3}.get(token["id"], token["id"])
    (source / "tokenizer.json").write_text(json.dumps(content))
    assert "[UNK] must have id 0" in failure(source, tmp_path / "b")


def test_a_damaged_models_toml_is_named(masked_lm, tmp_path, monkeypatch, capsys):
    def damaged():
        raise CardError("models.toml: [mine] lacks title")

    monkeypatch.setattr("hub_configs.convert.read_models", damaged)
    assert main([str(masked_lm[0]), str(tmp_path / "b")]) == 1
    assert "not converted: models.toml: [mine] lacks title" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


# ---- the output folder


def test_an_existing_folder_is_kept_unless_overwrite_is_given(masked_lm, capsys):
    source, output = masked_lm
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert main([str(source), str(output)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_overwrite_never_replaces_a_folder_that_is_not_a_model(masked_lm, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("three years")
    assert main([str(masked_lm[0]), str(tmp_path), "--overwrite"]) == 1
    assert "not a model folder" in capsys.readouterr().err and (tmp_path / "thesis.txt").exists()


def test_the_source_is_never_overwritten(masked_lm, capsys):
    source, _ = masked_lm
    assert main([str(source), str(source), "--overwrite"]) == 1
    assert "would replace the source" in capsys.readouterr().err and (source / "pytorch_model.bin").exists()
