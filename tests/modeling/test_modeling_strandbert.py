"""What callers of the model get: outputs, heads, losses, dtypes, checkpointing, compilation, errors."""

import pytest
import torch

from modeling import (
    StrandBertConfig,
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
    modeling_strandbert,
)
from modeling.unpadding import usual_size

from .conftest import build, random_ids

ALL_CLASSES = (
    StrandBertModel,
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
)


def ragged_batch(vocab_size=64):
    ids = random_ids(3, 9, vocab_size=vocab_size)
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [0] * 2 + [1] * 7])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("model_class", ALL_CLASSES)
def test_hidden_states_and_attentions_have_the_shapes_of_transformers(model_class, backend):
    model, batch = build(model_class, backend), ragged_batch()
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    real = batch["attention_mask"].bool()
    assert len(output.hidden_states) == 4 and len(output.attentions) == 3
    for hidden_state in output.hidden_states:
        assert hidden_state.shape == (3, 9, 32)
        assert (hidden_state[~real] == 0).all()
    for weights in output.attentions:
        assert weights.shape == (3, 4, 9, 9)
        assert torch.allclose(weights.sum(-1).transpose(1, 2)[real], torch.ones(1))
        assert (weights.transpose(1, 2)[~real] == 0).all()
        assert (weights.permute(0, 3, 1, 2)[~real] == 0).all()


def test_last_hidden_state_is_the_last_of_the_hidden_states(backend):
    output = build(StrandBertModel, backend)(**ragged_batch(), output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
    assert output.pooler_output is None


def test_attentions_of_packed_sequences_do_not_cross():
    model = build(StrandBertModel)
    weights = model(random_ids(1, 7), cu_seqlens=torch.tensor([0, 3, 7]), output_attentions=True).attentions[0]
    assert weights.shape == (1, 4, 7, 7)
    assert (weights[..., :3, 3:] == 0).all() and (weights[..., 3:, :3] == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(1))


def test_asking_for_attentions_changes_no_result(backend):
    model, batch = build(StrandBertForMaskedLM, backend), ragged_batch()
    with_attentions = model(**batch, output_attentions=True)
    assert (with_attentions.logits - model(**batch).logits).abs().max() < 1e-5


def test_tuples_on_request():
    model, batch = build(StrandBertForMaskedLM), ragged_batch()
    logits, hidden_states = model(**batch, output_hidden_states=True, return_dict=False)
    assert logits.shape == (3, 9, 64) and len(hidden_states) == 4
    (last_hidden_state,) = build(StrandBertModel)(**batch, return_dict=False)
    assert last_hidden_state.shape == (3, 9, 32)


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_outputs_asked_for_in_the_config(option):
    model = build(StrandBertModel, "eager", **{option: True})
    assert model(random_ids(1, 5))[option.removeprefix("output_")] is not None


def test_inputs_embeds_equal_input_ids(backend):
    model, batch = build(StrandBertModel, backend), ragged_batch()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    expected = model(**batch).last_hidden_state
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).last_hidden_state, expected)


def test_token_types_default_to_the_first_segment(backend):
    model, batch = build(StrandBertModel, backend), ragged_batch()
    expected = model(**batch).last_hidden_state
    zeros = torch.zeros_like(batch["input_ids"])
    assert torch.equal(model(**batch, token_type_ids=zeros).last_hidden_state, expected)
    assert not torch.allclose(model(**batch, token_type_ids=zeros + 1).last_hidden_state, expected)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gate_is_the_first_half_of_gated_layers(activation):
    """GEGLU and SwiGLU as in Shazeer 2020, written out."""
    mlp = build(StrandBertModel, glu_activation=activation).encoder.layer[0].mlp
    x = torch.randn(5, 32)
    gate, up = x @ mlp.gated_layers.weight[:48].T, x @ mlp.gated_layers.weight[48:].T
    act = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[activation]
    expected = mlp.layernorm((act(gate) * up) @ mlp.wo.weight.T + mlp.wo.bias + x)
    assert torch.allclose(mlp(x), expected, atol=1e-5)


