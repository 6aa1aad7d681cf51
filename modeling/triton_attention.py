"""
ALiBi attention as Triton kernels, forward and backward, for sequences laid end to end.

One program owns ROWS tokens of one head and walks over the range of tokens that can reach them: queries over keys in
the forward pass and for the gradient of the queries, keys over queries for the gradients of keys and values. Ranges
come from `key_ranges`, so time grows almost linearly with the length; programs start longest range first. Softmax is
the running-maximum form of FlashAttention-2 (Dao 2023, algorithms 1 and 2); the bias is computed in registers
from fp32 slopes. No atomics: results and gradients are the same in every run.

The file imports without triton; `unavailable_reason` says why the kernels cannot run.
"""

import functools
import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .key_ranges import key_ranges

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

SKIP_FROM = 1024  # tokens; in a shorter sequence every key is read, finding the ranges would cost more than it saves
LARGEST_HEAD_DIM = 128

# (head_dim up to, bytes per number) -> tokens owned by a program, the same in all passes because they share the ranges,
# then for forward, query gradient, key and value gradient: tokens per step, warps, pipeline stages. The largest tiles
# that compile for sm_80 and sm_90 without register spills in at most 99 KB of shared memory (what an RTX 3090 has).
TILES = {
    (64, 2): (128, (64, 8, 3), (64, 8, 2), (64, 8, 2)),
    (128, 2): (64, (32, 4, 2), (32, 4, 2), (32, 8, 1)),
    (64, 4): (64, (32, 8, 1), (16, 8, 1), (32, 8, 1)),
    (128, 4): (16, (16, 8, 1), (16, 8, 1), (16, 8, 1)),
}


def unavailable_reason() -> str | None:
    """Why the kernels cannot run in this installation, or None if they can."""
    if triton is None:
        return "the package triton is not installed; install triton or use attn_implementation='auto'"
    return None


def is_interpreted() -> bool:
    """True when triton was imported under TRITON_INTERPRET=1: the kernels then run on CPU tensors, slowly."""
    return triton is not None and not isinstance(_forward_kernel, triton.runtime.JITFunction)


def triton_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    boundaries: list[tuple[int, int]],
    dropout_p: float = 0.0,
    skip_eps: float | None = None,
) -> Tensor:
    """
    Symmetric ALiBi attention of every sequence to itself; differentiable in query, key and value.

    Args:
        query, key, value: (total_tokens, heads, head_dim), fp16, bf16 or fp32 on a CUDA device; views into one fused
            tensor are read in place.
        slopes: (heads,), not negative.
        boundaries: half-open token interval of each sequence; together they hold every token once, in order. Empty
            sequences are allowed.
        dropout_p: dropout of the attention probabilities; the mask is drawn from torch's CPU generator.
        skip_eps: probability mass that a query may lose by skipped keys; None takes the unit roundoff of the dtype,
            0 skips nothing.

    Returns:
        (total_tokens, heads, head_dim), contiguous.

    Raises:
        ImportError: triton is not installed.
        ValueError: a device, dtype, shape or boundaries that the kernels cannot work on.
    """
    _check_inputs(query, key, value, dropout_p)
    if query.shape[0] == 0:
        return query + key + value  # as empty as they are, and differentiable
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    slopes = slopes.detach().to(query.device, torch.float32).contiguous()
    work = _work(query.detach(), key.detach(), slopes, tuple(boundaries), skip_eps, symmetric=needs_gradient)
    seed = int(torch.randint(2**62, ())) if dropout_p > 0 else 0
    return _TritonAttention.apply(query, key, value, slopes, work, dropout_p, seed)


