"""
Speed and peak memory of a training step against rivals of the same size, in one process.

    python -m benchmarks.bench_training                                  # CPU, strandbert-tiny, fp32 and bf16 autocast
    python -m benchmarks.bench_training --size base --rounds 3           # the 117 M model
    python -m benchmarks.bench_training --size base --device cuda --sequences 512 --rounds 20

A step is forward, backward and fused AdamW on one batch, 15 % of its tokens masked. Rivals: the released DNABERT-2
architecture (benchmarks/released_dnabert2.py: unpadded linear layers, padded attention with a dense ALiBi bias, LM head
on masked tokens), the same with linear layers on padding too, and transformers' BertForMaskedLM (sdpa, padded, no gate:
25 % less work in the layers, logits for every token). Ours is packed. No dropout anywhere. Rows go to
benchmarks/results/training.csv.
"""

import argparse
import itertools
import statistics

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from benchmarks.harness import append_rows, in_fresh_process, interleave, machine, median_ratio, peak_memory_gb
from benchmarks.released_dnabert2 import ReleasedEncoder
from modeling import StrandBertConfig, StrandBertForMaskedLM
from training.speed import matmul_peak, training_flops

PAD, MASK, VOCABULARY = 3, 4, 4096
MASKED = 0.15

# Tokens of 64 sequences of GUE, its 20 data sets at hand alike and their rows drawn at random, with the vocabulary of
# tokenization/vocabulary, [CLS] and [SEP] included: 70 to 500 bp.
GUE_LENGTHS = [
    19, 100, 23, 16, 85, 22, 24, 103, 102, 103, 22, 105, 104, 21, 24, 24, 22, 104, 86, 23, 99, 23, 97, 16,
    105, 78, 101, 104, 22, 101, 24, 101, 23, 83, 102, 103, 97, 16, 102, 25, 103, 98, 17, 21, 108, 100, 102, 107,
    103, 108, 104, 23, 16, 24, 24, 99, 22, 16, 102, 82, 98, 21, 86, 99,
]  # fmt: skip
CASES = {
    "GUE": GUE_LENGTHS,
    "20..512": torch.randint(20, 513, (64,), generator=torch.Generator().manual_seed(0)).tolist(),
}
SIZES = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}


class ReleasedForMaskedLM(nn.Module):
    """The twin with its LM head, which the released code runs on masked tokens only."""

    def __init__(self, model: StrandBertForMaskedLM, unpad: bool):
        super().__init__()
        self.model = model
        self.encoder = ReleasedEncoder(model.bert, unpad)

    def forward(self, ids, mask, labels):
        hidden = ReleasedEncoder.forward.__wrapped__(self.encoder, ids, mask)  # with gradients
        chosen = labels != -100
        return nn.functional.cross_entropy(self.model.cls(hidden[chosen]).float(), labels[chosen])


def make_batch(lengths, device):
    """Random ids padded at the right, mask and labels (batch, longest); the same packed: ids, labels, cu_seqlens."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator).masked_fill(~mask, PAD)
    chosen = (torch.rand(mask.shape, generator=generator) < MASKED) & mask
    labels = ids.masked_fill(~chosen, -100)
    ids = ids.masked_fill(chosen, MASK)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(sorted(lengths))], dtype=torch.int32)
    order = torch.tensor(lengths).argsort()  # as training.collator packs
    packed = (tensor[order][mask[order]][None] for tensor in (ids, labels))
    tensors = ids, mask.long(), labels, *packed, cu_seqlens
    return [tensor.to(device) for tensor in tensors]


def losses(size, lengths, device):
    """For each rival its model and a function that gives the loss of the batch."""
    ids, mask, labels, packed_ids, packed_labels, cu_seqlens = make_batch(lengths, device)
    shape = SIZES[size]
    torch.manual_seed(0)
    config = StrandBertConfig(vocab_size=VOCABULARY, hidden_dropout_prob=0.0, **shape)
    ours = StrandBertForMaskedLM(config).to(device).train()
    released, padded = (
        ReleasedForMaskedLM(StrandBertForMaskedLM(config), unpad).to(device).train() for unpad in (True, False)
    )
    bert_config = BertConfig(
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=max(lengths),
        **shape,
    )
    bert_config._attn_implementation = "sdpa"
    bert = BertForMaskedLM(bert_config).to(device).train()
    packed = {"input_ids": packed_ids, "labels": packed_labels, "cu_seqlens": cu_seqlens, "max_seqlen": max(lengths)}
    return {
        "strandbert": (ours, lambda: ours(**packed).loss),
        "dnabert2_released": (released, lambda: released(ids, mask, labels)),
        "dnabert2_padded": (padded, lambda: padded(ids, mask, labels)),
        "bert_sdpa": (bert, lambda: bert(ids, attention_mask=mask, labels=labels).loss),
    }


def step_function(model, loss_of, device, dtype):
    """A whole training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss

    return step


