"""The original DNABERT-2 code and ours give the same numbers (tiny random configuration with 12 heads)."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertForSequenceClassification

pytestmark = pytest.mark.shared
TOLERANCE = {"eager": 1e-5, "sdpa": 1e-4, "alibi_banded": 1e-4}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@pytest.fixture(scope="module")
def golden(shared_data):
    path = shared_data("golden/dnabert2_official_tiny.safetensors")
    with safe_open(path, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    return load_file(path), {name: sizes[name] for name in SIZES}


def load(model_class, golden, prefix, backend, **options):
    tensors, sizes = golden
    model = model_class(StrandBertConfig(**sizes, **options)).eval()
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    model.load_state_dict(weights, strict=True)
    model.set_attn_implementation(backend)
    return model, tensors, {"input_ids": tensors["in.input_ids"], "attention_mask": tensors["in.attention_mask"]}


def test_logits_and_every_layer(golden, backend):
    model, tensors, batch = load(StrandBertForMaskedLM, golden, "mlm.w.", backend)
    output = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    expected = [tensors["mlm.embeddings"][real]] + [tensors[f"mlm.layer{i}.unpadded"] for i in range(3)]
    assert len(output.hidden_states) == len(expected)
    for hidden_state, reference in zip(output.hidden_states, expected, strict=True):
        assert (hidden_state[real] - reference).abs().max() <= TOLERANCE[backend]
    assert (output.logits - tensors["mlm.logits"])[real].abs().max() <= TOLERANCE[backend]


def test_padding_of_last_hidden_state_is_zero_as_in_the_original(golden, backend):
    model, tensors, batch = load(StrandBertForMaskedLM, golden, "mlm.w.", backend)
    hidden_state = model.bert(**batch).last_hidden_state
    assert (hidden_state - tensors["mlm.last_hidden_state"]).abs().max() <= TOLERANCE[backend]
    assert (hidden_state[~batch["attention_mask"].bool()] == 0).all()


def test_token_types(golden, backend):
    model, tensors, batch = load(StrandBertForMaskedLM, golden, "mlm.w.", backend)
    logits = model(**batch, token_type_ids=tensors["in.token_type_ids"]).logits
    real = batch["attention_mask"].bool()
    assert (logits - tensors["mlm.logits_token_type"])[real].abs().max() <= TOLERANCE[backend]


def test_masked_language_model_loss_and_gradients(golden, backend):
    model, tensors, batch = load(StrandBertForMaskedLM, golden, "mlm.w.", backend)
    loss = model(**batch, labels=tensors["in.labels"]).loss
    assert (loss - tensors["mlm.loss"]).abs().max() <= TOLERANCE[backend]
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    checked = [name for name in tensors if name.startswith("mlm.grad.")]
    assert len(checked) == 5
    for name in checked:
        assert (gradients[name.removeprefix("mlm.grad.")] - tensors[name]).abs().max() <= TOLERANCE[backend], name


def test_sequence_classification(golden, backend):
    model, tensors, batch = load(StrandBertForSequenceClassification, golden, "seq.w.", backend, num_labels=3)
    output = model(**batch, labels=tensors["in.seq_labels"])
    assert (output.logits - tensors["seq.logits"]).abs().max() <= TOLERANCE[backend]
    assert (output.loss - tensors["seq.loss"]).abs().max() <= TOLERANCE[backend]
    pooled = model.bert(**batch).pooler_output
    assert (pooled - tensors["seq.pooled"]).abs().max() <= TOLERANCE[backend]


def test_bias_of_twelve_heads(golden):
    from modeling.alibi_attention import alibi_bias, alibi_slopes

    bias = alibi_bias(torch.tensor(alibi_slopes(12)), 21)
    assert torch.equal(bias, golden[0]["alibi_12heads_21"][0])
