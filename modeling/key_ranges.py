"""
Which keys a query can reach under ALiBi: the bound that lets every backend skip the others without changing results.

Row i of one head has logits z_ij = a_ij - m |i - j| with a_ij = q_i . k_j / sqrt(d) and slope m > 0. Subtracting one
vector from all keys shifts a row of logits by a constant, which softmax ignores; let keys be centred on their mean.
Then a_ij <= |q_i| max_j|k_j| / sqrt(d), and the softmax denominator is at least the sum over any keys already known,
exp(L_i), here those of the query's own block. The probability mass of all keys at distance D or more on both sides is

    sum_j exp(z_ij - L_i) <= 2 exp(U_i - m D) / (1 - exp(-m)),    U_i = |q_i| max_j|k_j| / sqrt(d) - L_i,

a geometric series, so D_i = (U_i + ln(1/eps) + ln(2 / (1 - exp(-m)))) / m bounds it by eps. Norms are maxima, never
averages, so a single far "sink" key widens the range as it must.
"""

import math

import torch
from torch import Tensor

LOCAL_BLOCK = 64  # tokens whose logits give the lower bound of the softmax denominator
REACH_CHUNK = 8192  # tokens looked at together; bounds memory; whole blocks


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to `dtype`: 2^-24 for fp32, 2^-8 for bf16."""
    return torch.finfo(dtype).eps / 2


def query_reach(query: Tensor, key: Tensor, slopes: Tensor, skip_eps: float | None = None) -> Tensor:
    """
    Distance in tokens beyond which keys hold at most `skip_eps` of each query's probability mass.

    Args:
        query, key: (length, heads, head_dim) of one sequence.
        slopes: (heads,).
        skip_eps: None takes the unit roundoff of the queries' dtype; 0 reaches everything.

    Returns:
        (length, heads) float32, at most `length`; `length` where norms are not finite.
    """
    length, heads, head_dim = query.shape
    eps = unit_roundoff(query.dtype) if skip_eps is None else skip_eps
    if eps <= 0:
        return torch.full((length, heads), float(length), device=query.device)
    slope = slopes.float()
    tail = math.log(1 / eps) + torch.log(2 / (1 - torch.exp(-slope)))
    centre = key.mean(dim=0, dtype=torch.float32)
    keys = key.split(REACH_CHUNK)
    key_norm = torch.stack([(part.float() - centre).norm(dim=-1).amax(dim=0) for part in keys]).amax(dim=0)
    parts = []
    for query_part, key_part in zip(query.split(REACH_CHUNK), keys, strict=True):
        query_part = query_part.float() / math.sqrt(head_dim)
        nearby = _local_logsumexp(query_part, key_part.float() - centre, slope)
        parts.append((query_part.norm(dim=-1) * key_norm - nearby + tail) / slope)
    reach = torch.cat(parts)
    return torch.where(torch.isfinite(reach), reach.clamp(0, length), torch.full_like(reach, length))


def band_widths(query: Tensor, key: Tensor, slopes: Tensor, skip_eps: float | None = None) -> list[int]:
    """
    One width per head of one sequence, valid for every query and, since it is the same for all, for gradients of keys
    and values too: no pair farther apart than this matters. Arguments as in `query_reach`; at most length - 1.
    """
    reach = query_reach(query, key, slopes, skip_eps).amax(dim=0).ceil()
    return [min(int(width), query.shape[0] - 1) for width in reach.tolist()]


def key_ranges(
    query: Tensor,
    key: Tensor,
    slopes: Tensor,
    boundaries: list[tuple[int, int]],
    block_size: int,
    skip_eps: float | None = None,
    per_head: bool = False,
) -> tuple[Tensor, Tensor]:
    """
    Contiguous range of keys that each block of queries has to read, for each head.

    Args:
        query, key: (total_tokens, heads, head_dim), sequences end to end.
        boundaries: half-open token interval of each sequence.
        block_size: queries per block; blocks start at a sequence's first token and do not cross its end.
        skip_eps: as in `query_reach`.
        per_head: take one width per head and sequence. Ranges are then symmetric - the keys that read a block are the
            ones it reads - as gradients of keys and values need.

    Returns:
        low, high: int32 (heads, num_blocks), positions among all tokens; every block's range holds the block itself
        and lies inside its sequence. Blocks are numbered sequence by sequence.
    """
    lows, highs = [], []
    for start, end in boundaries:
        length = end - start
        if length == 0:
            continue
        reach = query_reach(query[start:end], key[start:end], slopes, skip_eps)
        num_blocks = -(-length // block_size)
        if per_head:
            widths = reach.amax(dim=0).expand(num_blocks, -1)
        else:
            padded = torch.nn.functional.pad(reach, (0, 0, 0, num_blocks * block_size - length))
            widths = padded.view(num_blocks, block_size, -1).amax(dim=1)
        widths = widths.ceil().to(torch.int64)
        first = start + block_size * torch.arange(num_blocks, device=query.device)[:, None]
        lows.append((first - widths).clamp(min=start))
        highs.append(((first + block_size).clamp(max=end) + widths).clamp(max=end))
    return torch.cat(lows).T.contiguous().int(), torch.cat(highs).T.contiguous().int()


def _local_logsumexp(query: Tensor, key: Tensor, slopes: Tensor) -> Tensor:
    """log of the sum over the keys of each query's own block of LOCAL_BLOCK tokens; query is already scaled."""
    length, heads, head_dim = query.shape
    num_blocks = -(-length // LOCAL_BLOCK)
    missing = num_blocks * LOCAL_BLOCK - length
    blocks = [
        torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, missing))
        .view(num_blocks, LOCAL_BLOCK, heads, head_dim)
        .transpose(1, 2)
        for tensor in (query, key)
    ]
    positions = torch.arange(LOCAL_BLOCK, device=query.device)
    bias = -slopes[:, None, None] * (positions[:, None] - positions).abs()
    logits = torch.matmul(blocks[0], blocks[1].transpose(2, 3)) + bias
    if missing:
        logits[-1, :, :, LOCAL_BLOCK - missing :] = -torch.inf
    return logits.logsumexp(dim=-1).transpose(1, 2).reshape(-1, heads)[:length]
