"""Indices and boundaries of unpadded batches, and which inputs are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.unpadding import (
    SequenceLayout,
    cu_seqlens_from_position_ids,
    layout_from_cu_seqlens,
    layout_from_mask,
    usual_size,
)


def test_indices_and_boundaries_of_a_ragged_batch():
    layout = layout_from_mask(2, 4, torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]), "cpu")
    assert layout.indices.tolist() == [0, 1, 5, 6, 7]
    assert layout.cu_seqlens.tolist() == [0, 2, 5]
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.max_seqlen == 3
    assert not layout.uniform


def test_a_full_batch_is_not_copied():
    layout = layout_from_mask(2, 3, torch.ones(2, 3), "cpu")
    grid = torch.arange(6.0).view(2, 3, 1)
    assert layout.uniform
    assert layout.unpad(grid).data_ptr() == grid.data_ptr()


def test_pad_undoes_unpad():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    layout = layout_from_mask(2, 3, mask, "cpu")
    grid = torch.randn(2, 3, 5)
    assert torch.equal(layout.pad(layout.unpad(grid)), grid * mask[..., None])


def test_first_tokens_skip_padding_and_empty_rows_are_zero():
    layout = layout_from_mask(3, 3, torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]]), "cpu")
    grid = torch.arange(9.0).view(3, 3, 1)
    assert layout.first_tokens(layout.unpad(grid)).flatten().tolist() == [1, 0, 6]


PADDED = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
LAYOUTS = {
    "padded": layout_from_mask(3, 3, PADDED, "cpu"),
    "packed": layout_from_cu_seqlens(1, 3, torch.tensor([0, 2, 2, 3]), None, "cpu"),
    "traced": SequenceLayout(3, 3, torch.tensor([0, 3, 6, 9], dtype=torch.int32), 3, grid_mask=PADDED.bool()),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_mean_and_maximum_are_of_the_tokens_of_a_sequence_and_zero_for_none(layout):
    grid = -1 - torch.rand(3, 3, 5)
    grid[PADDED == 0] = 100
    tokens = grid[PADDED == 1] if layout.packed else layout.unpad(grid)
    rows = grid[0, 1:], grid[2, :1]
    for pooled, expected in (
        (layout.mean_tokens(tokens), [row.mean(0) for row in rows]),
        (layout.max_tokens(tokens), [row.amax(0) for row in rows]),
    ):
        torch.testing.assert_close(pooled, torch.stack([expected[0], torch.zeros(5), expected[1]]))


@pytest.mark.parametrize("form", ["padded", "packed", "traced", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_many_half_precision_tokens_is_rounded_once(form, dtype):
    length, ones = 4000, torch.ones(2, 4000, dtype=torch.bool)
    tokens = (20 + torch.rand(2 * length, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    layout = {
        "padded": layout_from_mask(2, length + 1, torch.nn.functional.pad(ones, (0, 1)), "cpu"),
        "packed": layout_from_cu_seqlens(1, 2 * length, torch.tensor([0, length, 2 * length]), None, "cpu"),
        "traced": SequenceLayout(2, length, torch.tensor([0, length, 2 * length]), length, grid_mask=ones),
        "uniform": layout_from_mask(2, length, None, "cpu"),
    }[form]
    mean = layout.mean_tokens(tokens)
    assert mean.dtype == dtype
    expected = tokens.double().view(2, length, 3).mean(1)
    assert ((mean.double() - expected).abs() <= torch.finfo(dtype).eps * expected).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_the_gradient_of_a_maximum_reaches_the_token_that_holds_it(layout):
    grid = torch.tensor([[[50.0], [-3.0], [-2.0]], [[50.0], [50.0], [50.0]], [[-7.0], [50.0], [50.0]]])
    tokens = (grid[PADDED == 1] if layout.packed else layout.unpad(grid)).requires_grad_()
    layout.max_tokens(tokens).sum().backward()
    reached = {-2.0, -7.0}
    assert tokens.grad.flatten().tolist() == [float(value in reached) for value in tokens.flatten().tolist()]


def test_without_padding_the_maximum_is_that_of_each_row_and_without_tokens_zero():
    grid = torch.randn(2, 4, 5)
    full, empty = layout_from_mask(2, 4, None, "cpu"), layout_from_mask(2, 4, torch.zeros(2, 4), "cpu")
    assert torch.equal(full.max_tokens(full.unpad(grid)), grid.amax(1))
    assert torch.equal(empty.max_tokens(empty.unpad(grid)), torch.zeros(2, 5))


def test_boundaries_from_position_ids():
    assert cu_seqlens_from_position_ids(torch.tensor([[0, 1, 2, 0, 0, 1]])).tolist() == [0, 3, 4, 6]


@pytest.mark.parametrize("position_ids", [[[1, 2, 3]], [[0, 2, 3]], [[0, 1, 1]], [[0, 1], [0, 1]]])
def test_other_position_ids_are_refused(position_ids):
    with pytest.raises(ValueError, match="position_ids"):
        cu_seqlens_from_position_ids(torch.tensor(position_ids))


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 1, 4, 4\)"):
        layout_from_mask(2, 4, torch.ones(2, 1, 4, 4), "cpu")


@pytest.mark.parametrize("cu_seqlens", [[0, 3], [1, 5], [0, 4, 3, 5], [0]])
def test_boundaries_that_do_not_tile_the_row_are_refused(cu_seqlens):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0"):
        layout_from_cu_seqlens(1, 5, torch.tensor(cu_seqlens), None, "cpu")


def test_packed_input_is_one_row():
    with pytest.raises(ValueError, match="one row"):
        layout_from_cu_seqlens(2, 5, torch.tensor([0, 5]), None, "cpu")


def test_a_max_seqlen_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="max_seqlen is 2"):
        layout_from_cu_seqlens(1, 5, torch.tensor([0, 5]), 2, "cpu")


@pytest.mark.parametrize("lengths", [[5], [0, 3, 0], [4, 4, 4, 4], [1, 9, 2, 2, 2, 0, 7]])
@pytest.mark.parametrize("tokens", [1, 4, 6, 100])
def test_groups_are_whole_sequences_in_order(lengths, tokens):
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    layout = layout_from_cu_seqlens(1, sum(lengths), boundaries, None, "cpu")
    groups = layout.groups(tokens)
    found = [length for _, _, group in groups for length in group.cu_seqlens.diff().tolist()]
    assert found == lengths
    assert [start for start, _, _ in groups] == [0, *[end for _, end, _ in groups[:-1]]]
    assert all(end - start >= tokens for start, end, _ in groups[:-1])
    assert all(group.max_seqlen == group.cu_seqlens.diff().max() for _, _, group in groups)


@given(rows=st.integers(0, 10**6))
def test_usual_sizes_are_few_and_close(rows):
    size = usual_size(rows)
    assert rows <= size <= 1.04 * rows
    assert usual_size(size) == size


def test_there_are_few_usual_sizes():
    assert len({usual_size(rows) for rows in range(1, 8193)}) < 300


def test_filling_adds_a_sequence_and_moves_nothing():
    layout = layout_from_cu_seqlens(1, 67, torch.tensor([0, 60, 67]), None, "cpu")
    tokens = torch.randn(67, 3)
    more, wider = layout.filled(tokens)
    assert torch.equal(more[:67], tokens)
    assert torch.equal(more[67:], tokens[66:])
    assert wider.boundaries() == [(0, 60), (60, 67), (67, 68)]


def test_filling_adds_no_sequence_that_is_longer_than_the_others():
    """Their length decides about the backend."""
    layout = layout_from_cu_seqlens(1, 1027, torch.tensor([0, 3, 6, *range(9, 1027, 3), 1027]), None, "cpu")
    more, wider = layout.filled(torch.randn(1027, 3))
    assert len(more) == 1056 and wider.max_seqlen == layout.max_seqlen == 3
    assert max(end - start for start, end in wider.boundaries()) == 3 and wider.boundaries()[-1][1] == 1056


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12), padded_to=st.sampled_from([0, 16, 64]))
def test_groups_by_length_hold_every_token_once_and_give_it_back(lengths, padded_to):
    total = sum(lengths)
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    layout = layout_from_cu_seqlens(1, total, boundaries, None, "cpu") if total else None
    if layout is None:
        return
    groups = layout.by_length(padded_to)
    tokens = torch.arange(total)
    rows = tokens if groups.places is None else tokens[groups.places]
    assert torch.equal(rows if groups.back is None else rows[groups.back], tokens)
    seen = []
    for part, (number, longest, counts) in zip(
        rows.split([number * longest for number, longest, _ in groups.shapes]), groups.shapes, strict=True
    ):
        counts = torch.full((number,), longest) if counts is None else counts
        assert int(counts.max()) == longest and (padded_to or bool((counts == longest).all()))
        for row, count in zip(part.view(number, longest), counts.tolist(), strict=True):
            start = int(row[0])
            assert row[:count].tolist() == list(range(start, start + count))
            assert (row[count:] == start + count - 1).all()  # its own last token, nobody else's
            assert longest == count or (count <= padded_to and longest - count < max(2, longest / 4))
            seen.append((start, start + count))
    assert sorted(seen) == [(a, b) for a, b in layout.boundaries() if a < b]