def _check_inputs(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> None:
    if problem := unavailable_reason():
        raise ImportError(f"attn_implementation='alibi_triton' cannot run: {problem}")
    if query.device.type != "cuda" and not is_interpreted():
        raise ValueError(
            f"attn_implementation='alibi_triton' runs on CUDA only, the tensors are on {query.device.type}; "
            "use model.set_attn_implementation('auto')"
        )
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"attn_implementation='alibi_triton' computes in fp16, bf16 or fp32, the model is in {query.dtype}"
        )
    if not query.shape == key.shape == value.shape or query.dim() != 3:
        raise ValueError(
            "query, key and value must all be (total_tokens, heads, head_dim); "
            f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value differ in dtype: {query.dtype}, {key.dtype}, {value.dtype}")
    if query.shape[2] > LARGEST_HEAD_DIM:
        raise ValueError(
            f"attn_implementation='alibi_triton' supports head_dim up to {LARGEST_HEAD_DIM}, got {query.shape[2]}"
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and below 1")


def _tiles(head_dim: int, dtype: torch.dtype):
    """Row of TILES for a head_dim and dtype."""
    return TILES[64 if head_dim <= 64 else 128, dtype.itemsize]


@functools.lru_cache(maxsize=16)  # every layer of a model asks for the same
def _dense_work(boundaries: tuple[tuple[int, int], ...], total: int, heads: int, rows: int, device: torch.device):
    """
    Work of attention that skips nothing, see `_work`; also the first block of each sequence, as a list.

    Raises:
        ValueError: boundaries that are not one interval after the other from 0 to `total`.
    """
    ends = [0, *(end for _, end in boundaries)]
    if [start for start, _ in boundaries] != ends[:-1] or ends != sorted(ends) or ends[-1] != total:
        raise ValueError(f"sequence boundaries must follow each other from 0 to {total} tokens; got {boundaries[:8]}")
    blocks = [(first, start, end) for start, end in boundaries for first in range(start, end, rows)]
    first_blocks = [0]
    for start, end in boundaries:
        first_blocks.append(first_blocks[-1] + -(-(end - start) // rows))
    with torch.inference_mode(False):  # the cache outlives an inference_mode block
        first, start, end = torch.tensor(blocks, dtype=torch.int32).T.contiguous().to(device)
        low, high = start.repeat(heads, 1), end.repeat(heads, 1)
        order = _longest_first(low, high)
    return (first, end, low, high, order), first_blocks


def _longest_first(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).flatten().argsort(descending=True, stable=True).int()


def _work(query: Tensor, key: Tensor, slopes: Tensor, boundaries: tuple, skip_eps: float | None, symmetric: bool):
    """
    What the programs do, as int32 tensors.

    Returns:
        first, end: (num_blocks,), first token of each block and end of its sequence.
        low, high: (heads, num_blocks), the range each block reads. Symmetric ranges serve gradients too: the tokens
            that a block reads are the ones that read it.
        order: (heads * num_blocks,), longest range first.
    """
    rows = _tiles(query.shape[2], query.dtype)[0]
    work, first_blocks = _dense_work(boundaries, query.shape[0], query.shape[1], rows, query.device)
    long = [index for index, (start, end) in enumerate(boundaries) if end - start >= SKIP_FROM]
    if skip_eps == 0 or not long:
        return work
    first, end, low, high, _ = work
    low, high = low.clone(), high.clone()
    for index in long:
        blocks = slice(first_blocks[index], first_blocks[index + 1])
        low[:, blocks], high[:, blocks] = key_ranges(
            query, key, slopes, [boundaries[index]], rows, skip_eps, per_head=symmetric
        )
    return first, end, low, high, _longest_first(low, high)


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, slopes, work, dropout_p, seed):
        query, key, value = (_with_contiguous_rows(tensor) for tensor in (query, key, value))
        output = query.new_empty(query.shape)
        # Of each row of logits: the maximum, and log2 of the sum of exp(logit - maximum).
        maxima, log_sums = query.new_empty(2, query.shape[1], query.shape[0], dtype=torch.float32)
        _launch(_forward_kernel, 1, (query, key, value, output), (maxima, log_sums), slopes, work, dropout_p, seed)
        ctx.save_for_backward(query, key, value, slopes, output, maxima, log_sums)
        ctx.work, ctx.dropout_p, ctx.seed = work, dropout_p, seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, slopes, output, maxima, log_sums = ctx.saved_tensors
        grad_output = _with_contiguous_rows(grad_output)
        grad_query, grad_key, grad_value = (query.new_empty(query.shape) for _ in range(3))
        row_sums = torch.empty_like(maxima)  # of probability * its gradient; the first kernel writes, the next reads
        common = (slopes, ctx.work, ctx.dropout_p, ctx.seed)
        _launch(
            _query_gradient_kernel,
            2,
            (query, key, value, output, grad_output, grad_query),
            (maxima, log_sums, row_sums),
            *common,
        )
        _launch(
            _key_value_gradient_kernel,
            3,
            (query, key, value, grad_output, grad_key, grad_value),
            (maxima, log_sums, row_sums),
            *common,
        )
        return grad_query, grad_key, grad_value, None, None, None, None


def _with_contiguous_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _launch(kernel, tile_pass: int, tensors, row_vectors, slopes, work, dropout_p: float, seed: int) -> None:
    """
    Run one program per (head, block).

    Args:
        tile_pass: position of the pass in a row of TILES.
        tensors: (total_tokens, heads, head_dim) each; passed with their token and head strides.
        row_vectors: (heads, total_tokens) fp32 each, contiguous.
    """
    query = tensors[0]
    total_tokens, _, head_dim = query.shape
    tiles = _tiles(head_dim, query.dtype)
    columns, num_warps, num_stages = tiles[tile_pass]
    first, *_, order = work
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    with torch.cuda.device_of(query):
        kernel[(order.numel(),)](
            *tensors,
            *row_vectors,
            slopes,
            *work,
            *strides,
            total_tokens,
            first.numel(),
            1 / math.sqrt(head_dim),
            dropout_p,
            seed,
            HEAD_DIM=head_dim,
            PADDED_DIM=max(16, triton.next_power_of_2(head_dim)),
            ROWS=tiles[0],
            COLUMNS=columns,
            DROPOUT=dropout_p > 0,
            UPCAST=is_interpreted() and query.dtype == torch.bfloat16,
            num_warps=num_warps,
            num_stages=num_stages,
            enable_fp_fusion=True,
        )


if triton is not None:
    # In the kernels: rows are the tokens that a program owns, columns those it walks over. Positions are fp32, counted
    # from the first row: exact up to 2^24 tokens. Token indices are multiplied by strides in 64 bits.

    @triton.jit
    def _tile(pointer, token_stride, start, end, LENGTH: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
        """Addresses (LENGTH, PADDED) of one head from token `start` on; mask False from token `end` and HEAD_DIM on."""
        offsets = tl.arange(0, LENGTH)
        dims = tl.arange(0, PADDED)
        mask = (start + offsets < end)[:, None]
        if PADDED != HEAD_DIM:
            mask = mask & (dims < HEAD_DIM)[None, :]
        stride = tl.cast(token_stride, tl.int64)
        return pointer + start * stride + (offsets[:, None] * stride + dims[None, :]), mask

    @triton.jit
    def _load(pointer, token_stride, start, end, LENGTH: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
        """The numbers of a tile, zeros where its mask is False."""
        tile, mask = _tile(pointer, token_stride, start, end, LENGTH, HEAD_DIM, PADDED)
        return tl.load(tile, mask=mask, other=0.0)

    @triton.jit
    def _store(
        pointer, numbers, token_stride, start, end, LENGTH: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr
    ):
        tile, mask = _tile(pointer, token_stride, start, end, LENGTH, HEAD_DIM, PADDED)
        tl.store(tile, numbers.to(pointer.dtype.element_ty), mask=mask)

    @triton.jit
    def _dot(a, b, accumulator, UPCAST: tl.constexpr):
        """accumulator + a @ b in fp32; the interpreter would multiply the bit patterns of bf16, hence UPCAST."""
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        return tl.dot(a, b, accumulator, input_precision="ieee")

    @triton.jit
    def _products(a, b, LENGTH_A: tl.constexpr, LENGTH_B: tl.constexpr, UPCAST: tl.constexpr):
        """(LENGTH_A, LENGTH_B) products of the rows of a with the rows of b."""
        return _dot(a, tl.trans(b), tl.zeros((LENGTH_A, LENGTH_B), tl.float32), UPCAST)

    @triton.jit
    def _slope_of(slopes, head):
        """Slope of a head; above zero, so that a position at infinity has no weight."""
        return tl.maximum(tl.load(slopes + head), 1e-30)

    @triton.jit
    def _positions(start, first, end, LENGTH: tl.constexpr):
        """fp32 positions of tokens relative to `first`; tokens from `end` on stand at infinity."""
        tokens = start + tl.arange(0, LENGTH)
        return tl.where(tokens < end, (tokens - first).to(tl.float32), float("inf"))

    @triton.jit
    def _logits(products, row_positions, column_positions, slope, scale):
        """Scaled and biased logits; one fused multiply-add after the bias."""
        distance = tl.abs(column_positions[None, :] - row_positions[:, None])
        return products * scale - slope * distance

    @triton.jit
    def _softmax(logits, maximum, log_sum, NUMBER_TYPE: tl.constexpr):
        """exp(logits - maximum) / 2^log_sum. For fp32 the large numbers are subtracted before anything is rounded."""
        if NUMBER_TYPE == tl.float32:
            return tl.exp2((logits - maximum) * 1.4426950408889634 - log_sum)
        return tl.exp2(logits * 1.4426950408889634 - (maximum * 1.4426950408889634 + log_sum))

    @triton.jit
    def _kept(queries, keys, head, seed, dropout_p):
        """
        Which probabilities dropout keeps. A random number belongs to (seed, query token, key token, head), each a
        counter of its own, so that every pass draws the same and no product of lengths can overflow.
        """
        zero = (queries + keys) * 0
        random, _, _, _ = tl.philox(seed, queries + zero, keys + zero, head + zero, zero)
        return tl.uint_to_uniform_float(random) >= dropout_p

    @triton.jit(do_not_specialize=["total_tokens", "num_blocks", "seed"])
    def _forward_kernel(
        query,
        key,
        value,
        output,
        maxima,
        log_sums,
        slopes,
        block_first,
        sequence_end,
        range_low,
        range_high,
        order,
        query_token_stride,
        query_head_stride,
        key_token_stride,
        key_head_stride,
        value_token_stride,
        value_head_stride,
        output_token_stride,
        output_head_stride,
        total_tokens,
        num_blocks,
        scale,
        dropout_p,
        seed,
        HEAD_DIM: tl.constexpr,
        PADDED_DIM: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DROPOUT: tl.constexpr,
        UPCAST: tl.constexpr,
    ):
        item = tl.load(order + tl.program_id(0))
        head = (item // num_blocks).to(tl.int64)
        first = tl.load(block_first + item % num_blocks)
        end = tl.load(sequence_end + item % num_blocks)
        low = tl.load(range_low + item)
        high = tl.load(range_high + item)
        slope = _slope_of(slopes, head)
        query_rows = query + head * query_head_stride
        q = _load(query_rows, query_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        rows = tl.arange(0, ROWS)
        positions = rows.to(tl.float32)

        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        context = tl.zeros((ROWS, PADDED_DIM), tl.float32)
        for start in range(low, high, COLUMNS):
            k = _load(key + head * key_head_stride, key_token_stride, start, end, COLUMNS, HEAD_DIM, PADDED_DIM)
            v = _load(value + head * value_head_stride, value_token_stride, start, end, COLUMNS, HEAD_DIM, PADDED_DIM)
            logits = _logits(
                _products(q, k, ROWS, COLUMNS, UPCAST),
                positions,
                _positions(start, first, end, COLUMNS),
                slope,
                scale,
            )
            larger = tl.maximum(maximum, tl.max(logits, axis=1))
            probabilities = _softmax(logits, larger[:, None], 0.0, query.dtype.element_ty)
            correction = _softmax(maximum, larger, 0.0, query.dtype.element_ty)
            total = total * correction + tl.sum(probabilities, axis=1)
            if DROPOUT:
                queries, keys = first + rows, start + tl.arange(0, COLUMNS)
                kept = _kept(queries[:, None], keys[None, :], head.to(tl.int32), seed, dropout_p)
                probabilities = tl.where(kept, probabilities / (1 - dropout_p), 0.0)
            context = _dot(probabilities.to(v.dtype), v, context * correction[:, None], UPCAST)
            maximum = larger

        context = context / total[:, None]
        tile = output + head * output_head_stride
        _store(tile, context, output_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        row_offsets = head * total_tokens + first + rows
        tl.store(maxima + row_offsets, maximum, mask=first + rows < end)
        tl.store(log_sums + row_offsets, tl.log2(total), mask=first + rows < end)

    @triton.jit(do_not_specialize=["total_tokens", "num_blocks", "seed"])
    def _query_gradient_kernel(
        query,
        key,
        value,
        output,
        grad_output,
        grad_query,
        maxima,
        log_sums,
        row_sums,
        slopes,
        block_first,
        sequence_end,
        range_low,
        range_high,
        order,
        query_token_stride,
        query_head_stride,
        key_token_stride,
        key_head_stride,
        value_token_stride,
        value_head_stride,
        output_token_stride,
        output_head_stride,
        grad_output_token_stride,
        grad_output_head_stride,
        grad_query_token_stride,
        grad_query_head_stride,
        total_tokens,
        num_blocks,
        scale,
        dropout_p,
        seed,
        HEAD_DIM: tl.constexpr,
        PADDED_DIM: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DROPOUT: tl.constexpr,
        UPCAST: tl.constexpr,
    ):
        item = tl.load(order + tl.program_id(0))
        head = (item // num_blocks).to(tl.int64)
        first = tl.load(block_first + item % num_blocks)
        end = tl.load(sequence_end + item % num_blocks)
        low = tl.load(range_low + item)
        high = tl.load(range_high + item)
        slope = _slope_of(slopes, head)
        query_rows = query + head * query_head_stride
        output_rows = output + head * output_head_stride
        grad_rows = grad_output + head * grad_output_head_stride
        q = _load(query_rows, query_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        o = _load(output_rows, output_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        do = _load(grad_rows, grad_output_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        rows = tl.arange(0, ROWS)
        positions = rows.to(tl.float32)
        inside = first + rows < end
        row_offsets = head * total_tokens + first + rows
        maximum = tl.load(maxima + row_offsets, mask=inside, other=float("inf"))
        log_sum = tl.load(log_sums + row_offsets, mask=inside, other=0.0)
        row_sum = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
        tl.store(row_sums + row_offsets, row_sum, mask=inside)

        dq = tl.zeros((ROWS, PADDED_DIM), tl.float32)
        for start in range(low, high, COLUMNS):
            k = _load(key + head * key_head_stride, key_token_stride, start, end, COLUMNS, HEAD_DIM, PADDED_DIM)
            v = _load(value + head * value_head_stride, value_token_stride, start, end, COLUMNS, HEAD_DIM, PADDED_DIM)
            logits = _logits(
                _products(q, k, ROWS, COLUMNS, UPCAST),
                positions,
                _positions(start, first, end, COLUMNS),
                slope,
                scale,
            )
            probabilities = _softmax(logits, maximum[:, None], log_sum[:, None], query.dtype.element_ty)
            grad_probabilities = _products(do, v, ROWS, COLUMNS, UPCAST)
            if DROPOUT:
                queries, keys = first + rows, start + tl.arange(0, COLUMNS)
                kept = _kept(queries[:, None], keys[None, :], head.to(tl.int32), seed, dropout_p)
                grad_probabilities = tl.where(kept, grad_probabilities / (1 - dropout_p), 0.0)
            grad_logits = probabilities * (grad_probabilities - row_sum[:, None])
            dq = _dot(grad_logits.to(k.dtype), k, dq, UPCAST)

        tile = grad_query + head * grad_query_head_stride
        _store(tile, dq * scale, grad_query_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)

    @triton.jit(do_not_specialize=["total_tokens", "num_blocks", "seed"])
    def _key_value_gradient_kernel(
        query,
        key,
        value,
        grad_output,
        grad_key,
        grad_value,
        maxima,
        log_sums,
        row_sums,
        slopes,
        block_first,
        sequence_end,
        range_low,
        range_high,
        order,
        query_token_stride,
        query_head_stride,
        key_token_stride,
        key_head_stride,
        value_token_stride,
        value_head_stride,
        grad_output_token_stride,
        grad_output_head_stride,
        grad_key_token_stride,
        grad_key_head_stride,
        grad_value_token_stride,
        grad_value_head_stride,
        total_tokens,
        num_blocks,
        scale,
        dropout_p,
        seed,
        HEAD_DIM: tl.constexpr,
        PADDED_DIM: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DROPOUT: tl.constexpr,
        UPCAST: tl.constexpr,
    ):
        item = tl.load(order + tl.program_id(0))
        head = (item // num_blocks).to(tl.int64)
        first = tl.load(block_first + item % num_blocks)
        end = tl.load(sequence_end + item % num_blocks)
        low = tl.load(range_low + item)
        high = tl.load(range_high + item)
        slope = _slope_of(slopes, head)
        k = _load(key + head * key_head_stride, key_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        v = _load(value + head * value_head_stride, value_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        rows = tl.arange(0, ROWS)
        columns = tl.arange(0, COLUMNS)
        positions = rows.to(tl.float32)

        dk = tl.zeros((ROWS, PADDED_DIM), tl.float32)
        dv = tl.zeros((ROWS, PADDED_DIM), tl.float32)
        for start in range(low, high, COLUMNS):
            query_columns = query + head * query_head_stride
            grad_columns = grad_output + head * grad_output_head_stride
            q = _load(query_columns, query_token_stride, start, end, COLUMNS, HEAD_DIM, PADDED_DIM)
            do = _load(grad_columns, grad_output_token_stride, start, end, COLUMNS, HEAD_DIM, PADDED_DIM)
            inside = start + columns < end
            column_offsets = head * total_tokens + start + columns
            maximum = tl.load(maxima + column_offsets, mask=inside, other=float("inf"))
            log_sum = tl.load(log_sums + column_offsets, mask=inside, other=0.0)
            row_sum = tl.load(row_sums + column_offsets, mask=inside, other=0.0)
            logits = _logits(
                _products(k, q, ROWS, COLUMNS, UPCAST),
                positions,
                (start - first + columns).to(tl.float32),
                slope,
                scale,
            )
            probabilities = _softmax(logits, maximum[None, :], log_sum[None, :], query.dtype.element_ty)
            grad_probabilities = _products(v, do, ROWS, COLUMNS, UPCAST)
            kept_probabilities = probabilities
            if DROPOUT:
                kept = _kept((start + columns)[None, :], (first + rows)[:, None], head.to(tl.int32), seed, dropout_p)
                kept_probabilities = tl.where(kept, probabilities / (1 - dropout_p), 0.0)
                grad_probabilities = tl.where(kept, grad_probabilities / (1 - dropout_p), 0.0)
            dv = _dot(kept_probabilities.to(do.dtype), do, dv, UPCAST)
            grad_logits = probabilities * (grad_probabilities - row_sum[None, :])
            dk = _dot(grad_logits.to(q.dtype), q, dk, UPCAST)

        key_tile = grad_key + head * grad_key_head_stride
        value_tile = grad_value + head * grad_value_head_stride
        _store(key_tile, dk * scale, grad_key_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
        _store(value_tile, dv, grad_value_token_stride, first, end, ROWS, HEAD_DIM, PADDED_DIM)
