"""`python -m inference.predict`: any saved classifier, its labels by name, equal to calling the model."""

import json
import shutil

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from inference import jobs, predict
from modeling import StrandBertForSequenceClassification, StrandBertModel, memory
from training.classification_batches import StrandBertTokenizer, views_of

from ..conftest import ROOT
from .conftest import random_sequences, save_model

SEQUENCES = [*random_sequences(6, [9, 300, 41, 1200, 77]), "acgtnnRYU" * 5]
LABELS = ["background", "promoter", "enhancer"]
LORA = LoraConfig(
    task_type="SEQ_CLS",
    target_modules=["Wqkv", "dense", "gated_layers", "wo"],
    exclude_modules=".*pooler.*",
    modules_to_save=["classifier", "pooler"],
)


@pytest.fixture
def table(tmp_path):
    rows = [
        f"s{i},{sequence},{other}" for i, (sequence, other) in enumerate(zip(SEQUENCES, SEQUENCES[::-1], strict=True))
    ]
    (tmp_path / "in.csv").write_text("\n".join(["name,sequence,other", *rows]) + "\n")
    return tmp_path / "in.csv"


def command(table, model, *options, output="out.parquet"):
    path = table.with_name(output)
    predict.main([str(table), "--model", str(model), "--output", str(path), "--cpu", *options])
    return path


def scores(path, what="probability"):
    found = pyarrow.parquet.read_table(path)
    return np.stack([found[name] for name in found.column_names if name.startswith(what + "_")], axis=1)


