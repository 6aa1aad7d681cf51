"""
Speed of the whole 117 M encoder against rivals of the same size, in one process.

    python -m benchmarks.bench_encoder                     # CPU, fp32 and bf16, fixed and ragged batches
    python -m benchmarks.bench_encoder --device cuda
    python -m benchmarks.bench_encoder --lengths 2048 24576 147456 --dtypes bfloat16   # one long sequence each

Rivals: the released DNABERT-2 architecture (naive twin), transformers' BertModel (sdpa; it has no gate, so it does 25 %
less work) padded and in length-sorted buckets, ModernBertModel. Rows go to benchmarks/results/encoder.csv.
"""

import argparse
import time

import torch
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from benchmarks.harness import (
    append_rows,
    in_fresh_process,
    interleave,
    machine,
    median_ratio,
    peak_memory_gb,
    synchronize,
)
from benchmarks.released_dnabert2 import ReleasedEncoder
from modeling import StrandBertConfig, StrandBertModel
from training.speed import matmul_peak

PAD = 3
LINEAR_FLOPS = 226.5e6  # per token: 12 layers of (3 + 1) 768 x 768 and 3 x 768 x 3072 multiply-adds, times 2


CASES = {
    "32 x 128": [128] * 32,
    "32 x 20..512": torch.randint(20, 513, (32,), generator=torch.Generator().manual_seed(0)).tolist(),
    "1 x 2048": [2048],
}


def strandbert(dtype, device):
    """The 117 M DNABERT-2 configuration with random weights, without dropout."""
    torch.manual_seed(0)
    return StrandBertModel(StrandBertConfig(hidden_dropout_prob=0.0)).to(device, dtype).eval()


def bert(dtype, device, longest):
    config = BertConfig(vocab_size=4096, pad_token_id=PAD, max_position_embeddings=longest, hidden_dropout_prob=0.0)
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False).to(device, dtype).eval()