def test_a_sequence_longer_than_anything_trained_on_runs(backend):
    model = build(StrandBertModel, backend, max_position_embeddings=16)
    with torch.no_grad():
        long = model(random_ids(1, 1200)).last_hidden_state
        reference = build(StrandBertModel, "eager")(random_ids(1, 1200)).last_hidden_state
    assert (long - reference).abs().max() < 1e-4


# losses


def test_masked_lm_loss_counts_labelled_positions_only(backend):
    model, batch = build(StrandBertForMaskedLM, backend), ragged_batch()
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 3], labels[2, 5] = 7, 0
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(torch.stack([logits[0, 3], logits[2, 5]]), torch.tensor([7, 0]))
    assert model(**batch, labels=labels).loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_while_training_logits_are_those_of_labelled_positions(backend):
    model, batch = build(StrandBertForMaskedLM, backend), ragged_batch()
    labels = torch.where(batch["input_ids"] % 3 == 0, batch["input_ids"], -100)
    labels[batch["attention_mask"] == 0] = -100
    in_eval = model(**batch, labels=labels)
    model.train()
    in_training = model(**batch, labels=labels)
    assert in_eval.logits.shape == (3, 9, 64)
    assert torch.allclose(in_training.logits, in_eval.logits[labels != -100], atol=1e-6)
    assert torch.allclose(in_training.loss, in_eval.loss)


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero():
    model, batch = build(StrandBertForMaskedLM), ragged_batch()
    model.train()
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_gradients_of_accumulated_batches_equal_those_of_one_batch(backend):
    """transformers passes num_items_in_batch; a model that ignored it would scale gradients by the accumulation."""
    model = build(StrandBertForMaskedLM, backend)
    model.train()
    ids = random_ids(4, 8)
    labels = torch.where(ids % 3 == 0, ids, -100)
    model(ids, labels=labels).loss.backward()
    whole = model.cls.predictions.decoder.bias.grad.clone()
    model.zero_grad()
    for row in range(4):
        items = (labels != -100).sum()
        model(ids[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=items).loss.backward()
    assert torch.allclose(model.cls.predictions.decoder.bias.grad, whole, atol=1e-6)


@pytest.mark.parametrize("head", ["pooler", "mlp"])
@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (3, torch.tensor([0, 2, 1]), "single_label_classification"),
        (1, torch.tensor([0.5, -1.0, 2.0]), "regression"),
        (4, torch.randint(0, 2, (3, 4)).float(), "multi_label_classification"),
    ],
)
def test_sequence_classification_losses(head, num_labels, labels, problem_type):
    model = build(StrandBertForSequenceClassification, num_labels=num_labels, classifier_head=head)
    output = model(**ragged_batch(), labels=labels)
    losses = {
        "single_label_classification": lambda: torch.nn.functional.cross_entropy(output.logits, labels),
        "regression": lambda: torch.nn.functional.mse_loss(output.logits[:, 0], labels),
        "multi_label_classification": lambda: torch.nn.functional.binary_cross_entropy_with_logits(
            output.logits, labels
        ),
    }
    assert output.logits.shape == (3, num_labels)
    assert model.config.problem_type == problem_type
    assert torch.allclose(output.loss, losses[problem_type]())


def test_integer_regression_targets_and_column_targets():
    model = build(StrandBertForSequenceClassification, num_labels=1)
    as_row = model(**ragged_batch(), labels=torch.tensor([1, 2, 3])).loss
    as_column = model(**ragged_batch(), labels=torch.tensor([[1.0], [2.0], [3.0]])).loss
    assert torch.allclose(as_row, as_column)


