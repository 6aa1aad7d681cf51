"""
Symmetric ALiBi attention over sequences laid end to end, by several backends that give the same result.

    logit(i, j) = q_i . k_j / sqrt(head_dim) - slope_h * |i - j|        (DNABERT-2 section 3.2; Press et al. 2022)

backend             what it does                                                       memory
eager               plain matrix products, the reference; the only one that returns    length^2
                    attention probabilities
sdpa                torch's scaled_dot_product_attention; the bias is a view of one    length
                    vector of 2 * length - 1 distances (on CUDA a copy: length^2)
alibi_banded        sdpa on a band of keys around each query: keys so far away that    length
                    their probability is below the rounding of the dtype are skipped   (CUDA: of heads
                    that skip nothing length^2)
flash_attention_2   the flash-attn package with alibi_slopes (CUDA, fp16 or bf16)      length
alibi_triton        our own kernels with the same skipping (CUDA; asked for by name)   length

`choose_backend` is the table that decides when none is asked for. A backend that was asked for runs or raises.
"""

import functools
import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .key_ranges import band_widths
from .memory import is_out_of_memory
from .short_attention import longest_short_sequence, short_attention
from .triton_attention import triton_attention
from .triton_attention import unavailable_reason as triton_problem
from .unpadding import SequenceLayout

BACKENDS = ("auto", "eager", "sdpa", "alibi_banded", "flash_attention_2", "alibi_triton")

# Backends of transformers that would run without the bias, and so give wrong numbers without an error.
NO_ALIBI = {
    "flash_attention_3": "FlashAttention-3 takes no alibi_slopes, so every position would look equally near",
    "flash_attention_4": "FlashAttention-4 takes no alibi_slopes, so every position would look equally near",
    "flex_attention": "transformers passes it one bias for all heads, but every head has a slope of its own",
}
HUB_KERNEL = "transformers calls kernels of the Hub without alibi_slopes, so every position would look equally near"

BANDED_FROM = 1024  # tokens; below it one dense sdpa call costs less than many banded ones
SHORTEST_BANDED = 128  # tokens; two chunks, the least that a band can cut


def alibi_slopes(num_heads: int) -> list[float]:
    """
    Slope of each head: 2^(-8/n), 2^(-16/n), ... for a power of two n; for other counts the slopes of the next lower
    power of two, then every second slope of the next higher one (Press et al. 2022, as in the released DNABERT-2).
    """

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]

    lower = 2 ** int(math.log2(num_heads))
    return geometric(lower) + geometric(2 * lower)[0::2][: num_heads - lower]


def alibi_bias(slopes: Tensor, length: int) -> Tensor:
    """Dense bias (heads, length, length) of the reference backend: -slope * |i - j|, in the dtype of `slopes`."""
    positions = torch.arange(length, device=slopes.device)
    distance = (positions[:, None] - positions[None, :]).abs().to(slopes.dtype)
    return -slopes[:, None, None] * distance


def choose_backend(device: torch.device | str, dtype: torch.dtype, max_seqlen: int) -> str:
    """
    The backend that runs when none is asked for.

    device   dtype        longest sequence   backend
    cuda     fp16, bf16   any                flash_attention_2 if a flash-attn is installed that honours alibi_slopes
    any      any          < 1,024 tokens     sdpa
    any      any          >= 1,024 tokens    alibi_banded

    alibi_triton is never chosen: its speed has not been measured on a GPU yet.
    """
    device = torch.device(device)
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        if _flash_attention_2_function()[0] is not None and alibi_problem(device, dtype) is None:
            return "flash_attention_2"
    return "sdpa" if max_seqlen < BANDED_FROM else "alibi_banded"


def check_backend(name: str | None) -> str:
    """
    The backend's name if this installation has it ("auto" for None).

    Raises:
        ValueError: no such backend, or one that would leave ALiBi out. ImportError: the backend's package is missing or
        has no ALiBi.
    """
    if name is None:
        return "auto"
    if name in NO_ALIBI or "/" in name:
        reason = NO_ALIBI.get(name, HUB_KERNEL)
        raise ValueError(f"attn_implementation={name!r} is refused: {reason}; use 'auto'")
    if name not in BACKENDS:
        raise ValueError(f"attn_implementation={name!r} is unknown to StrandBERT; choose one of {', '.join(BACKENDS)}")
    if name == "flash_attention_2" and (problem := _flash_attention_2_function()[1]):
        raise ImportError(f"attn_implementation='flash_attention_2' cannot run: {problem}")
    if name == "alibi_triton" and (problem := triton_problem()):
        raise ImportError(f"attn_implementation='alibi_triton' cannot run: {problem}")
    return name