def modernbert(dtype, device, longest):
    """ModernBERT at BERT-base size: 12 layers and the gated width of DNABERT-2; its own local and global attention."""
    config = ModernBertConfig(
        vocab_size=4096,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=longest,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    config._attn_implementation = "sdpa"
    return ModernBertModel(config).to(device, dtype).eval()


def batch_of(lengths, device):
    """Random ids of the given lengths, padded at the right, and their mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 4096, (length,), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return ids.to(device), mask.to(device)


def buckets(lengths, size, device):
    """Batches of `size` sequences of similar length: what people do who care about padding."""
    ordered = sorted(lengths)
    return [batch_of(ordered[start : start + size], device) for start in range(0, len(ordered), size)]


def compare(case, lengths, dtype, device, rounds):
    """Measure every rival on one batch; returns CSV rows, ours first."""
    ids, mask = batch_of(lengths, device)
    ours = strandbert(dtype, device)
    released = ReleasedEncoder(ours)
    bert_model = bert(dtype, device, max(lengths))
    modern = modernbert(dtype, device, max(lengths))
    sorted_batches = buckets(lengths, 8, device)
    functions = {
        "strandbert": lambda: ours(ids, attention_mask=mask),
        "dnabert2_released": lambda: released(ids, mask),
        "bert_sdpa": lambda: bert_model(ids, attention_mask=mask),
        "modernbert_sdpa": lambda: modern(ids, attention_mask=mask),
    }
    if len(set(lengths)) > 1:
        functions["bert_sdpa_sorted_buckets"] = lambda: [bert_model(i, attention_mask=m) for i, m in sorted_batches]
    with torch.inference_mode():
        exact = released_in_fp64(ours, ids, mask)
        errors = {
            "strandbert": relative_error(functions["strandbert"]().last_hidden_state, exact, mask),
            "dnabert2_released": relative_error(functions["dnabert2_released"](), exact, mask),
        }
        seconds = interleave(functions, rounds)
    peak = matmul_peak(device, dtype)
    tokens = sum(lengths)
    rows = []
    for name, times in seconds.items():
        wall = sorted(wall for wall, _ in times)[len(times) // 2]
        cpu = sorted(cpu for _, cpu in times)[len(times) // 2]
        mfu = tokens * LINEAR_FLOPS / wall / peak if name in errors else ""
        rows.append({
            **machine(), "case": case, "dtype": str(dtype).removeprefix("torch."), "device": device, "model": name,
            "sequences": len(lengths), "tokens": tokens, "rounds": rounds, "wall_s": round(wall, 4),
            "cpu_s": round(cpu, 4), "tokens_per_s": round(tokens / wall, 1),
            "strandbert_is_faster_by": round(median_ratio(times, seconds["strandbert"]), 3),
            "error_vs_fp64": f"{errors[name]:.1e}" if name in errors else "",
            "mfu_of_measured_peak": round(mfu, 3) if mfu else "", "peak_memory_gb": "",
        })  # fmt: skip
    return rows


def released_in_fp64(model, ids, mask):
    """The released architecture in fp64 on at most eight sequences: what errors are measured against."""
    double = StrandBertModel(model.config).double().eval()
    double.load_state_dict({name: weight.double() for name, weight in model.state_dict().items()})
    return ReleasedEncoder(double)(ids[:8].cpu(), mask[:8].cpu())


def relative_error(output, exact, mask):
    """Largest error on real tokens over the largest exact value."""
    real = mask[: len(exact)].bool().cpu()
    difference = (output[: len(exact)].cpu().double() - exact)[real].abs().max()
    return float(difference / exact[real].abs().max())


def measure_length(length, dtype, device):
    """One sequence in this process: seconds of the second pass, peak memory; printed for the parent process."""
    model = strandbert(dtype, device)
    ids, _ = batch_of([length], device)
    with torch.inference_mode():
        model(ids[:, :256])
        synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        model(ids)
        synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else peak_memory_gb()
    print(f"RESULT {wall} {cpu} {memory}")


def long_sequences(lengths, dtypes, device, threads):
    """One row for each length and dtype, each measured in a process of its own."""
    rows = []
    for dtype in dtypes:
        for length in lengths:
            options = ["--measure", str(length), "--dtypes", dtype, "--device", device, "--threads", str(threads)]
            output = in_fresh_process("benchmarks.bench_encoder", *options)
            fields = next(line for line in output.splitlines() if line.startswith("RESULT"))
            wall, cpu, memory = (float(field) for field in fields.split()[1:])
            rows.append({
                **machine(), "case": "one sequence", "dtype": dtype, "device": device, "model": "strandbert",
                "sequences": 1, "tokens": length, "rounds": 1, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2),
                "tokens_per_s": round(length / wall, 1), "strandbert_is_faster_by": "", "error_vs_fp64": "",
                "mfu_of_measured_peak": "", "peak_memory_gb": round(memory, 2),
            })  # fmt: skip
            print(
                f"{length:>8} tokens {dtype:>9}: {wall:8.2f} s, {length / wall:7.0f} tokens/s, {memory:.2f} GB",
                flush=True,
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lengths", type=int, nargs="+", help="measure one sequence of each length instead")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        return measure_length(options.measure, getattr(torch, options.dtypes[0]), options.device)
    if options.lengths:
        rows = long_sequences(options.lengths, options.dtypes, options.device, options.threads)
        if not options.dry_run:
            print("rows appended to", append_rows("encoder", rows))
        return
    for dtype in options.dtypes:
        for case in options.cases:
            rows = compare(case, CASES[case], getattr(torch, dtype), options.device, options.rounds)
            print_case(rows, case, dtype)
            if not options.dry_run:
                append_rows("encoder", rows)


def print_case(rows, case, dtype):
    print(f"\n{case}, {dtype}")
    for row in rows:
        if (row["case"], row["dtype"]) == (case, dtype):
            print(
                f"  {row['model']:<26}{row['wall_s']:>8.3f} s {row['tokens_per_s']:>8.0f} tokens/s   strandbert is "
                f"{row['strandbert_is_faster_by']:.2f}x as fast   error {row['error_vs_fp64']:<8} "
                f"MFU {row['mfu_of_measured_peak']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