@pytest.mark.parametrize("head", ["pooler", "mlp"])
@pytest.mark.parametrize("problem", ["single", "multi", "regression", "token"])
def test_every_head_overfits_sixteen_rows(head, problem):
    if problem == "token" and head == "mlp":
        pytest.skip("the token head has one form")
    ids = random_ids(16, 6)
    labels = {
        "single": torch.arange(16) % 3,
        "multi": torch.stack([torch.arange(16) % 2, torch.arange(16) // 8], dim=1).float(),
        "regression": torch.linspace(-1, 1, 16),
        "token": ids % 2,
    }[problem]
    model_class = StrandBertForTokenClassification if problem == "token" else StrandBertForSequenceClassification
    num_labels = {"single": 3, "multi": 2, "regression": 1, "token": 2}[problem]
    model = build(model_class, num_labels=num_labels, classifier_head=head, initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02


def test_token_classification_ignores_minus_100_and_padding():
    model, batch = build(StrandBertForTokenClassification, num_labels=5), ragged_batch()
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"] % 5, -100)
    output = model(**batch, labels=labels)
    real = batch["attention_mask"].bool()
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits[real], labels[real]))
    assert (output.logits[~real] == 0).all()


def test_the_order_of_a_pair_matters():
    model = build(StrandBertForSequenceClassification, num_labels=2)
    first, second = random_ids(1, 5, seed=1), random_ids(1, 5, seed=2)
    types = torch.tensor([[0] * 5 + [1] * 5])
    one = model(torch.cat([first, second], dim=1), token_type_ids=types).logits
    other = model(torch.cat([second, first], dim=1), token_type_ids=types).logits
    assert not torch.allclose(one, other)


# dtypes, checkpointing, compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_runs_forward_and_backward(dtype, backend):
    model = build(StrandBertForMaskedLM, backend, dtype=dtype).train()
    loss = model(**ragged_batch(), labels=ragged_batch()["input_ids"]).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_are_finite_where_rows_are_filled_up(dtype):
    model = build(StrandBertForMaskedLM, "sdpa", dtype=dtype).train()
    ids = torch.arange(65)[None] % 20 + 5
    assert usual_size(ids.numel()) > ids.numel()
    model(ids, labels=ids).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_autocast_stays_close_to_fp32(backend):
    model, batch = build(StrandBertForMaskedLM, backend, initializer_range=0.05), ragged_batch()
    expected = model(**batch, labels=batch["input_ids"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch, labels=batch["input_ids"])
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    output.loss.backward()


def test_activation_checkpointing_changes_no_gradient(backend):
    model, batch = build(StrandBertForMaskedLM, backend).train(), ragged_batch()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append(model.bert.encoder.layer[0].attention.self.Wqkv.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-7)
    assert model.is_gradient_checkpointing


def test_dropout_sees_the_same_shapes_when_a_checkpoint_is_computed_anew(monkeypatch):
    """Reentrant checkpointing, transformers 4's, computes without gradients first; other shapes draw another mask."""
    monkeypatch.setattr(modeling_strandbert, "FEED_FORWARD_CHUNK", {"cpu": 4})
    model, batch = build(StrandBertForMaskedLM, hidden_dropout_prob=0.1).train(), ragged_batch()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    shapes, dropout = [], torch.nn.functional.dropout
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *o: shapes.append(x.shape) or dropout(x, *o))
    loss = model(**batch, labels=batch["input_ids"]).loss
    first = shapes[:]
    loss.backward()
    again = shapes[len(first) :]
    assert again and sorted(first[-len(again) :]) == sorted(again)


@pytest.mark.slow
def test_compiled_model_is_one_graph_and_equal():
    torch._dynamo.reset()
    model, batch = build(StrandBertForMaskedLM), ragged_batch()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for length in (9, 6, 8):
            ids, mask = batch["input_ids"][:, :length], batch["attention_mask"][:, :length]
            expected = model(ids, attention_mask=mask, labels=ids)
            output = compiled(ids, attention_mask=mask, labels=ids)
            assert (output.logits - expected.logits).abs().max() < 1e-5
            assert (compiled(ids).logits - model(ids).logits).abs().max() < 1e-5


def test_exported_model_is_equal():
    model = build(StrandBertForMaskedLM)
    ids, mask = ragged_batch().values()
    exported = torch.export.export(model, (), {"input_ids": ids, "attention_mask": mask}).module()
    assert (
        exported(input_ids=ids, attention_mask=mask).logits - model(ids, attention_mask=mask).logits
    ).abs().max() < 1e-5


def test_a_backend_that_cannot_be_traced_says_so():
    model = build(StrandBertModel, "alibi_banded")
    with pytest.raises(Exception, match="'alibi_banded' cannot be compiled or exported"):
        torch.export.export(model, (), {"input_ids": random_ids(1, 5)})


def test_forward_hooks_on_the_encoder_fire():
    model, calls = build(StrandBertForMaskedLM), []
    model.bert.register_forward_hook(lambda *_: calls.append(1))
    model(random_ids(1, 5))
    assert calls == [1]


def test_a_custom_dropout_stays_on_the_backend_asked_for(backend):
    model = build(StrandBertForMaskedLM, backend, attention_probs_dropout_prob=0.5).train()
    assert model.config._attn_implementation == backend
    torch.manual_seed(0)
    first = model(random_ids(1, 8)).logits
    assert not torch.allclose(first, model(random_ids(1, 8)).logits)


# embeddings of another size


def test_resized_vocabulary_keeps_the_tie():
    model = build(StrandBertForMaskedLM)
    model.resize_token_embeddings(70)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model(random_ids(1, 4)).logits.shape == (1, 4, 70)


# bad input


@pytest.mark.parametrize("token_id", [-1, 64, 4100])
def test_ids_outside_the_vocabulary_are_named(token_id):
    with pytest.raises(ValueError, match=f"token id {token_id} lies outside the vocabulary of 64"):
        build(StrandBertModel)(torch.tensor([[5, token_id]]))


@pytest.mark.parametrize("shape", [(1, 0), (0, 5)])
def test_nothing_to_encode(shape):
    with pytest.raises(ValueError, match="nothing to encode"):
        build(StrandBertModel)(torch.zeros(shape, dtype=torch.long))


def test_one_dimensional_input_is_explained():
    with pytest.raises(ValueError, match="batch dimension"):
        build(StrandBertModel)(random_ids(5))


def test_ids_and_embeds_exclude_each_other():
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        build(StrandBertModel)()


def test_a_packed_batch_with_padding_is_refused():
    with pytest.raises(ValueError, match="packed input"):
        build(StrandBertModel)(
            random_ids(1, 4), attention_mask=torch.tensor([[1, 1, 1, 0]]), cu_seqlens=torch.tensor([0, 4])
        )


@pytest.mark.parametrize("label", [-1, 3])
def test_class_ids_out_of_range_are_named(label):
    model = build(StrandBertForSequenceClassification, num_labels=3)
    with pytest.raises(ValueError, match=f"label {label} lies outside 0 .. 2"):
        model(**ragged_batch(), labels=torch.tensor([0, label, 1]))


def test_labels_of_the_wrong_kind_are_explained():
    single = build(StrandBertForSequenceClassification, num_labels=3, problem_type="single_label_classification")
    with pytest.raises(ValueError, match="needs integer labels"):
        single(**ragged_batch(), labels=torch.tensor([0.0, 1.0, 2.0]))
    multi = build(StrandBertForSequenceClassification, num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match=r"needs labels \(num_sequences, 3\)"):
        multi(**ragged_batch(), labels=torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"glu_activation": "relu"}, "glu_activation is 'relu'"),
        ({"classifier_head": "cls"}, "classifier_head is 'cls'"),
        ({"classifier_pooling": "sum"}, "classifier_pooling is 'sum'"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "30 is not divisible by num_attention_heads 4"),
        ({"intermediate_size": -1}, "intermediate_size is -1; it must be 1 or more"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; it must lie from 0 to 1"),
    ],
)
def test_configurations_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        StrandBertConfig(**changes)