@functools.cache
def _flash_attention_2_function():
    """(flash_attn_varlen_func, None), or (None, the reason why it cannot be used)."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return None, "the package flash-attn is not installed; use attn_implementation='auto' or install flash-attn"
        return None, f"flash-attn is installed but does not import ({error})"
    except Exception as error:  # a broken build fails in many ways: ImportError, OSError, RuntimeError
        return None, f"flash-attn is installed but does not import ({error})"
    if "alibi_slopes" not in inspect.signature(flash_attn_varlen_func).parameters:
        return None, "the installed flash-attn has no alibi_slopes (2.4 or newer has); without them results are wrong"
    return flash_attn_varlen_func, None


def alibi_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    layout: SequenceLayout,
    backend: str = "auto",
    dropout_p: float = 0.0,
    skip_eps: float | None = None,
) -> Tensor:
    """
    Attention of every sequence to itself, on the backend asked for.

    Args:
        query, key, value: (total_tokens, heads, head_dim).
        slopes: (heads,), fp32.
        layout: where each sequence lies.
        backend: one of BACKENDS; "auto" asks `choose_backend`. Compiled and exported graphs hold sdpa with a dense
            bias, whose shapes do not depend on values.
        dropout_p: dropout of the attention probabilities.
        skip_eps: probability mass that a query may lose by skipped keys; None takes the unit roundoff of the dtype,
            0 skips nothing. Read by alibi_banded and alibi_triton.

    Returns:
        (total_tokens, heads, head_dim)

    Raises:
        ValueError: unknown backend, or one that cannot run on this device or dtype; the message says why.
        ImportError: the backend's package is missing.
    """
    backend = check_backend(backend)
    if layout.grid_mask is not None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        if backend not in ("auto", "eager", "sdpa"):
            raise ValueError(f"attn_implementation={backend!r} cannot be compiled or exported; use 'auto' or 'sdpa'")
        return _traced_attention(query, key, value, slopes, layout, dropout_p)
    if backend == "auto":
        backend = choose_backend(query.device, query.dtype, layout.max_seqlen)
    if query.shape[0] == 0:
        return torch.zeros_like(query)
    if backend == "eager":
        return eager_attention(query, key, value, slopes, layout, dropout_p)[0]
    if backend == "sdpa":
        return sdpa_attention(query, key, value, slopes, layout, dropout_p)
    if backend == "alibi_banded":
        return banded_attention(query, key, value, slopes, layout, dropout_p, skip_eps)
    if backend == "alibi_triton":
        return triton_attention(query, key, value, slopes, layout.boundaries(), dropout_p, skip_eps)
    return flash_attention_2(query, key, value, slopes, layout, dropout_p)


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    layout: SequenceLayout,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """
    The reference: dense, with the arithmetic of the released DNABERT-2 code; softmax in fp32 (fp64 for fp64 input).

    Returns:
        output (total_tokens, heads, head_dim) and probabilities (num_sequences, heads, max_seqlen, max_seqlen), the
        sequences standing at the left.
    """
    compute_dtype = torch.promote_types(query.dtype, torch.float32)
    positions, is_token = layout.sequence_grid()
    q, k, v = (tensor[positions].transpose(1, 2) for tensor in (query, key, value))
    logits = torch.matmul(q, k.transpose(2, 3)).to(compute_dtype) / math.sqrt(query.shape[-1])
    logits = logits + alibi_bias(slopes.to(compute_dtype), layout.max_seqlen)
    logits = logits.masked_fill(~is_token[:, None, None, :], torch.finfo(compute_dtype).min)
    probabilities = logits.softmax(dim=-1).to(query.dtype)
    context = torch.matmul(F.dropout(probabilities, dropout_p, training=dropout_p > 0), v)
    return context.transpose(1, 2)[is_token], probabilities


def attentions_on_grid(probabilities: Tensor, layout: SequenceLayout) -> Tensor:
    """
    Probabilities of `eager_attention` -> (batch_size, heads, length, length) as the caller's batch lies; exact zeros on
    and to padding, and between packed sequences.
    """
    if layout.uniform:
        return probabilities
    grid = probabilities.new_zeros(layout.batch_size, layout.length, layout.length, probabilities.shape[1])
    for sequence, (start, end) in enumerate(layout.boundaries()):
        if start == end:
            continue
        flat = torch.arange(start, end, device=grid.device) if layout.indices is None else layout.indices[start:end]
        row, columns = int(flat[0]) // layout.length, flat % layout.length
        weights = probabilities[sequence, :, : end - start, : end - start]
        grid[row, columns[:, None], columns[None, :]] = weights.permute(1, 2, 0)
    return grid.permute(0, 3, 1, 2)


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, layout: SequenceLayout, dropout_p: float = 0.0
) -> Tensor:
    """
    Dense attention by torch's fused kernel; arguments and result as in `alibi_attention`. The ALiBi bias takes memory
    linear in the length on a CPU; on CUDA, whose kernels want aligned rows, it is copied to (heads, length, length).
    """
    distances = _distance_vector(slopes, layout.max_seqlen, query)
    return _by_length(
        lambda *tensors_and_lengths: _sdpa_toeplitz(distances, dropout_p, *tensors_and_lengths),
        *(query, key, value),
        layout,
        longest_short_sequence(query, key, value, dropout_p),
    )


def banded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    layout: SequenceLayout,
    dropout_p: float = 0.0,
    skip_eps: float | None = None,
) -> Tensor:
    """
    Attention over a band of keys around each query, as wide per head and sequence as `band_widths` proves necessary.

    Heads whose band spans the sequence are computed densely together, each other head by one batched sdpa call over
    overlapping key bands plus one small call for each chunk at the ends.
    """
    distances = _distance_vector(slopes, layout.max_seqlen, query)

    def attend(q, k, v, lengths):
        if lengths is not None or q.shape[1] < SHORTEST_BANDED:
            return _sdpa_toeplitz(distances, dropout_p, q, k, v, lengths)
        return torch.stack(
            [
                _banded_sequence(*tensors, slopes, distances, dropout_p, skip_eps)
                for tensors in zip(q, k, v, strict=True)
            ]
        )

    return _by_length(attend, query, key, value, layout, longest_short_sequence(query, key, value, dropout_p))


def flash_attention_2(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, layout: SequenceLayout, dropout_p: float = 0.0
) -> Tensor:
    """Attention by flash-attn's varlen kernel, which computes the ALiBi bias from fp32 slopes."""
    if query.device.type != "cuda":
        raise ValueError(
            f"attn_implementation='flash_attention_2' runs on CUDA only, the tensors are on {query.device.type}; "
            "use model.set_attn_implementation('auto')"
        )
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attn_implementation='flash_attention_2' computes in fp16 or bf16, the model is in {query.dtype}; "
            "load it with dtype=torch.bfloat16 or use attn_implementation='auto'"
        )
    if problem := alibi_problem(query.device, query.dtype):
        raise ValueError(
            f"attn_implementation='flash_attention_2' is refused: {problem}; use model.set_attn_implementation('auto')"
        )
    return _call_flash_attention_2(query, key, value, slopes, layout, dropout_p)