def expected_logits(model, sequences=SEQUENCES, pairs=None):
    """By the model's own call, a sequence at a time."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "tokenization" / "vocabulary")
    rows = []
    for i, sequence in enumerate(sequences):
        inputs = tokenizer(sequence, *([] if pairs is None else [pairs[i]]), return_tensors="pt")
        first = len(tokenizer(sequence)["input_ids"])
        types = (torch.arange(inputs["input_ids"].shape[1]) >= first).long()[None]
        with torch.no_grad():
            rows.append(model(inputs["input_ids"], inputs["attention_mask"], token_type_ids=types).logits[0])
    return torch.stack(rows)


def test_probabilities_and_the_best_label_by_name(table, classifier_folder):
    path = command(table, classifier_folder)
    found = pyarrow.parquet.read_table(path)
    assert found.column_names == ["name", "record", "predicted", *(f"probability_{label}" for label in LABELS)]
    assert found["name"].to_pylist() == [f"s{i}" for i in range(6)]
    model = StrandBertForSequenceClassification.from_pretrained(classifier_folder)
    expected = expected_logits(model).softmax(-1).numpy()
    assert np.abs(scores(path) - expected).max() < 1e-5
    assert found["predicted"].to_pylist() == [LABELS[i] for i in expected.argmax(1)]


def test_csv_holds_the_same_numbers(table, classifier_folder):
    expected = pyarrow.parquet.read_table(command(table, classifier_folder))
    found = pyarrow.csv.read_csv(command(table, classifier_folder, output="out.csv"))
    assert found.to_pydict() == expected.to_pydict()


def test_both_strands(table, classifier_folder):
    other = [s.upper().replace("U", "T")[::-1].translate(str.maketrans("ACGTRY", "TGCANN")) for s in SEQUENCES]
    model = StrandBertForSequenceClassification.from_pretrained(classifier_folder)
    expected = ((expected_logits(model) + expected_logits(model, other)) / 2).softmax(-1).numpy()
    found = scores(command(table, classifier_folder, "--reverse-complement", "average"))
    assert np.abs(found - expected).max() < 1e-5


def test_several_tokenisations_are_averaged(table, classifier_folder):
    model = StrandBertForSequenceClassification.from_pretrained(classifier_folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "tokenization" / "vocabulary")
    logits = [expected_logits(model)]
    for variant in (1, 2):
        rows = []
        for row, sequence in enumerate(s.upper().translate(str.maketrans("URY", "TNN")) for s in SEQUENCES):
            draws = np.random.Generator(np.random.Philox(key=[variant, row])).random(len(sequence) - 1)
            pieces = "".join(
                base + " " * int(draw < 0.3) for base, draw in zip(sequence, [*draws, 1], strict=True)
            ).split()
            tokens = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
            ids = torch.tensor([[tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]])
            with torch.no_grad():
                rows.append(model(ids).logits[0])
        logits.append(torch.stack(rows))
    expected = (sum(logits) / 3).softmax(-1).numpy()
    options = ["--average-tokens", "3", "--augment-tokens", "0.3"]
    found = scores(command(table, classifier_folder, *options))
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - scores(command(table, classifier_folder, output="plain.parquet"))).max() > 1e-3


def test_pairs_depend_on_their_order(table, classifier_folder):
    model = StrandBertForSequenceClassification.from_pretrained(classifier_folder)
    found = scores(command(table, classifier_folder, "--pair-column", "other"))
    expected = expected_logits(model, SEQUENCES, SEQUENCES[::-1]).softmax(-1).numpy()
    assert np.abs(found - expected).max() < 1e-5 and np.abs(found - found[::-1]).max() > 1e-3


@pytest.mark.parametrize(
    "problem_type, count, what",
    [("multi_label_classification", 3, "probability"), ("regression", 2, "predicted"), ("regression", 1, "predicted")],
)
def test_multi_label_and_regression(table, tmp_path, problem_type, count, what):
    names = dict(enumerate(LABELS[:count]))
    labels = {"id2label": names, "label2id": {v: k for k, v in names.items()}, "problem_type": problem_type}
    folder = save_model(tmp_path / "m", StrandBertForSequenceClassification, **labels)
    logits = expected_logits(StrandBertForSequenceClassification.from_pretrained(folder))
    expected = logits.sigmoid() if what == "probability" else logits
    path = command(table, folder)
    assert np.abs(scores(path, what) - expected.numpy()).max() < 1e-5
    assert "predicted" not in pyarrow.parquet.read_schema(path).names


@pytest.fixture
def adapter(tmp_path, classifier_folder):
    """A LoRA adapter with random weights as peft saves it, and what the adapted model predicts."""
    model = StrandBertForSequenceClassification.from_pretrained(classifier_folder)
    adapted = get_peft_model(model, LORA).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted, expected_logits(adapted).softmax(-1).numpy()


def test_an_adapter_alone_with_its_labels_and_merged_predict_the_same(table, adapter, classifier_folder, tmp_path):
    folder, adapted, expected = adapter
    alone = command(table, folder)
    assert np.abs(scores(alone) - expected).max() < 1e-5
    assert "probability_LABEL_2" in pyarrow.parquet.read_schema(alone).names
    complete = shutil.copytree(folder, tmp_path / "complete")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(classifier_folder / name, complete / name)
    named = command(table, complete, output="named.parquet")
    assert np.abs(scores(named) - expected).max() < 1e-5
    assert "probability_promoter" in pyarrow.parquet.read_schema(named).names
    merged = shutil.copytree(classifier_folder, tmp_path / "merged")
    adapted.merge_and_unload().save_pretrained(merged)
    assert np.abs(scores(command(table, merged, output="merged.parquet")) - expected).max() < 1e-4


def test_an_adapter_without_its_head_is_refused(table, adapter):
    folder = adapter[0]
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(SystemExit, match="holds no classifier, so its predictions would be random"):
        command(table, folder)


def save_bert(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(
        vocab_size=4096, **sizes, pad_token_id=3, num_labels=2, problem_type="single_label_classification"
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tokenization" / "vocabulary" / name, folder / name)
    return model


def test_another_architecture_is_read_in_padded_batches(table, tmp_path):
    model = save_bert(tmp_path / "bert")
    expected = expected_logits(model).softmax(-1).numpy()
    assert np.abs(scores(command(table, tmp_path / "bert")) - expected).max() < 1e-5


@pytest.mark.parametrize(
    "error, options, advice",
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), [], "lower --batch-bases"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), [], "lower --batch-bases"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ["--batch-bases", "1"], "--dtype"),
    ],
)
def test_too_little_memory_for_a_padded_batch_is_said_in_one_line(table, tmp_path, monkeypatch, error, options, advice):
    def fail(*args, **kwargs):
        raise error

    save_bert(tmp_path / "bert")
    monkeypatch.setattr(BertForSequenceClassification, "forward", fail)
    with pytest.raises(SystemExit, match=f"does not fit into the memory of cpu; .*{advice}") as found:
        command(table, tmp_path / "bert", *options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "options, advice",
    [([], "lower --batch-bases"), (["--batch-bases", "1"], "cut it into pieces, or try --dtype bfloat16")],
)
def test_too_little_memory_for_packed_sequences_names_options_of_the_command(
    table, classifier_folder, monkeypatch, options, advice
):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    with pytest.raises(SystemExit, match=f"does not fit into the memory of cpu: .*; {advice}$"):
        command(table, classifier_folder, *options)


def test_other_failures_of_a_padded_batch_are_no_matter_of_memory(table, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    save_bert(tmp_path / "bert")
    monkeypatch.setattr(BertForSequenceClassification, "forward", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        command(table, tmp_path / "bert")


def test_other_tokens_of_another_architecture_are_refused(table, tmp_path):
    save_bert(tmp_path / "bert")
    with pytest.raises(SystemExit, match="--average-tokens works with StrandBERT models only"):
        command(table, tmp_path / "bert", "--average-tokens", "2")


def test_sequences_too_long_for_a_model_are_found_before_anything_is_computed(table, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=4096, **sizes, pad_token_id=3, max_position_embeddings=100)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tokenization" / "vocabulary" / name, tmp_path / "bert" / name)
    with pytest.raises(SystemExit, match="in.csv, line 5, record 's3': .* more than the 100 that fit; add"):
        command(table, tmp_path / "bert")
    assert not list(tmp_path.glob("*.parts"))
    assert len(scores(command(table, tmp_path / "bert", "--truncate"))) == len(SEQUENCES)


def test_other_tokens_that_are_too_many_are_found_before_anything_is_computed(tmp_path, classifier_folder, monkeypatch):
    sequence = random_sequences(3, [120])[0]
    tokenizer = StrandBertTokenizer(PreTrainedTokenizerFast.from_pretrained(classifier_folder))
    views = views_of(False, 4, 0.05)
    counts = [
        max(len(tokenizer.encode(*view.read([sequence.encode()], number))[0]) for view in views) for number in range(40)
    ]
    worst = counts.index(max(counts))
    assert counts[0] < counts[worst]
    folder = shutil.copytree(classifier_folder, tmp_path / "limited")
    config = json.loads((folder / "config.json").read_text()) | {"max_sequence_tokens": counts[worst] - 1}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "in.csv").write_text("sequence\n" + f"{sequence}\n" * 40)
    monkeypatch.delattr(predict.Predictor, "logits")
    with pytest.raises(SystemExit, match=f"in.csv, line {worst + 2}, .*: {counts[worst]} tokens, more than the"):
        command(tmp_path / "in.csv", folder, "--average-tokens", "4", "--augment-tokens", "0.05")


def test_interrupted_and_resumed_equals_uninterrupted(table, classifier_folder, monkeypatch):
    monkeypatch.setattr(jobs, "BLOCK_RECORDS", 2)
    whole = command(table, classifier_folder, output="whole.csv").read_bytes()
    original, calls = predict.Predictor.logits, []

    def logits(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(predict.Predictor, "logits", logits)
    with pytest.raises(SystemExit, match="the same command goes on"):
        command(table, classifier_folder, output="out.csv")
    assert command(table, classifier_folder, output="out.csv").read_bytes() == whole
    assert len(calls) == 4


def test_a_model_that_is_no_classifier_is_refused(table, tmp_path):
    folder = save_model(tmp_path / "m", StrandBertModel)
    with pytest.raises(SystemExit, match="is no classifier but StrandBertModel"):
        command(table, folder)


def test_a_classifier_without_the_weights_of_its_head_is_refused(table, classifier_folder, tmp_path):
    folder = shutil.copytree(classifier_folder, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    encoder = {name: weight for name, weight in weights.items() if "classifier" not in name and "pooler" not in name}
    assert len(encoder) < len(weights)
    save_file(encoder, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match=r"lacks weights of its head, .*random: .*classifier\.bias"):
        command(table, folder)


def test_what_ran_out_of_memory_goes_on_with_smaller_batches(table, classifier_folder, monkeypatch):
    monkeypatch.setattr(jobs, "BLOCK_RECORDS", 3)
    whole = scores(command(table, classifier_folder, output="whole.parquet"))
    original, calls = predict.Predictor.logits, []

    def logits(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("lower --batch-bases")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(predict.Predictor, "logits", logits)
    with pytest.raises(SystemExit, match="lower --batch-bases"):
        command(table, classifier_folder)
    assert np.abs(scores(command(table, classifier_folder, "--batch-bases", "1")) - whole).max() < 1e-5
    assert len(calls) == 3


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_outputs_that_are_not_finite_are_no_prediction(table, classifier_folder, tmp_path, value):
    folder = shutil.copytree(classifier_folder, tmp_path / "overflowing")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = r"line 2, record 's0' \(and 5 more\): the outputs are not finite; use a model whose weights"
    with pytest.raises(SystemExit, match=message):
        command(table, folder)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--pair-column", "second"], "no column 'second'.*--pair-column"),
        (["--sequence-column", "name"], "line 2, record '1': character '0' at position 2"),
        (["--output", "x.npy"], "must end in one of .csv"),
        (["--average-tokens", "0"], "--average-tokens 0 must be at least 1"),
        (["--augment-tokens", "1.5"], "--augment-tokens 1.5 must lie above 0 and at most at 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(table, classifier_folder, options, message):
    with pytest.raises(SystemExit, match=message):
        command(table, classifier_folder, *options)