def compare(size, case, lengths, dtype, device, rounds):
    """Measure every rival on one batch; returns CSV rows, ours first."""
    rivals = losses(size, lengths, device)
    steps = {name: step_function(model, loss_of, device, dtype) for name, (model, loss_of) in rivals.items()}
    seconds = interleave(steps, rounds)
    peak = matmul_peak(device, dtype)
    tokens = sum(lengths)
    rows = []
    for name, times in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*times, strict=True))
        per_token, per_target = training_flops(rivals["strandbert"][0])
        flops = tokens * (per_token + MASKED * per_target) if name != "bert_sdpa" else None
        cpu_ratio = statistics.median(a[1] / b[1] for a, b in zip(times, seconds["strandbert"], strict=True))
        rows.append({
            **machine(), "size": size, "case": case, "dtype": str(dtype).removeprefix("torch."), "device": device,
            "model": name, "sequences": len(lengths), "tokens": tokens,
            "padding_share": round(1 - tokens / (len(lengths) * max(lengths)), 3), "rounds": rounds,
            "wall_s": round(wall, 4), "cpu_s": round(cpu, 4), "tokens_per_s": round(tokens / wall, 1),
            "tokens_per_cpu_s": round(tokens / cpu, 1),
            "strandbert_is_faster_by": round(median_ratio(times, seconds["strandbert"]), 3),
            "strandbert_is_faster_by_in_cpu_time": round(cpu_ratio, 3),
            "mfu_of_measured_peak": round(flops / wall / peak, 3) if flops else "",
            "peak_memory_gb": memory_of(name, size, case, len(lengths), dtype, device),
        })  # fmt: skip
    return rows


def memory_of(name, size, case, sequences, dtype, device):
    """Peak memory in GB of two steps of one rival, in a process of its own."""
    options = ["--measure", name, "--size", size, "--cases", case, "--sequences", str(sequences)]
    options += ["--dtypes", str(dtype).removeprefix("torch."), "--device", device]
    output = in_fresh_process("benchmarks.bench_training", *options, "--threads", str(torch.get_num_threads()))
    return float(next(line for line in output.splitlines() if line.startswith("RESULT")).split()[1])


def measure_memory(name, size, lengths, dtype, device):
    """Print the peak memory of this process for the parent; the other rivals are not run."""
    model, loss_of = losses(size, lengths, device)[name]
    step = step_function(model, loss_of, device, dtype)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step()
    step()
    print(f"RESULT {round(torch.cuda.max_memory_allocated() / 1e9 if device == 'cuda' else peak_memory_gb(), 3)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="bfloat16 and float16: autocast")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--sequences", type=int, default=32, help="sequences of the batch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dtype, case in itertools.product(options.dtypes, options.cases):
        lengths = list(itertools.islice(itertools.cycle(CASES[case]), options.sequences))
        if options.measure:
            return measure_memory(options.measure, options.size, lengths, getattr(torch, dtype), options.device)
        rows = compare(options.size, case, lengths, getattr(torch, dtype), options.device, options.rounds)
        print(f"\n{options.size}, {case}, {dtype}")
        for row in rows:
            print(
                f"  {row['model']:<20}{row['wall_s']:>8.3f} s {row['cpu_s']:>8.3f} CPU s "
                f"{row['tokens_per_s']:>9.0f} tokens/s   strandbert is {row['strandbert_is_faster_by']:.2f}x as fast "
                f"({row['strandbert_is_faster_by_in_cpu_time']:.2f}x in CPU time)   {row['peak_memory_gb']} GB   "
                f"MFU {row['mfu_of_measured_peak']}",
                flush=True,
            )
        if not options.dry_run:
            append_rows("training", rows)


if __name__ == "__main__":
    main()