@functools.cache
def alibi_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """
    Why flash-attn does not give the reference's result on two small sequences; None where it does. Checked once for a
    device and dtype.
    """
    layout = SequenceLayout(1, 96, torch.tensor([0, 64, 96], dtype=torch.int32, device=device), 64, packed=True)
    random = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 96, 4, 64, generator=random).to(device, dtype)
    slopes = torch.tensor(alibi_slopes(4), dtype=torch.float32, device=device)
    with torch.no_grad():
        expected = eager_attention(query.float(), key.float(), value.float(), slopes, layout)[0]
        try:
            found = _call_flash_attention_2(query, key, value, slopes, layout, 0.0).float()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return f"the installed flash-attn does not run on this device ({error})"
    if (found - expected).abs().max() < 0.05:  # bf16 rounds by 0.01; without ALiBi the difference is 2
        return None
    return "the installed flash-attn takes alibi_slopes but its results on this device are not those of ALiBi"


def _call_flash_attention_2(query, key, value, slopes, layout: SequenceLayout, dropout_p: float) -> Tensor:
    flash_attn_varlen_func, _ = _flash_attention_2_function()
    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=layout.cu_seqlens,
        cu_seqlens_k=layout.cu_seqlens,
        max_seqlen_q=layout.max_seqlen,
        max_seqlen_k=layout.max_seqlen,
        dropout_p=dropout_p,
        softmax_scale=1.0 / math.sqrt(query.shape[-1]),
        causal=False,
        alibi_slopes=slopes.float(),
    )