def test_unknown_backends_are_refused_at_loading_and_later(tmp_path):
    model = build(StrandBertModel)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'flex_attention' is refused"):
        StrandBertModel.from_pretrained(tmp_path, attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="'nonsense' is unknown to StrandBERT"):
        model.set_attn_implementation("nonsense")


# found by attacking the model


@pytest.mark.parametrize("model_class", [StrandBertForMaskedLM, StrandBertForTokenClassification])
def test_labels_on_padding_never_count(model_class):
    model, batch = build(model_class, num_labels=64), ragged_batch()
    padding = batch["attention_mask"] == 0
    labels = batch["input_ids"].masked_fill(padding, -100)
    elsewhere = batch["input_ids"].masked_fill(padding, 7)
    expected = model(**batch, labels=labels).loss
    assert torch.equal(model(**batch, labels=elsewhere).loss, expected)


@pytest.mark.parametrize(
    ("model_class", "labels"),
    [
        (StrandBertForMaskedLM, torch.full((3, 9), -100)),
        (StrandBertForTokenClassification, torch.full((3, 9), -100)),
        (StrandBertForSequenceClassification, torch.full((3,), -100)),
    ],
)
def test_no_label_at_all_is_loss_zero_not_nan(model_class, labels):
    assert build(model_class)(**ragged_batch(), labels=labels).loss == 0


