"""
Embedding a file of ragged sequences, and one long sequence, beside what people do without `embed`.

    python -m benchmarks.bench_embed SEQUENCES --model hub_configs/strandbert-tiny --tokenizer tokenization/vocabulary
    python -m benchmarks.bench_embed genome.fa.gz --lengths 100000 1000000 --model ... --tokenizer ...
    python -m benchmarks.bench_embed genome.fa.gz --reads 10000 100000 --model ... --tokenizer ...

The first command takes --number sequences of the file as they come and compares CPU seconds of
  embed            tokens from the fast encoder, batches in order of length, no padding
  embed_bf16       the same with a model in bfloat16, as --dtype bfloat16 does
  one_by_one       a loop over AutoModel, a sequence at a time
  padded_loop      a loop over AutoModel in batches of 32 with padding, as they come
  released_loop    the same with the released DNABERT-2 architecture, which AutoModel gave until now (naive twin)
  bert_loop        the same with transformers' BertModel (sdpa) of the same width and depth, which has no gate
all with the masked mean; weights are those of --model where it holds any, else random. The second command reads the
first bp of the first sequence in one piece and in windows, each in a process of its own: seconds and peak memory. The
third cuts so many reads of 50 to 500 bp at random places (always the same) and runs inference.embed on them, each
number in a process of its own: peak memory must not grow with it. Rows go to benchmarks/results/embed.csv.
"""

import argparse
import copy
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.harness import append_rows, in_fresh_process, interleave, machine, peak_memory_gb
from benchmarks.released_dnabert2 import ReleasedEncoder
from inference import embed
from inference.loading import SequenceEncoder
from inference.reading import read_records
from modeling import StrandBertConfig, StrandBertModel
from modeling.embedding import embed_token_ids

BATCH = 32  # sequences of a padded batch
READ_LENGTHS = (50, 500)  # bp


