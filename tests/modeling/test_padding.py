"""A sequence's result does not depend on padding, order, batch or packing; padding comes out as exact zeros."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling import StrandBertForMaskedLM, StrandBertForSequenceClassification, StrandBertModel

from .conftest import BACKENDS_ON_CPU, build, random_ids

# bf16 holds 8 bits; what is compared are hidden states of size about 1 after three layers
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2}


@pytest.fixture(scope="module")
def models():
    return {
        (backend, dtype): build(StrandBertModel, backend, dtype) for backend in BACKENDS_ON_CPU for dtype in TOLERANCE
    }


def alone(model, sequences):
    return [model(ids[None]).last_hidden_state[0] for ids in sequences]


def padded(sequences, length, left):
    """Batch of ids, padded with an ordinary token so that reading padding would show, and its mask."""
    ids = torch.full((len(sequences), length), 9)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(length - len(sequence), length) if left[row] else slice(0, len(sequence))
        ids[row, place] = sequence
        mask[row, place] = 1
    return ids, mask


batches = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=batches, extra=st.integers(0, 9), data=st.data())
@torch.no_grad()
def test_padding_changes_nothing_and_comes_out_as_zeros(models, backend, dtype, lengths, extra, data):
    model = models[backend, dtype]
    sequences = [random_ids(length, seed=index) for index, length in enumerate(lengths)]
    left = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    ids, mask = padded(sequences, max(lengths) + extra, left)
    output = model(ids, attention_mask=mask).last_hidden_state
    assert torch.isfinite(output).all()
    assert (output[~mask.bool()] == 0).all()
    for row, expected in enumerate(alone(model, sequences)):
        assert (output[row][mask[row].bool()] - expected).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=batches, data=st.data())
@torch.no_grad()
def test_packing_in_any_order_changes_nothing(models, backend, dtype, lengths, data):
    model = models[backend, dtype]
    sequences = [random_ids(length, seed=index) for index, length in enumerate(lengths)]
    order = data.draw(st.permutations(range(len(lengths))))
    row = torch.cat([sequences[index] for index in order])[None]
    ends = torch.tensor([lengths[index] for index in order]).cumsum(0).tolist()
    cu_seqlens = torch.tensor([0, *ends], dtype=torch.int32)
    output = model(row, cu_seqlens=cu_seqlens, max_seqlen=max(lengths)).last_hidden_state
    expected = alone(model, sequences)
    for place, index in enumerate(order):
        result = output[0, cu_seqlens[place] : cu_seqlens[place + 1]]
        assert (result - expected[index]).abs().max() <= TOLERANCE[dtype]


@torch.no_grad()
def test_a_gap_in_the_mask_counts_real_tokens_only(models, backend):
    model = models[backend, torch.float32]
    ids = random_ids(10)
    with_gap = torch.cat([ids[:4], torch.tensor([9, 9]), ids[4:]])[None]
    mask = torch.tensor([[1] * 4 + [0] * 2 + [1] * 6])
    output = model(with_gap, attention_mask=mask).last_hidden_state[mask.bool()]
    assert (output - model(ids[None]).last_hidden_state[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
@torch.no_grad()
def test_masks_of_every_dtype_are_read(models, mask_dtype):
    model = models["sdpa", torch.float32]
    ids, mask = padded([random_ids(5), random_ids(9)], 9, [False, False])
    expected = model(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model(ids, attention_mask=mask.to(mask_dtype)).last_hidden_state, expected)


@torch.no_grad()
def test_no_mask_means_no_padding(models, backend):
    model = models[backend, torch.float32]
    ids = random_ids(2, 7)
    expected = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.equal(model(ids).last_hidden_state, expected)


@torch.no_grad()
def test_a_row_of_padding_only_gives_zeros_not_nan(backend):
    model = build(StrandBertForSequenceClassification, backend, num_labels=2)
    ids, mask = random_ids(3, 6), torch.tensor([[1] * 6, [0] * 6, [1] * 4 + [0] * 2])
    output = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert torch.isfinite(output.logits).all()
    assert all((hidden_state[1] == 0).all() for hidden_state in output.hidden_states)
    assert all((weights[1] == 0).all() for weights in output.attentions)
    everything_padded = model(ids, attention_mask=torch.zeros_like(mask))
    assert torch.isfinite(everything_padded.logits).all()


@torch.no_grad()
def test_packed_sequence_classification_equals_one_by_one(backend):
    for head, pooling in (("pooler", "first"), ("mlp", "first"), ("pooler", "mean"), ("mlp", "max")):
        choice = {"classifier_head": head, "classifier_pooling": pooling}
        model = build(StrandBertForSequenceClassification, backend, num_labels=3, **choice)
        sequences = [random_ids(length, seed=length) for length in (4, 11, 7)]
        packed = model(torch.cat(sequences)[None], cu_seqlens=torch.tensor([0, 4, 15, 22]), max_seqlen=11).logits
        expected = torch.cat([model(ids[None]).logits for ids in sequences])
        assert (packed - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_packing_names_of_transformers_collators_are_read(backend):
    model = build(StrandBertForMaskedLM, backend)
    row, cu_seqlens = random_ids(1, 9), torch.tensor([0, 4, 9], dtype=torch.int32)
    expected = model(row, cu_seqlens=cu_seqlens, max_seqlen=5).logits
    by_kwargs = model(row, cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens, max_length_q=5, max_length_k=5).logits
    by_positions = model(row, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])).logits
    assert torch.equal(by_kwargs, expected)
    assert torch.equal(by_positions, expected)


@torch.no_grad()
def test_packed_loss_equals_padded_loss(backend):
    model = build(StrandBertForMaskedLM, backend)
    sequences = [random_ids(length, seed=length) for length in (6, 12)]
    labels = [torch.where(ids % 3 == 0, ids, -100) for ids in sequences]
    ids, mask = padded(sequences, 12, [False, False])
    padded_labels = torch.full_like(ids, -100)
    padded_labels[mask.bool()] = torch.cat(labels)
    expected = model(ids, attention_mask=mask, labels=padded_labels).loss
    packed = model(torch.cat(sequences)[None], labels=torch.cat(labels)[None], cu_seqlens=torch.tensor([0, 6, 18])).loss
    assert packed == pytest.approx(float(expected), abs=1e-6)
