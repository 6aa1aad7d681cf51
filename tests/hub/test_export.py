"""ONNX: encoder and heads, any batch and length, equal to the model within 1e-4 in onnxruntime."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import modeling
from hub_configs import export
from hub_configs.export import ExportError, TensorOutput, example, exported_program, load, write_onnx
from modeling import StrandBertConfig

SIZES = {"vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32}
HEADS = {
    "encoder": ("StrandBertModel", {}),
    "masked LM": ("StrandBertForMaskedLM", {}),
    "classifier with pooler": ("StrandBertForSequenceClassification", {"num_labels": 3}),
    "classifier of dnaGrinder": (
        "StrandBertForSequenceClassification",
        {"classifier_head": "mlp", "glu_activation": "silu", "num_labels": 2},
    ),
    "classifier of the maximum": (
        "StrandBertForSequenceClassification",
        {"classifier_pooling": "max", "num_labels": 2},
    ),
    "token classifier": ("StrandBertForTokenClassification", {"num_labels": 4}),
}


def build(head, seed=0):
    torch.manual_seed(seed)
    class_name, changes = HEADS[head]
    return getattr(modeling, class_name)(StrandBertConfig(**SIZES, initializer_range=0.2, **changes)).eval()


@pytest.fixture(scope="module")
def onnx():
    """The optional packages of the export, or a skip."""
    for package in export.NEEDED:
        pytest.importorskip(package, reason=f"ONNX export needs the optional package {package}")
    return pytest.importorskip("onnx")


def differences(lines):
    """(batch, length) -> largest difference, as the export reports it."""
    numbers = (re.fullmatch(r"batch (\d+), length +(\d+): largest difference (\S+), .*", line) for line in lines)
    return {(int(found[1]), int(found[2])): float(found[3]) for found in numbers}


@pytest.fixture(scope="module")
def encoder_file(onnx, tmp_path_factory):
    """(file, report) of the exported encoder."""
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    return path, write_onnx(TensorOutput(build("encoder")), path)


def test_the_encoder_is_equal_at_batches_1_and_7_and_lengths_8_511_513_2000(encoder_file):
    found = differences(encoder_file[1])
    assert {(batch, length) for batch in (1, 7) for length in (8, 511, 513, 2000)} <= set(found)
    assert max(found.values()) < 1e-4


@pytest.mark.parametrize("head", [head for head in HEADS if head != "encoder"])
def test_every_head_is_equal_with_dynamic_batch_and_length(onnx, tmp_path, monkeypatch, head):
    monkeypatch.setattr(export, "SHAPES", [(1, 1), (1, 513), (7, 8)])
    found = differences(write_onnx(TensorOutput(build(head)), tmp_path / "model.onnx"))
    assert len(found) == 3 and max(found.values()) < 1e-4
    graph = onnx.load(tmp_path / "model.onnx")
    for value in (*graph.graph.input, graph.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in graph.graph.input] == ["input_ids", "attention_mask"]
    assert graph.graph.output[0].name == "logits"
    onnx.checker.check_model(graph, full_check=True)


def test_the_file_says_nothing_about_the_machine_it_was_made_on(encoder_file):
    content = encoder_file[0].read_bytes()
    for text in (str(Path.home()), str(Path(export.__file__).parents[1]), str(encoder_file[0].parent), ".py"):
        assert text.encode() not in content


def test_a_graph_that_differs_is_not_written(encoder_file, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "forget_where_it_was_made", lambda graph: None)
    other = SimpleNamespace(save=lambda path: shutil.copyfile(encoder_file[0], path))
    monkeypatch.setattr(export, "onnx_graph", lambda model: other)
    with pytest.raises(ExportError, match="differs from the model by more than 0.0001"):
        write_onnx(TensorOutput(build("encoder", seed=1)), tmp_path / "out" / "model.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_weights_in_a_second_file_arrive_with_the_graph(onnx, tmp_path, monkeypatch):
    original = export.onnx_graph

    def large(model):
        graph = original(model)
        save = graph.save
        graph.save = lambda path: save(path, external_data=True)  # as above 1.5 GB
        return graph

    monkeypatch.setattr(export, "onnx_graph", large)
    monkeypatch.setattr(export, "SHAPES", [(1, 8)])
    model = TensorOutput(build("encoder"))
    write_onnx(model, tmp_path / "encoder.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.onnx", "encoder.onnx.data"]
    assert export.check(model, tmp_path / "encoder.onnx")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "NEEDED", ("onnx_that_nobody_has",))
    with pytest.raises(ExportError, match="needs onnx_that_nobody_has: pip install"):
        write_onnx(TensorOutput(build("encoder")), tmp_path / "model.onnx")


def test_the_folder_decides_the_head_and_encoder_leaves_it_out(tmp_path):
    build("masked LM").save_pretrained(tmp_path)
    assert type(load(tmp_path).model).__name__ == "StrandBertForMaskedLM"
    assert type(load(tmp_path, encoder=True).model).__name__ == "StrandBertModel"


@pytest.mark.parametrize("head", ["masked LM", "classifier with pooler"])
def test_torch_export_runs_at_other_batches_and_lengths(head):
    model = TensorOutput(build(head))
    program = exported_program(model).module()
    for batch, length in ((1, 1), (1, 40), (5, 3)):
        inputs = example(batch, length, SIZES["vocab_size"])
        with torch.no_grad():
            assert (program(**inputs) - model(**inputs)).abs().max() < 1e-5