def masked_mean(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens: what the loops do with (batch, length, hidden)."""
    kept = (ids > 4).unsqueeze(2)
    return (hidden * kept).sum(1) / kept.sum(1)


def loop(tokenizer, sequences: list[str], encode, batch: int) -> torch.Tensor:
    """Vectors by a loop over padded batches, in the order of the sequences."""
    vectors = []
    for start in range(0, len(sequences), batch):
        inputs = tokenizer(sequences[start : start + batch], padding=True, return_tensors="pt", verbose=False)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        vectors.append(masked_mean(encode(ids, mask), ids))
    return torch.cat(vectors)


def cpu_ratio(slow, fast) -> float:
    """Median over rounds of the CPU seconds of `slow` over those of `fast`; wall time moves on a busy machine."""
    return statistics.median(a[1] / b[1] for a, b in zip(slow, fast, strict=True))


def bert_like(config: StrandBertConfig, longest: int) -> BertModel:
    sizes = {name: getattr(config, name) for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "pad_token_id"
    )}  # fmt: skip
    bert = BertConfig(**sizes, max_position_embeddings=longest)
    bert._attn_implementation = "sdpa"
    return BertModel(bert, add_pooling_layer=False).eval()


def load(folder: str) -> StrandBertModel:
    """The model of a folder; with random weights where the folder holds none."""
    if (Path(folder) / "model.safetensors").is_file():
        return StrandBertModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    return StrandBertModel(StrandBertConfig.from_pretrained(folder)).eval()


@torch.no_grad()
def compare(options) -> list[dict]:
    """One row for every rival on the same sequences."""
    model = load(options.model)
    config = model.config
    half = copy.deepcopy(model).bfloat16()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokenizer)
    encoder = SequenceEncoder(options.tokenizer, config)
    records = [record for _, record in zip(range(options.number), read_records(options.sequences), strict=False)]
    data = [record.sequence for record in records]
    texts = [sequence.decode() for sequence in data]
    lengths = [len(ids) for ids in encoder(data)]
    bert, released = bert_like(config, max(lengths)), ReleasedEncoder(model)
    functions = {
        "embed": lambda: torch.stack(embed_token_ids(model, encoder(data))),
        "embed_bf16": lambda: torch.stack(embed_token_ids(half, encoder(data))),
        "one_by_one": lambda: loop(tokenizer, texts, lambda i, m: model(i, m).last_hidden_state, 1),
        "padded_loop": lambda: loop(tokenizer, texts, lambda i, m: model(i, m).last_hidden_state, BATCH),
        "released_loop": lambda: loop(tokenizer, texts, released, BATCH),
        "bert_loop": lambda: loop(tokenizer, texts, lambda i, m: bert(i, m).last_hidden_state, BATCH),
    }
    exact = functions["one_by_one"]()
    for name in ("embed", "padded_loop", "released_loop"):
        difference = float((functions[name]() - exact).abs().max())
        assert difference < 1e-3, f"{name} differs by {difference}"
    seconds = interleave(functions, options.rounds)
    padded = sum(max(lengths[s : s + BATCH]) * len(lengths[s : s + BATCH]) for s in range(0, len(lengths), BATCH))
    rows = []
    for name, times in seconds.items():
        wall = sorted(wall for wall, _ in times)[len(times) // 2]
        cpu = sorted(cpu for _, cpu in times)[len(times) // 2]
        rows.append({
            **machine(), "case": "ragged file", "model": options.model, "way": name, "sequences": len(lengths),
            "bp": sum(map(len, data)), "tokens": sum(lengths), "padded_tokens": padded,
            "dtype": "bfloat16" if name == "embed_bf16" else "float32",
            "rounds": options.rounds, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3),
            "bp_per_s": round(sum(map(len, data)) / cpu), "embed_is_faster_by": round(
                cpu_ratio(times, seconds["embed"]), 2), "peak_memory_gb": "",
        })  # fmt: skip
        print(f"{name:<14} {wall:8.2f} s  {rows[-1]['bp_per_s']:>9,} bp/s   embed is {rows[-1]['embed_is_faster_by']}x")
    return rows


def measure(options):
    """One sequence in one process; prints the result for the parent."""
    model = load(options.model).to(getattr(torch, options.dtypes[0]))
    encoder = SequenceEncoder(options.tokenizer, model.config)
    sequence = next(iter(read_records(options.sequences))).sequence[: options.measure]
    (ids,) = encoder([sequence])
    window = {"window": options.window, "overlap": options.overlap} if options.window else {}
    embed_token_ids(model, [ids[:600]])
    before, wall, cpu = peak_memory_gb(), time.perf_counter(), time.process_time()
    embed_token_ids(model, [ids], **window)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"RESULT {len(sequence)} {len(ids)} {wall} {cpu} {peak_memory_gb()} {before}")


def long_sequences(options) -> list[dict]:
    """Rows for each length and dtype, in one piece and in windows."""
    rows = []
    for dtype in options.dtypes:
        for length in options.lengths:
            for window in [0, options.window] if options.window else [0]:
                arguments = [options.sequences, "--model", options.model, "--tokenizer", options.tokenizer,
                             "--measure", length, "--dtypes", dtype, "--window", window, "--overlap", options.overlap,
                             "--threads", options.threads]  # fmt: skip
                output = in_fresh_process("benchmarks.bench_embed", *map(str, arguments))
                fields = next(line for line in output.splitlines() if line.startswith("RESULT")).split()[1:]
                bp, tokens, wall, cpu, memory, before = map(float, fields)
                way = f"windows of {window} tokens, {options.overlap} shared" if window else "one piece"
                rows.append({
                    **machine(), "case": "one sequence", "model": options.model, "way": way, "sequences": 1,
                    "bp": int(bp), "tokens": int(tokens), "padded_tokens": "", "dtype": dtype, "rounds": 1,
                    "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "bp_per_s": round(bp / cpu),
                    "embed_is_faster_by": "", "peak_memory_gb": round(memory, 2),
                })  # fmt: skip
                print(f"{int(bp):>10,} bp {int(tokens):>9,} tokens {dtype} {way:<36} {wall:8.1f} s wall "
                      f"{cpu:8.1f} s CPU {memory:6.2f} GB (model alone {before:.2f})", flush=True)  # fmt: skip
                if not options.dry_run:
                    append_rows("embed", rows[-1:])
    return rows


def write_reads(path: Path, genome: str, number: int) -> int:
    """The first `number` of an endless row of reads from a genome, as FASTA; returns their bp."""
    contigs = [record.sequence for record in read_records(genome) if len(record.sequence) >= READ_LENGTHS[1]]
    sizes, source, bases = [len(contig) for contig in contigs], random.Random(0), 0
    with open(path, "w") as file:
        for name in range(number):
            (contig,), length = source.choices(contigs, sizes), source.randint(*READ_LENGTHS)
            start = source.randrange(len(contig) - length + 1)
            file.write(f">read{name}\n{contig[start : start + length].decode()}\n")
            bases += length
    return bases


def measure_file(options):
    """`inference.embed` on a file in this process; prints the result for the parent."""
    wall, cpu = time.perf_counter(), time.process_time()
    arguments = [options.sequences, "--model", options.model, "--output", options.measure_file, "--cpu"]
    embed.main(arguments)
    print(f"RESULT {time.perf_counter() - wall} {time.process_time() - cpu} {peak_memory_gb()}")


def many_reads(options) -> list[dict]:
    """A row for each number of reads."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, reads = Path(folder) / "model", Path(folder) / "reads.fa"
        load(options.model).save_pretrained(model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(options.tokenizer) / name, model / name)
        for number in options.reads:
            bases = write_reads(reads, options.sequences, number)
            arguments = [reads, "--model", model, "--measure-file", Path(folder) / f"{number}.parquet",
                         "--threads", options.threads]  # fmt: skip
            output = in_fresh_process("benchmarks.bench_embed", *map(str, arguments))
            fields = next(line for line in output.splitlines() if line.startswith("RESULT")).split()[1:]
            wall, cpu, memory = map(float, fields)
            rows.append({
                **machine(), "case": "reads of 50 to 500 bp", "model": options.model, "way": "inference.embed",
                "sequences": number, "bp": bases, "tokens": "", "padded_tokens": "", "dtype": "float32", "rounds": 1,
                "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "bp_per_s": round(bases / cpu),
                "embed_is_faster_by": "", "peak_memory_gb": round(memory, 3),
            })  # fmt: skip
            print(
                f"{number:>9,} reads {bases:>12,} bp {wall:8.1f} s wall {cpu:8.1f} s CPU {memory:7.3f} GB", flush=True
            )
            if not options.dry_run:
                append_rows("embed", rows[-1:])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", help="file of sequences, as for inference.embed")
    parser.add_argument("--model", default="hub_configs/strandbert-tiny", help="folder with config.json")
    parser.add_argument("--tokenizer", default="tokenization/vocabulary")
    parser.add_argument("--number", type=int, default=96, help="sequences to take")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lengths", type=int, nargs="+", help="bp; measure one long sequence instead")
    parser.add_argument("--reads", type=int, nargs="+", help="numbers of short reads; measure inference.embed on them")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--window", type=int, default=0, help="tokens; also measure windows of this length")
    parser.add_argument("--overlap", type=int, default=0, help="tokens that windows share")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure-file", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print, but do not append to the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        return measure(options)
    if options.measure_file:
        return measure_file(options)
    if options.reads:
        return many_reads(options)
    if options.lengths:
        return long_sequences(options)
    rows = compare(options)
    if not options.dry_run:
        print("rows appended to", append_rows("embed", rows))


if __name__ == "__main__":
    main()
