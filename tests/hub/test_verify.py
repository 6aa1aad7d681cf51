"""`python -m hub_configs.verify`: a folder passes only when its outputs are those of its reference."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from hub_configs.checkpoint import ConversionError
from hub_configs.convert import convert
from hub_configs.convert import main as convert_tool
from hub_configs.folder import foreign_code, sha256_of, write_model_code
from hub_configs.reference import reference_outputs, write_reference
from hub_configs.verify import compare, fresh_environment
from hub_configs.verify import main as verify_tool
from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertForSequenceClassification

from .conftest import original_weights, write_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    source = write_checkpoint(tmp_path_factory.mktemp("original") / "dnabert2", original_weights("mlm"))
    convert(source, source.parent / "converted")
    return source.parent / "converted"


@pytest.fixture
def folder(converted, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(converted, tmp_path / "model")


def test_reports_what_was_loaded_with_a_hash_of_every_file(converted, capsys):
    assert verify_tool([str(converted)]) == 0
    report = capsys.readouterr().out
    assert "StrandBertForMaskedLM by AutoModelForMaskedLM" in report
    for path in converted.iterdir():
        assert f"{sha256_of(path)}  {path.name}" in report
    assert report.splitlines()[-1] == "all outputs agree with the reference"


def test_a_randomly_initialised_model_fails(folder, capsys):
    model = StrandBertForMaskedLM(StrandBertConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    assert verify_tool([str(folder)]) == 1
    assert "last_hidden_state (default backend)" in (error := capsys.readouterr().err) and "DIFFERS" in error


def test_one_changed_weight_fails(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.2.attention.self.Wqkv.weight"][0, 0] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert verify_tool([str(folder)]) == 1
    assert "NOT those of the reference" in capsys.readouterr().err


def test_a_missing_weight_fails_and_is_named(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.mlp.layernorm.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert verify_tool([str(folder)]) == 1
    assert "encoder.layer.1.mlp.layernorm.bias" in capsys.readouterr().err


def test_another_tokenizer_fails(folder, capsys):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][::-1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert verify_tool([str(folder)]) == 1
    assert "tokenizer gives other ids" in capsys.readouterr().err


def test_truncation_and_padding_left_in_a_tokenizer_do_not_change_the_reference(folder, capsys):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(pad_id=3, pad_token="[PAD]", length=20)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert verify_tool([str(folder), "--write-reference"]) == 0, capsys.readouterr().err


def test_a_folder_without_reference_says_how_to_make_one(folder, capsys):
    (folder / "reference_outputs.safetensors").unlink()
    assert verify_tool([str(folder)]) == 1
    assert "--write-reference" in capsys.readouterr().err


def test_a_folder_that_is_not_a_model_is_named(tmp_path, capsys):
    assert verify_tool([str(tmp_path)]) == 1
    assert f"{tmp_path} is not a model folder" in capsys.readouterr().err


# ---- damaged folders: one line that names the file, whether or not a reference is to be written


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("flags", [[], ["--write-reference"]])
@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("config.json", cut, "is not JSON"),
        ("config.json", lambda path: path.write_text('{"model_type": "strandbert"}'), "lacks architectures, auto_map"),
        ("tokenizer.json", lambda path: path.unlink(), "does not exist"),
        ("tokenizer.json", lambda path: path.write_text('{"version": "1.0"}'), "is not a tokenizer.json"),
        ("model.safetensors", lambda path: path.write_text("version https://git-lfs.github.com/"), "git lfs pull"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(folder, capsys, flags, name, damage, word):
    damage(folder / name)
    assert verify_tool([str(folder), *flags]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert str(folder / name) in line and word in line


def test_a_damaged_reference_is_named(folder, capsys):
    cut(folder / "reference_outputs.safetensors")
    assert verify_tool([str(folder)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"{folder / 'reference_outputs.safetensors'} cannot be read; it is damaged" in line


def test_weights_in_place_of_a_reference_are_named(folder, capsys):
    assert verify_tool([str(folder), "--reference", str(folder / "model.safetensors")]) == 1
    assert "is not a reference: it lacks input_ids, attention_mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "word"), [("layer_norm_eps", None, "lacks 'layer_norm_eps'"), ("num_attention_heads", 7, "fit")]
)
def test_a_reference_of_a_config_that_does_not_fit_says_so(folder, capsys, key, value, word):
    config = json.loads((folder / "config.json").read_text())
    config.pop(key)
    (folder / "config.json").write_text(json.dumps(config if value is None else {**config, key: value}))
    assert verify_tool([str(folder), "--write-reference"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"{folder}: " in line and word in line


# ---- code in the folder


def test_changed_code_is_not_run_unless_trusted(folder, tmp_path, capsys):
    code = folder / "modeling_strandbert.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert verify_tool([str(folder)]) == 1
    error = capsys.readouterr().err
    assert "modeling_strandbert.py differs from" in error and "--trust-code" in error
    assert not (tmp_path / "ran").exists()
    assert verify_tool([str(folder), "--trust-code"]) == 0
    assert (tmp_path / "ran").exists()


def test_additional_code_is_named_and_not_run(folder, capsys):
    (folder / "tools").mkdir()
    (folder / "tools" / "extra.py").write_text("")
    assert verify_tool([str(folder)]) == 1
    assert "tools/extra.py is not a file of StrandBERT" in capsys.readouterr().err


def test_pipelines_of_its_own_are_named_and_not_run(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    config["custom_pipelines"] = {"text-classification": {"impl": "someone/else--other.Pipeline", "pt": []}}
    (folder / "config.json").write_text(json.dumps(config))
    assert verify_tool([str(folder)]) == 1
    assert "config.json: custom_pipelines name code that pipeline() would run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    [
        "someone/else--modeling_strandbert.StrandBertModel",
        "modeling_strandbert.someone/else--modeling_strandbert.StrandBertModel",  # split at -- first
        "/tmp/x.Y",
        "../modeling_strandbert.StrandBertModel",
        ["x.Y", None],
    ],
)
def test_an_auto_map_that_leads_elsewhere_is_named_and_not_followed(folder, capsys, value):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "auto_map": {"AutoTokenizer": value}}))
    assert verify_tool([str(folder)]) == 1
    assert "tokenizer_config.json: auto_map names" in capsys.readouterr().err


def test_code_that_is_a_dangling_link_is_named_with_what_to_do(folder, capsys):
    for path in folder.glob("*.py"):
        path.unlink()
        path.symlink_to(f"../../modeling/{path.name}")  # as cp -r of hub_configs/strandbert-tiny leaves them
    with pytest.raises(ConversionError, match="alibi_attention.py is a dangling link .* cp -rL"):
        foreign_code(folder)
    for options in ([], ["--trust-code"], ["--write-reference"]):
        assert verify_tool([str(folder), *options]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "alibi_attention.py is a dangling link to ../../modeling/alibi_attention.py; copy" in line


def test_the_base_model_of_an_adapter_is_not_followed(folder, capsys):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    assert verify_tool([str(folder)]) == 1
    assert "adapter_config.json names a base model" in capsys.readouterr().err


def test_a_training_folder_with_checkpoints_in_it_holds_no_foreign_code(folder):
    (folder / "checkpoint-200").mkdir()
    write_model_code(folder / "checkpoint-200")
    (folder / "log_history.json").write_text("[]")
    assert foreign_code(folder) == []


@pytest.mark.parametrize(
    "found",
    [torch.zeros(5, 3), torch.full((5, 4), float("nan")), torch.zeros(5, 4).index_fill(1, torch.tensor(1), 0.01)],
)
def test_another_shape_nan_or_a_difference_is_a_failure(found):
    expected = {"logits": torch.zeros(5, 4)}
    assert compare({"logits.default": expected["logits"], "logits.eager": found}, expected, tolerance=1e-4)[1]
    assert not compare({"logits.default": expected["logits"], "logits.eager": expected["logits"]}, expected, 1e-4)[1]


def test_caches_of_the_user_do_not_reach_the_fresh_interpreter(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
        monkeypatch.setenv(name, "of the user")
    assert "of the user" not in fresh_environment(tmp_path).values()


def test_a_tokenizer_without_padding_is_named(folder, capsys):
    content = (folder / "tokenizer.json").read_text().replace("[PAD]", "[NOTHING]")
    (folder / "tokenizer.json").write_text(content)
    assert verify_tool([str(folder), "--write-reference"]) == 1
    assert "tokenizer.json has no token [PAD]" in capsys.readouterr().err


@pytest.mark.shared
def test_the_reference_arithmetic_equals_the_original_code(golden):
    config = json.loads(StrandBertConfig(hidden_size=48, num_hidden_layers=3, intermediate_size=64).to_json_string())
    mask = golden["in.attention_mask"]
    for prefix, name in (("mlm", "StrandBertForMaskedLM"), ("seq", "StrandBertForSequenceClassification")):
        weights = {n.removeprefix(f"{prefix}.w."): t for n, t in golden.items() if n.startswith(f"{prefix}.w.")}
        found = reference_outputs({**config, "architectures": [name]}, weights, golden["in.input_ids"], mask)
        expected = golden["mlm.logits"][mask.bool()] if prefix == "mlm" else golden["seq.logits"]
        torch.testing.assert_close(found["logits"], expected, atol=3e-5, rtol=0)  # it rounds to float32


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
def test_the_reference_arithmetic_covers_dnagrinder_and_every_pooling(folder, pooling):
    torch.manual_seed(0)
    config = StrandBertConfig(
        vocab_size=96,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=40,
        glu_activation="silu",
        classifier_head="mlp",
        classifier_pooling=pooling,
        num_labels=4,
        initializer_range=0.2,
        architectures=["StrandBertForSequenceClassification"],
    )
    model = StrandBertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    write_reference(folder)
    reference = load_file(folder / "reference_outputs.safetensors")
    with torch.no_grad():
        logits = model(reference["input_ids"], reference["attention_mask"]).logits
    torch.testing.assert_close(logits, reference["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tool", [convert_tool, verify_tool])
def test_help_explains_how_to_run_it(tool, capsys):
    with pytest.raises(SystemExit) as exit:
        tool(["--help"])
    assert exit.value.code == 0 and "python -m hub_configs." in capsys.readouterr().out
