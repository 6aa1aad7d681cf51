"""`python -m hub_configs.publish`: what goes into the folder, and what never leaves the machine."""

import json
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError
from itertools import count

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hub_configs import publish as module
from hub_configs.checkpoint import ConversionError
from hub_configs.folder import code_files, write_model_folder
from hub_configs.publish import PublishError, check_nothing_private, main, publish, read_source
from hub_configs.space import SpaceError, copy_model, make_space
from hub_configs.verify import VerificationError
from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertForSequenceClassification
from modeling.configuration_strandbert import AUTO_MAP

from ..conftest import ROOT
from .conftest import SIZES, original_tokenizer

PICKLE_STARTS = (b"\x80", b"PK\x03\x04")


def trained(folder, model_class=StrandBertForMaskedLM, **settings):
    """A model folder as training leaves it: save_pretrained, checkpoints, optimizer and arguments as pickles."""
    torch.manual_seed(0)
    config = StrandBertConfig(**SIZES, initializer_range=0.2, architectures=[model_class.__name__], **settings)
    model = model_class(config)
    weights = {name: t for name, t in model.state_dict().items() if name != "cls.predictions.decoder.weight"}
    folder.mkdir()
    write_model_folder(folder, json.loads(config.to_json_string()), weights, original_tokenizer())
    content = json.loads((folder / "config.json").read_text())
    local = {"_name_or_path": str(folder), "transformers_version": "5.23.0", "_attn_implementation_autoset": True}
    (folder / "config.json").write_text(json.dumps({**content, **local}))
    (folder / "checkpoint-10").mkdir()
    torch.save({"state": {}}, folder / "checkpoint-10" / "optimizer.pt")
    torch.save({"output_dir": str(folder)}, folder / "training_args.bin")
    (folder / "log_history.json").write_text(json.dumps({"output_dir": str(folder)}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def tables(small_models):
    """The models published here are described by the table strandbert-tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_models", lambda: small_models)
        yield


@pytest.fixture(scope="module")
def published(tables, tmp_path_factory):
    """(source, folder, report) of a masked-LM model."""
    root = tmp_path_factory.mktemp("publish")
    source = trained(root / "my_model")
    report = publish(source, "strandbert-tiny", root / "published", repository="genomes/tiny")
    return source, root / "published", report


@pytest.fixture
def copy(published, tmp_path):
    return shutil.copytree(published[0], tmp_path / "copy")


@pytest.fixture
def no_load(monkeypatch):
    """Leave the check in a fresh interpreter out, which takes seconds and has tests of its own."""
    monkeypatch.setattr(module, "compare_with_source", lambda *arguments: [])


# ---- the folder


def test_code_is_that_of_the_checkout_byte_for_byte(published):
    code = {path.name: path.read_bytes() for path in published[1].glob("*.py")}
    assert code == {path.name: path.read_bytes() for path in code_files()}


def test_it_holds_what_a_repository_needs_and_nothing_of_the_training(published):
    names = {path.relative_to(published[1]).as_posix() for path in published[1].rglob("*")}
    assert names - {path.name for path in code_files()} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
        *("reference_outputs.safetensors", "README.md", "LICENSE", "requirements.txt"),
    }


def test_no_file_is_a_pickle(published):
    assert (published[0] / "training_args.bin").read_bytes().startswith(PICKLE_STARTS)
    for path in published[1].iterdir():
        assert not path.read_bytes().startswith(PICKLE_STARTS), path.name


def test_no_file_names_a_path_of_this_machine(published):
    source, folder, _ = published
    assert str(source) in (source / "config.json").read_text()
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in (source, folder, ROOT, source.parents[1]):
            assert str(place).encode() not in content, path.name


def test_weights_are_those_of_the_source_bit_for_bit(published):
    source, folder = (load_file(path / "model.safetensors") for path in published[:2])
    assert source.keys() == folder.keys() and all(torch.equal(source[name], folder[name]) for name in source)


def test_config_names_every_auto_class_and_every_size(published):
    config = json.loads((published[1] / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["architectures"] == ["StrandBertForMaskedLM"]
    assert {**config, **SIZES} == config and config["layer_norm_eps"] == 1e-12
    assert not [key for key in config if key.startswith("_")]


def test_requirements_are_those_of_the_package(published):
    lines = (published[1] / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in lines) and any(
        line.startswith("transformers>=") for line in lines
    )


def test_the_report_says_what_ran_and_that_the_outputs_are_equal(published):
    report = "\n".join(published[2])
    assert "modeling_strandbert.py  (ran)" in report and "compared with the model in my_model" in report
    assert "genomes/tiny loads from an offline Hub cache" in report


def test_the_card_has_valid_front_matter_and_loads_the_repository_by_name(published):
    card = (published[1] / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "fill-mask" and "dna" in front["tags"]
    assert 'from_pretrained("genomes/tiny", trust_remote_code=True)' in card


def test_a_fine_tune_keeps_labels_and_is_tagged_as_a_classifier(tmp_path, no_load):
    labels = {"id2label": {0: "enhancer", 1: "other"}, "problem_type": "single_label_classification"}
    source = trained(tmp_path / "tuned", StrandBertForSequenceClassification, **labels)
    publish(source, "strandbert-tiny", tmp_path / "published")
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    assert config["id2label"] == {"0": "enhancer", "1": "other"} and config["problem_type"] == labels["problem_type"]
    assert "pipeline_tag: text-classification" in (tmp_path / "published" / "README.md").read_text()


@pytest.mark.parametrize("stated, kept", [(2048, 2048), (int(1e30), 1_000_000), (None, 1_000_000)])
def test_the_length_at_which_the_tokenizer_cuts_is_kept(copy, tmp_path, no_load, stated, kept):
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": stated}))
    publish(copy, "strandbert-tiny", tmp_path / "published")
    written = json.loads((tmp_path / "published" / "tokenizer_config.json").read_text())
    assert written["model_max_length"] == kept


# ---- what is refused; nothing is left where the folder was to be


def refused(error, *arguments):
    output = arguments[2]
    with pytest.raises(error) as raised:
        publish(*arguments)
    assert not output.exists() and not list(output.parent.glob(f".{output.name}*"))
    return str(raised.value)


def test_a_name_without_a_table_lists_those_there_are(copy, tmp_path):
    assert "only dnabert2-117m, dnagrinder-64m, strandbert-tiny" in refused(
        PublishError, copy, "my-model", tmp_path / "out"
    )


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_size", 96),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 6),
        ("intermediate_size", 128),
        ("glu_activation", "silu"),
    ],
)
def test_a_card_of_a_model_with_other_sizes_is_refused(copy, tmp_path, small_models, monkeypatch, key, value):
    own = {**SIZES, "glu_activation": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps({**own, key: value}))
    row = {**small_models["strandbert-tiny"], "config": str(tmp_path / "config.json")}
    monkeypatch.setattr(module, "read_models", lambda: {"mine": row})
    message = refused(PublishError, copy, "mine", tmp_path / "out")
    assert f"({key} is {own[key]}, not {value})" in message


def test_a_small_model_is_not_published_as_a_large_one(copy, tmp_path):
    message = refused(PublishError, copy, "dnabert2-117m", tmp_path / "out")
    assert "--name dnabert2-117m: the card would describe another model" in message
    assert "hidden_size is 48, not 768; num_hidden_layers is 3, not 12" in message


def test_a_label_that_is_a_path_is_refused(tmp_path, no_load):
    labels = {"id2label": {0: "enhancer", 1: "/home/anna/patients"}}
    source = trained(tmp_path / "tuned", StrandBertForSequenceClassification, **labels)
    message = refused(PublishError, source, "strandbert-tiny", tmp_path / "out")
    assert "config.json holds a path of this machine, /home/anna/patients" in message


@pytest.mark.parametrize(
    "text", ["C:\\Users\\anna\\x", "/Users/anna/x", "/root/x", "see /mnt/disk1/x.", "/gpfs/anna/x"]
)
def test_paths_of_other_machines_are_seen(tmp_path, text):
    (tmp_path / "notes.json").write_text(json.dumps([text]) if "\\" not in text else text)
    with pytest.raises(PublishError, match="notes.json holds a path of this machine"):
        check_nothing_private(tmp_path, tmp_path / "source")


@pytest.mark.parametrize(
    "text", ["https://arxiv.org/abs/2306.15006", "tokens/s and MiB/s", "hub_configs/data/x", "1/opt"]
)
def test_addresses_and_units_are_no_paths(tmp_path, text):
    (tmp_path / "notes.json").write_text(json.dumps([text]))
    check_nothing_private(tmp_path, tmp_path / "source")


def test_a_pickle_is_refused_whatever_it_is_called(tmp_path):
    torch.save({"a": 1}, tmp_path / "notes.json")
    with pytest.raises(PublishError, match="notes.json is a pickle"):
        check_nothing_private(tmp_path, tmp_path / "source")


class Payload:
    """Pickles into a call of os.system: what a malicious checkpoint does."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_poisoned_bin_is_refused_and_does_not_run(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    torch.save({"weight": Payload(f"touch {tmp_path / 'ran'}")}, copy / "pytorch_model.bin")
    assert "it holds more than weights" in refused(ConversionError, copy, "strandbert-tiny", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_the_original_checkpoint_is_to_be_converted_first(copy, tmp_path):
    (copy / "config.json").write_text(json.dumps({**SIZES, "model_type": "bert"}))
    assert "convert it first: python -m hub_configs.convert" in refused(
        ConversionError, copy, "strandbert-tiny", tmp_path / "out"
    )


def test_an_adapter_is_to_be_merged_first(copy, tmp_path):
    (copy / "adapter_config.json").write_text("{}")
    assert "merge it first: python -m hub_configs.convert" in refused(
        ConversionError, copy, "strandbert-tiny", tmp_path / "out"
    )


def test_weights_that_are_not_numbers_are_refused(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"][3] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "not finite" in refused(ConversionError, copy, "strandbert-tiny", tmp_path / "out")


def loads_with(monkeypatch, error=0.0, tokens=None):
    """A fresh interpreter would give the reference's outputs, off by a share of the largest, and its first `tokens`."""
    report = {"code": {}, "parameters": 0, "model_class": "", "auto_class": ""}
    report |= dict.fromkeys(("python", "torch", "transformers", "tokenizers"), "")

    def load(folder, reference, as_repository):
        stored = load_file(reference)
        rows = zip(stored["input_ids"], stored["attention_mask"], strict=True)
        ids = [row[mask.bool()].tolist()[:tokens] for row, mask in rows]
        outputs = {n: t + error * max(1, t.abs().max()) for n, t in stored.items() if t.is_floating_point()}
        tensors = {f"{name}.{backend}": t for name, t in outputs.items() for backend in ("default", "eager")}
        return {**report, "input_ids": ids}, tensors

    monkeypatch.setattr(module, "load_in_fresh_interpreter", load)


def test_a_folder_whose_outputs_are_a_little_off_is_refused(copy, tmp_path, monkeypatch):
    loads_with(monkeypatch, error=2e-5)
    message = refused(VerificationError, copy, "strandbert-tiny", tmp_path / "out")
    assert "compared with the model in copy" in message and "DIFFERS" in message


def test_a_folder_whose_tokenizer_gives_other_ids_is_refused(copy, tmp_path, monkeypatch):
    loads_with(monkeypatch, tokens=20)
    message = refused(VerificationError, copy, "strandbert-tiny", tmp_path / "out")
    assert "the tokenizer gives other ids than the reference" in message


def test_the_source_is_never_replaced(published):
    source = published[0]
    with pytest.raises(PublishError, match="would replace"):
        publish(source, "strandbert-tiny", source, overwrite=True)
    assert read_source(source)


def test_the_source_is_never_replaced_by_another_of_its_names(published, tmp_path):
    (tmp_path / "link").symlink_to(published[0].parent)
    with pytest.raises(PublishError, match="would replace"):
        publish(published[0], "strandbert-tiny", tmp_path / "link" / published[0].name, overwrite=True)
    with pytest.raises(PublishError, match="would replace"):
        make_space(published[0], "tiny", published[0], overwrite=True)
    assert read_source(published[0])


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_classifier_that_reads_all_tokens_has_outputs_of_its_own(tmp_path, pooling):
    source = trained(tmp_path / "tuned", StrandBertForSequenceClassification, classifier_pooling=pooling)
    report = publish(source, "strandbert-tiny", tmp_path / "published")
    assert "loads from an offline Hub cache" in report[-1]


@pytest.mark.parametrize("key, value", [("glu_activation", "swish"), ("num_attention_heads", 7)])
def test_a_config_that_no_model_can_have_is_named(copy, tmp_path, key, value):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, key: value}))
    assert f"{copy / 'config.json'}: " in refused(ConversionError, copy, "strandbert-tiny", tmp_path / "out")


@pytest.mark.parametrize("limit", ["512", 0, 0.5])
def test_a_length_limit_that_is_no_number_is_named(copy, tmp_path, limit):
    (copy / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    message = refused(ConversionError, copy, "strandbert-tiny", tmp_path / "out")
    assert message.startswith(f"{copy / 'tokenizer_config.json'}: model_max_length is {limit!r}")


def test_a_tokenizer_with_other_special_ids_is_named(copy, tmp_path):
    content = json.loads((copy / "tokenizer.json").read_text())
    content["added_tokens"][3]["content"] = "[NOTHING]"
    (copy / "tokenizer.json").write_text(json.dumps(content))
    message = refused(ConversionError, copy, "strandbert-tiny", tmp_path / "out")
    assert f"{copy / 'tokenizer.json'}: special token [PAD]" in message


def test_safetensors_whose_length_begins_like_a_pickle_are_published(tmp_path):
    path = tmp_path / "model.safetensors"
    for length in count(1):
        save_file({"x": torch.ones(1)}, path, {"note": "x" * length})
        if path.read_bytes().startswith(b"\x80\x02"):
            break
    check_nothing_private(tmp_path, tmp_path / "source")


def test_a_space_leaves_private_settings_out_and_refuses_paths(published, tmp_path):
    copy_model(published[0], tmp_path / "models" / "tiny")
    assert "_name_or_path" not in (tmp_path / "models" / "tiny" / "config.json").read_text()
    source = shutil.copytree(published[0], tmp_path / "other")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "data_dir": "/home/anna/patients"}))
    with pytest.raises(PublishError, match="/home/anna/patients"):
        copy_model(source, tmp_path / "models" / "other")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", 'my "best"', "my model", "x\n", "ä"])