def test_no_label_at_all_is_loss_zero_in_half_precision():
    """The sum of many logits is beyond fp16."""
    model = build(StrandBertForMaskedLM, vocab_size=4096).half()
    torch.nn.init.constant_(model.cls.predictions.decoder.bias, -5)
    assert model(random_ids(1, 20), labels=torch.full((1, 20), -100)).loss == 0


def test_regression_targets_are_not_rounded_to_half_precision():
    model = build(StrandBertForSequenceClassification, num_labels=1, problem_type="regression")
    targets = torch.tensor([1001.0, 2003.0, 3005.0])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**ragged_batch(), labels=targets)
    assert output.loss == (output.logits.float().squeeze() - targets).square().mean()


def test_asking_a_traced_model_for_attentions_raises():
    compiled = torch.compile(build(StrandBertModel), backend="eager")
    with pytest.raises(Exception, match="output_attentions=True cannot be compiled"):
        compiled(**ragged_batch(), output_attentions=True)


def test_export_with_dynamic_shapes_runs_on_other_shapes():
    model = build(StrandBertForMaskedLM)
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=4096)
    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    exported = torch.export.export(model, (), ragged_batch(), dynamic_shapes=shapes).module()
    ids, mask = random_ids(2, 31), torch.ones(2, 31, dtype=torch.long)
    mask[1, 20:] = 0
    expected = model(ids, attention_mask=mask).logits
    assert (exported(input_ids=ids, attention_mask=mask).logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("num_labels", "shape"), [(3, (3,)), (3, (3, 1)), (1, (3, 4)), (1, (2,))])
def test_regression_targets_of_another_shape_are_refused(num_labels, shape):
    model = build(StrandBertForSequenceClassification, num_labels=num_labels, problem_type="regression")
    with pytest.raises(ValueError, match=rf"regression needs labels \(3, {num_labels}\)"):
        model(**ragged_batch(), labels=torch.zeros(shape))


def test_additive_masks_are_refused():
    mask = (1 - ragged_batch()["attention_mask"].float()) * -10000
    with pytest.raises(ValueError, match="additive masks are not read"):
        build(StrandBertModel)(random_ids(3, 9), attention_mask=mask)


def test_attentions_switched_on_in_the_config_of_a_loaded_model(tmp_path):
    build(StrandBertModel).save_pretrained(tmp_path)
    model = StrandBertModel.from_pretrained(tmp_path)
    model.config.output_attentions = True
    assert len(model(random_ids(1, 5)).attentions) == 3
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 5, 31)}, r"inputs_embeds must be \(batch, length, 32\)"),
        ({"input_ids": random_ids(2, 5), "token_type_ids": torch.zeros(2, 4).long()}, "token_type_ids have shape"),
    ],
)
def test_inputs_of_the_wrong_shape_are_explained(inputs, message):
    with pytest.raises(ValueError, match=message):
        build(StrandBertModel)(**inputs)


def test_labels_of_another_shape_are_explained():
    with pytest.raises(ValueError, match=r"labels have shape \(3, 8\), the tokens \(3, 9\)"):
        build(StrandBertForMaskedLM)(**ragged_batch(), labels=random_ids(3, 8))
