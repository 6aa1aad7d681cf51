"""
Speed of one attention layer (12 heads of 64) on one sequence, against dense attention with the same ALiBi bias.

    python -m benchmarks.bench_attention                                # CPU
    python -m benchmarks.bench_attention --device cuda --lengths 512 2048 8192 24576 147456

Rivals: torch's scaled_dot_product_attention with our linear-memory bias (every key), the same with a materialised
bias (up to 8,192 tokens), and on a GPU flex_attention and flash-attn where installed. On a CPU, dense attention of more
than 8,192 tokens is measured on a sample of the queries and scaled up (its cost is linear in the queries); such rows
say so. Data: `init` has logits of standard deviation 0.3, `trained` of 3. Rows go to benchmarks/results/attention.csv.
"""

import argparse
import math

import torch
import torch.nn.functional as F

from benchmarks.harness import append_rows, interleave, machine, median_ratio
from modeling.alibi_attention import (
    alibi_attention,
    alibi_bias,
    alibi_slopes,
    check_backend,
    sdpa_attention,
)
from modeling.key_ranges import band_widths
from modeling.unpadding import layout_from_cu_seqlens

HEADS, HEAD_DIM = 12, 64
LOGIT_STD = {"init": 0.3, "trained": 3.0}
DENSE_UP_TO = 8192  # tokens; longer dense attention on a CPU is extrapolated from SAMPLE queries
SAMPLE = 512
CUDA_BIAS_UP_TO = 32768  # tokens; on CUDA sdpa copies its bias, 12 heads x length^2


def inputs(length, data, dtype, device):
    """query, key, value (length, heads, head_dim); logits q.k / sqrt(d) have the standard deviation of `data`."""
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(length, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    scale = math.sqrt(LOGIT_STD[data])
    return [tensor.to(device, dtype) for tensor in (query * scale, key * scale, value)]


def exact_rows(query, key, value, slopes, rows):
    """fp64 output of a few queries: (rows, heads, head_dim)."""
    query, key, value = (tensor.cpu().double() for tensor in (query[rows], key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(HEAD_DIM)
    distance = (rows[:, None] - torch.arange(len(key))).abs()
    weights = (logits - slopes.cpu().double()[:, None, None] * distance).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def sampled_dense(query, key, value, slopes):
    """Dense attention of SAMPLE queries from the middle of the sequence, bias materialised for them only."""
    length = len(query)
    rows = torch.arange(length // 2, length // 2 + SAMPLE)
    bias = -slopes[:, None, None] * (rows[:, None] - torch.arange(length)).abs()
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query[rows], key, value))
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


def rivals(query, key, value, slopes, layout, device):
    """Name -> (function, factor from its time to the time of the whole sequence)."""
    length = len(query)
    functions = {"alibi_banded": (lambda: attend("alibi_banded"), 1.0)}

    def attend(backend, **options):
        return alibi_attention(query, key, value, slopes, layout, backend, **options)

    if length <= (CUDA_BIAS_UP_TO if device == "cuda" else DENSE_UP_TO):
        functions["sdpa"] = (lambda: sdpa_attention(query, key, value, slopes, layout), 1.0)
        if length <= DENSE_UP_TO:
            bias = alibi_bias(slopes, length).to(query.dtype)
            q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
            functions["sdpa_materialised_bias"] = (lambda: F.scaled_dot_product_attention(q, k, v, bias[None]), 1.0)
    elif device == "cpu":
        functions["sdpa"] = (sampled_dense(query, key, value, slopes), length / SAMPLE)
    if device == "cuda":
        for backend in ("alibi_triton", "flash_attention_2"):
            try:
                check_backend(backend)
                attend(backend)
            except (ImportError, ValueError) as reason:
                print(f"  {backend} left out: {reason}")
            else:
                functions[backend] = (lambda backend=backend: attend(backend), 1.0)
        if "alibi_triton" in functions:
            functions["alibi_triton_dense"] = (lambda: attend("alibi_triton", skip_eps=0.0), 1.0)
        functions["flex_attention"] = (flex(query, key, value, slopes), 1.0)
    return functions


def flex(query, key, value, slopes):
    """torch's compiled flex_attention with the ALiBi score, every key."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    q, k, v = (tensor.transpose(0, 1)[None].contiguous() for tensor in (query, key, value))

    def score(logit, batch, head, i, j):
        return logit - slopes[head] * (i - j).abs()

    return lambda: compiled(q, k, v, score_mod=score)


def compare(length, data, dtype, device, rounds):
    """Rows of one length, printed as they come."""
    query, key, value = inputs(length, data, dtype, device)
    slopes = torch.tensor(alibi_slopes(HEADS), device=device)
    boundaries = torch.tensor([0, length], dtype=torch.int32, device=device)
    layout = layout_from_cu_seqlens(1, length, boundaries, length, device)
    functions = rivals(query, key, value, slopes, layout, device)
    rows = torch.linspace(0, length - 1, 32).long()
    exact = exact_rows(query, key, value, slopes, rows)
    with torch.inference_mode():
        widths = band_widths(query, key, slopes)
        banded = functions["alibi_banded"][0]().cpu().double()[rows]
        error = float((banded - exact).abs().max())
        times = interleave({name: function for name, (function, _) in functions.items()}, rounds)
    times = {
        name: [(wall * factor, cpu * factor) for wall, cpu in times[name]] for name, (_, factor) in functions.items()
    }
    result = []
    for name, seconds in times.items():
        middle = len(seconds) // 2
        result.append({
            **machine(), "tokens": length, "data": data, "dtype": str(dtype).removeprefix("torch."), "device": device,
            "backend": name, "rounds": rounds, "wall_s": round(sorted(w for w, _ in seconds)[middle], 4),
            "cpu_s": round(sorted(c for _, c in seconds)[middle], 4),
            "alibi_banded_is_faster_by": round(median_ratio(seconds, times["alibi_banded"]), 2),
            "extrapolated": "yes" if functions[name][1] != 1 else "no",
            "share_of_keys_visited": round(sum(min(2 * w + 1, length) for w in widths) / (HEADS * length), 4)
            if name == "alibi_banded" else "",
            "error_vs_fp64": f"{error:.1e}" if name == "alibi_banded" else "",
        })  # fmt: skip
        row = result[-1]
        print(
            f"  {length:>7} {data:<8}{row['dtype']:<9} {name:<24}{row['wall_s']:>10.4f} s   alibi_banded is "
            f"{row['alibi_banded_is_faster_by']:>7.2f}x as fast{'  (extrapolated)' * (functions[name][1] != 1)}",
            flush=True,
        )
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--data", nargs="+", default=list(LOGIT_STD), choices=list(LOGIT_STD))
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 24576, 147456])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for length in options.lengths:
        for dtype in options.dtypes:
            for data in options.data:
                rows += compare(length, data, getattr(torch, dtype), options.device, options.rounds)
    if not options.dry_run:
        print("rows appended to", append_rows("attention", rows))


if __name__ == "__main__":
    main()