def test_a_name_that_is_no_folder_name_in_a_space_is_refused(copy, tmp_path, name):
    with pytest.raises(SpaceError, match="a model cannot be called"):
        make_space(tmp_path / "out", name, copy)
    assert not (tmp_path / "out").exists()


def test_a_classifier_in_a_folder_with_quotes_is_refused(copy, tmp_path):
    with pytest.raises(SpaceError, match="a model cannot be called 'my \"best\"'"):
        make_space(tmp_path / "out", "tiny", copy, [tmp_path / 'my "best"'])
    assert not (tmp_path / "out").exists()


def test_two_models_of_one_name_in_a_space_are_refused(tmp_path):
    with pytest.raises(SpaceError, match="two models would be called final"):
        make_space(tmp_path / "out", "tiny", tmp_path / "x", [tmp_path / "a" / "final", tmp_path / "b" / "final"])


def test_a_space_without_gradio_says_how_to_install_it(tmp_path, monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("hub_configs.space.version", absent)
    with pytest.raises(SpaceError, match=re.escape("pip install '.[space]'")):
        make_space(tmp_path / "out", "tiny", tmp_path / "model")
    assert not (tmp_path / "out").exists()


def test_without_push_nothing_is_uploaded_and_it_says_so(copy, tmp_path, no_load, monkeypatch, capsys):
    monkeypatch.setattr(module, "upload", lambda *a: pytest.fail("uploaded"))
    arguments = ["--model", str(copy), "--name", "strandbert-tiny", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "nothing was uploaded; add --push ORG/NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--classifier", "promoters"], "--classifier belongs to --space"),
        (["--update"], "--update belongs to --push"),
        (["--private"], "--private belongs to --push"),
    ],
)
def test_flags_without_the_one_they_belong_to_are_refused(tmp_path, capsys, flags, word):
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--name", "strandbert-tiny", "--output", str(tmp_path / "out"), *flags])
    assert word in capsys.readouterr().err


def test_errors_are_one_line_for_the_user(tmp_path, capsys):
    assert main(["--model", str(tmp_path), "--name", "strandbert-tiny", "--output", str(tmp_path / "out")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("not published: ") and "config.json does not exist" in line