def _distance_vector(slopes: Tensor, length: int, like: Tensor) -> Tensor:
    """(heads, 2 * length - 1): -slope * |distance| for distances -(length - 1) .. length - 1; fp64 for fp64."""
    slopes = slopes.to(torch.promote_types(slopes.dtype, like.dtype))
    distance = torch.arange(-(length - 1), length, device=slopes.device).abs().to(slopes.dtype)
    vector = -slopes[:, None] * distance
    if like.dtype == torch.float64 or like.device.type != "cpu":
        return vector.to(like.dtype)
    return vector.float()  # CPU kernels take an fp32 bias beside bf16 queries: no rounding of the bias


def _toeplitz_view(distances: Tensor, queries: int, keys: int, first: int) -> Tensor:
    """
    (1, heads, queries, keys) view whose entry (i, j) is distances[:, first + i + j].

    A view with entry f(j - i) would need a negative stride, so callers give the queries in reverse order.
    """
    heads, stride = distances.shape[0], distances.stride(0)
    view = distances.as_strided(
        (1, heads, queries, keys), (0, stride, 1, 1), distances.storage_offset() + first * distances.stride(1)
    )
    return view if distances.device.type == "cpu" else view.contiguous()  # CUDA kernels want aligned rows


def _sdpa_toeplitz(
    distances: Tensor, dropout_p: float, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """
    Dense attention of (batch, length, heads, head_dim); distances centred on index (size - 1) / 2. Only
    `short_attention` knows `lengths`.
    """
    length = query.shape[1]
    bias = _toeplitz_view(distances, length, length, (distances.shape[1] + 1) // 2 - length)
    if length <= longest_short_sequence(query, key, value, dropout_p):
        return short_attention(query, key, value, bias[0].flip(1), lengths)
    output = _sdpa(query.flip(1).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), bias, dropout_p)
    return output.transpose(1, 2).flip(1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout_p: float) -> Tensor:
    """torch's kernel outside of autocast, which would copy the bias, a view, to a rounded tensor of its full size."""
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout_p)


def _by_length(attend, query: Tensor, key: Tensor, value: Tensor, layout: SequenceLayout, padded_to: int = 0) -> Tensor:
    """
    Apply `attend`, a function of (sequences, length, heads, head_dim) tensors and of the sequences' lengths (None where
    all are full), to all sequences of one length at once; those of at most `padded_to` tokens with others of nearly
    their length.

    Returns:
        (total_tokens, heads, head_dim)
    """
    if layout.uniform:
        grid = (layout.batch_size, layout.length, *query.shape[1:])
        return attend(query.view(grid), key.view(grid), value.view(grid), None).reshape(query.shape)
    groups = layout.by_length(padded_to)
    tensors = [
        tensor if groups.places is None else tensor.index_select(0, groups.places) for tensor in (query, key, value)
    ]
    sizes = [number * length for number, length, _ in groups.shapes]
    outputs = []
    for parts, (number, length, lengths) in zip(
        zip(*(t.split(sizes) for t in tensors), strict=True), groups.shapes, strict=True
    ):
        outputs.append(attend(*(part.unflatten(0, (number, length)) for part in parts), lengths).flatten(0, 1))
    output = torch.cat(outputs)
    return output if groups.places is None else output.index_select(0, groups.back)


