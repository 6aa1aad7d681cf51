"""What key ranges promise: they hold every key that matters, for every block, head and sequence."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.alibi_attention import alibi_slopes
from modeling.key_ranges import band_widths, key_ranges, query_reach, unit_roundoff

from .test_alibi_attention import DATA_FAMILIES, family, slopes_of

HEADS = 4


def boundaries_of(lengths):
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def blocks_of(boundaries, block_size):
    return [
        (first, min(first + block_size, end), start, end)
        for start, end in boundaries
        for first in range(start, end, block_size)
    ]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(DATA_FAMILIES),
    lengths=st.lists(st.integers(0, 500), min_size=1, max_size=4).filter(any),
    block_size=st.sampled_from([16, 64, 100]),
    per_head=st.booleans(),
    skip_eps=st.sampled_from([2**-24, 2**-11, 1e-3]),
    seed=st.integers(0, 2**31),
)
def test_mass_outside_the_range_is_below_skip_eps(name, lengths, block_size, per_head, skip_eps, seed):
    total = sum(lengths)
    query, key, _ = family(name, total, HEADS, 16, seed)
    boundaries = boundaries_of(lengths)
    low, high = key_ranges(query, key, slopes_of(HEADS), boundaries, block_size, skip_eps, per_head)
    blocks = blocks_of(boundaries, block_size)
    assert low.shape == high.shape == (HEADS, len(blocks))
    for number, (first, last, start, end) in enumerate(blocks):
        positions = torch.arange(start, end)
        for head, slope in enumerate(alibi_slopes(HEADS)):
            lowest, highest = int(low[head, number]), int(high[head, number])
            assert start <= lowest <= first and last <= highest <= end
            logits = query[first:last, head].double() @ key[start:end, head].double().T / 4
            logits -= slope * (torch.arange(first, last)[:, None] - positions).abs()
            outside = (positions < lowest) | (positions >= highest)
            assert (logits.softmax(dim=1) * outside).sum(dim=1).max() <= skip_eps


@given(length=st.integers(1, 600), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_per_head_ranges_are_symmetric(length, seed):
    """The blocks that read a block are the ones it reads: what gradients of keys and values need."""
    query, key, _ = family("random", length, HEADS, 16, seed)
    low, high = key_ranges(query, key, slopes_of(HEADS), [(0, length)], 32, 1e-2, per_head=True)
    starts = torch.arange(0, length, 32)
    ends = (starts + 32).clamp(max=length)
    reads = (low[:, :, None] < ends) & (high[:, :, None] > starts)
    assert torch.equal(reads, reads.transpose(1, 2))


def test_ranges_of_a_sequence_do_not_depend_on_its_neighbours():
    query, key, _ = family("trained-like", 700, HEADS, 16, seed=0)
    together = key_ranges(query, key, slopes_of(HEADS), [(0, 300), (300, 700)], 64)
    alone = key_ranges(query[300:], key[300:], slopes_of(HEADS), [(0, 400)], 64)
    assert torch.equal(together[0][:, 5:], alone[0] + 300)
    assert torch.equal(together[1][:, 5:], alone[1] + 300)


def test_one_far_key_with_a_large_norm_widens_the_band():
    query, key, _ = family("random", 4000, HEADS, 16, seed=0)
    before = band_widths(query, key, slopes_of(HEADS))
    key[-1] *= 50
    after = band_widths(query, key, slopes_of(HEADS))
    assert all(wide > narrow for wide, narrow in zip(after[:2], before[:2], strict=True))


def test_a_bias_common_to_all_keys_changes_nothing():
    query, key, _ = family("random", 2000, HEADS, 16, seed=0)
    shifted = band_widths(query, key + 10 * torch.randn(1, HEADS, 16), slopes_of(HEADS))
    for width, expected in zip(shifted, band_widths(query, key, slopes_of(HEADS)), strict=True):
        assert abs(width - expected) <= 1


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["query", "key"])
def test_norms_that_are_not_finite_give_the_dense_range(poison, where):
    query, key, _ = family("random", 1000, HEADS, 16, seed=0)
    (query if where == "query" else key)[500, 0, 3] = poison
    low, high = key_ranges(query, key, slopes_of(HEADS), [(0, 1000)], 64)
    block = slice(None) if where == "key" else slice(500 // 64, 500 // 64 + 1)
    assert (low[0, block] == 0).all() and (high[0, block] == 1000).all()


def test_default_eps_is_the_unit_roundoff():
    assert unit_roundoff(torch.float32) == 2**-24
    assert unit_roundoff(torch.bfloat16) == 2**-8
    query, key, _ = family("random", 1000, HEADS, 16, seed=0)
    default = query_reach(query, key, slopes_of(HEADS))
    assert torch.equal(default, query_reach(query, key, slopes_of(HEADS), 2**-24))
    assert (query_reach(query, key, slopes_of(HEADS), 0.0) == 1000).all()
    assert math.isfinite(float(default.max()))