def _banded_sequence(query, key, value, slopes, distances, dropout_p, skip_eps) -> Tensor:
    """All heads of one sequence, (length, heads, head_dim)."""
    length = query.shape[0]
    widths = band_widths(query.detach(), key.detach(), slopes, skip_eps)
    dense = [head for head, width in enumerate(widths) if width + _chunk_of(width) >= length]
    outputs = {}
    if dense:
        heads = slice(None) if len(dense) == len(widths) else dense
        inputs = (tensor[None, :, heads] for tensor in (query, key, value))
        outputs = dict(zip(dense, _sdpa_toeplitz(distances[heads], dropout_p, *inputs)[0].unbind(1), strict=True))
    for head, width in enumerate(widths):
        if head not in outputs:
            outputs[head] = _banded_head(query[:, head], key[:, head], value[:, head], slopes[head], width, dropout_p)
    return torch.stack([outputs[head] for head in range(len(widths))], dim=1)


def _chunk_of(width: int) -> int:
    """Queries that share one band of keys; measured on a CPU: wider bands want larger chunks, within 15 %."""
    return 64 if width < 512 else 128 if width < 2048 else 768


def _banded_head(query: Tensor, key: Tensor, value: Tensor, slope: Tensor, width: int, dropout_p: float) -> Tensor:
    """One head of one sequence, (length, head_dim); keys farther than `width` tokens are not read."""
    length, chunk = query.shape[0], _chunk_of(width)
    band = chunk + 2 * width
    distances = _distance_vector(slope[None], chunk + width, query)
    first_full = -(-width // chunk)  # first chunk whose whole band lies inside the sequence
    num_full = max((length - width) // chunk - first_full, 0)
    outputs = [_edge_chunks(query, key, value, distances, 0, first_full * chunk, chunk, width, dropout_p)]
    if num_full:
        start, end = first_full * chunk, (first_full + num_full) * chunk
        q = query[start:end].view(num_full, 1, chunk, -1).flip(2)
        k, v = (
            tensor[start - width : end + width].unfold(0, band, chunk).transpose(1, 2).unsqueeze(1)
            for tensor in (key, value)
        )
        bias = _toeplitz_view(distances, chunk, band, 0)
        output = _sdpa(q, k, v, bias, dropout_p)
        outputs.append(output.flip(2).reshape(num_full * chunk, -1))
    rest = (first_full + num_full) * chunk
    outputs.append(_edge_chunks(query, key, value, distances, rest, length, chunk, width, dropout_p))
    return torch.cat(outputs)


def _edge_chunks(query, key, value, distances, start, end, chunk, width, dropout_p) -> Tensor:
    """Queries start..end of one head, chunk by chunk, each with the part of its band that lies in the sequence."""
    length, centre = query.shape[0], (distances.shape[1] - 1) // 2
    outputs = [query[:0]]
    for low in range(start, end, chunk):
        high = min(low + chunk, end)
        key_low, key_high = max(0, low - width), min(length, high + width)
        q = query[low:high].flip(0)[None, None]
        k, v = (tensor[key_low:key_high][None, None] for tensor in (key, value))
        # reversed query i is position high - 1 - i, so entry (0, 0) has distance key_low - (high - 1)
        bias = _toeplitz_view(distances, high - low, key_high - key_low, centre + key_low - (high - 1))
        outputs.append(_sdpa(q, k, v, bias, dropout_p)[0, 0].flip(0))
    return torch.cat(outputs)


def _traced_attention(query, key, value, slopes, layout: SequenceLayout, dropout_p: float) -> Tensor:
    """Attention whose graph depends on shapes alone, for torch.compile and export: sdpa with a dense bias."""
    if layout.packed:
        raise ValueError("packed input cannot be traced; compile or export the model with padded batches")
    grid = (layout.batch_size, layout.length, *query.shape[1:])
    q, k, v = (tensor.view(grid).transpose(1, 2) for tensor in (query, key, value))
    slopes = slopes.to(torch.promote_types(slopes.dtype, query.dtype))
    if layout.grid_mask is None:
        bias = alibi_bias(slopes, layout.length).to(query.dtype)
    else:
        positions = layout.grid_mask.cumsum(dim=1).to(slopes.dtype)
        distance = (positions[:, None, :, None] - positions[:, None, None, :]).abs()
        bias = (-slopes[None, :, None, None] * distance).to(query.dtype)
        bias = bias.masked_fill(~layout.grid_mask[:, None, None, :], torch.finfo(query.dtype).min)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout_p)
    return output.transpose(1, 2).reshape(query.shape)
