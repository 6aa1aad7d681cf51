"""The tokenizer study of the DNABERT-2 paper (figures 1, 3a, 3b) and dnaGrinder's table 6, on your own genomes.

    python -m tokenization.study --train train/*.fa.gz --held-out other/*.fa.gz --output study

Vocabularies are trained on --train in one run (the first merges do not depend on the final size); every number is
measured on --held-out, which should be other species. Writes:

  vocabulary_sizes.csv, .png   token length, compression and FLOPs for each vocabulary size, k-mers beside them
  shift.csv                    tokens that change when one base is inserted, or when the window begins one base later
  frequent_tokens.csv          the most frequent tokens with their reverse complements
  long_pieces.csv              most and fewest tokens of pieces of 120 to 700 kbp
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corpus.fasta import read_fasta
from tokenization.alphabet import acgt_runs, normalize
from tokenization.bpe_trainer import Limits, Progress, TokensInMemory, merges_as_text, train
from tokenization.encoder import Encoder
from tokenization.tokenizer_files import FIRST_MERGE_ID, bpe_tokenizer, write_bytes_atomically
from tokenization.words import DEFAULT_WORD_LENGTH, load_codes, read_codes

SIZES = [2**power for power in range(8, 16)]
SEQUENCE_LENGTH = 500  # bp; figure 3b compares FLOPs on such sequences
LONG_LENGTHS = [120_000, 250_000, 300_000, 500_000, 700_000]  # bp, table 6
PIECES_PER_CONTIG = 11  # table 6
HIDDEN, INTERMEDIATE, LAYERS = 768, 3072, 12  # DNABERT-2
SHIFT_SAMPLES = 2000
FREQUENT = 200


def train_vocabularies(paths: Iterable[str], sizes: list[int], word_length: int) -> list[tuple[str, str]]:
    """Merges of the largest vocabulary; those of the others are its beginning. Raises ValueError when too many."""
    codes, _ = load_codes(tqdm(read_codes(paths, word_length), desc="reading", unit=" blocks"), 1 << 32)
    progress = Progress(np.zeros((max(sizes) - FIRST_MERGE_ID, 3), np.int64))
    with tqdm(total=len(progress.merges), desc="training", unit=" merges") as bar:
        train(TokensInMemory(codes), progress, Limits(), lambda done: bar.update(done - bar.n))
    if not progress.finished:
        raise ValueError(f"the training genomes allow only {progress.done + FIRST_MERGE_ID} tokens, not {max(sizes)}")
    return [merge[:2] for merge in merges_as_text(progress)]


def read_pieces(paths: Iterable[str], length: int) -> list[str]:
    """All ACGT pieces of exactly `length` bp, one behind the other in each run."""
    pieces = []
    for path in paths:
        for record in read_fasta(path):
            sequence = normalize(record.sequence)
            for start, end in acgt_runs(sequence, min_length=length):
                pieces += [sequence[cut : cut + length].decode() for cut in range(start, end - length + 1, length)]
    return pieces


def model_flops(tokens: float, vocabulary: int) -> tuple[float, float]:
    """Forward FLOPs of DNABERT-2's shape for a sequence of `tokens`: encoder alone, and with a vocabulary head on the
    15 % of tokens that are masked. A multiplication and an addition are two."""
    linear = 2 * tokens * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
    attention = 4 * tokens**2 * HIDDEN
    encoder = LAYERS * (linear + attention)
    return encoder, encoder + 2 * 0.15 * tokens * (HIDDEN**2 + HIDDEN * vocabulary)


def vocabulary_rows(merges: list[tuple[str, str]], sizes: list[int], pieces: list[str]) -> list[dict]:
    """One row for each BPE vocabulary and each k-mer tokenizer (figures 3a and 3b)."""
    bases = sum(map(len, pieces))
    rows = []
    for size in tqdm(sizes, desc="vocabularies"):
        encoder = Encoder(bpe_tokenizer(merges[: size - FIRST_MERGE_ID]))
        ids, _ = encoder.encode_batch(pieces)
        lengths = [len(token) for token in [*"ACGT", *(a + b for a, b in merges[: size - FIRST_MERGE_ID])]]
        used = len(np.unique(ids))
        rows.append(_row(f"BPE {size}", size, float(np.mean(lengths)), len(ids) / bases, used))
    for k in (3, 4, 5, 6):
        tokens = sum(len(piece) - k + 1 for piece in pieces)
        rows.append(_row(f"overlapping {k}-mer", 4**k + 5, k, tokens / bases, ""))
    tokens = sum(len(piece) // 6 + len(piece) % 6 for piece in pieces)
    rows.append(_row("non-overlapping 6-mer", 4**6 + 9, 6, tokens / bases, ""))
    for row in rows:
        for column in ("encoder_flops", "flops_with_head"):
            row[f"relative_{column}"] = f"{row[column] / rows[0][column]:.4f}"
    return rows


def _row(name: str, size: int, token_length: float, tokens_per_base: float, used: int | str) -> dict:
    # Two more tokens for [CLS] and [SEP].
    encoder, whole = model_flops(SEQUENCE_LENGTH * tokens_per_base + 2, size)
    return {
        "tokenizer": name,
        "vocabulary": size,
        "mean_length_in_vocabulary_bp": f"{token_length:.3f}",
        "bases_per_token": f"{1 / tokens_per_base:.4f}",
        "tokens_per_base": f"{tokens_per_base:.5f}",
        "tokens_used": used,
        "encoder_flops": encoder,
        "flops_with_head": whole,
    }


def changed_tokens(before: list, after: list) -> int:
    """Tokens of `after` that are neither in the common beginning nor in the common end with `before`."""
    shortest = min(len(before), len(after))
    front = next((i for i in range(shortest) if before[i] != after[i]), shortest)
    rest = shortest - front
    back = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    return len(after) - front - back


def shift_rows(encoder: Encoder, pieces: list[str], seed: int = 0) -> list[dict]:
    """Figure 1: share of tokens that change under a small shift, for BPE and both kinds of 6-mers."""
    random = np.random.default_rng(seed)
    chosen = [pieces[i] for i in random.permutation(len(pieces))[:SHIFT_SAMPLES]]
    inserted = []
    for piece in chosen:
        place = int(random.integers(0, len(piece)))
        inserted.append(piece[:place] + "ACGT"[random.integers(4)] + piece[place:])
    tokenizers = {
        f"BPE {encoder.tokenizer.get_vocab_size()}": lambda s: encoder.encode(s).tolist(),
        "overlapping 6-mer": lambda s: [s[i : i + 6] for i in range(len(s) - 5)],
        "non-overlapping 6-mer": lambda s: (
            [s[i : i + 6] for i in range(0, len(s) // 6 * 6, 6)] + list(s[len(s) // 6 * 6 :])
        ),
    }
    rows = []
    for name, tokenize in tokenizers.items():
        for change, changed in (("one base inserted", inserted), ("window one base later", [p[1:] for p in chosen])):
            counts = [
                (changed_tokens(tokenize(p), new := tokenize(q)), len(new))
                for p, q in zip(chosen, changed, strict=True)
            ]
            numbers = np.array([number for number, _ in counts])
            rows.append(
                {
                    "tokenizer": name,
                    "change": change,
                    "sequences": len(chosen),
                    "bp": SEQUENCE_LENGTH,
                    "tokens_changed_mean": f"{numbers.mean():.2f}",
                    "tokens_changed_median": f"{np.median(numbers):.0f}",
                    "share_changed": f"{numbers.sum() / sum(total for _, total in counts):.4f}",
                }
            )
    return rows


def frequent_token_rows(encoder: Encoder, pieces: list[str]) -> list[dict]:
    """The most frequent tokens, with count and rank of their reverse complements (empty when it is no token)."""
    ids, _ = encoder.encode_batch(pieces)
    counts = np.bincount(ids, minlength=encoder.tokenizer.get_vocab_size())
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    rows = []
    for index in order[:FREQUENT].tolist():
        token = encoder.tokenizer.id_to_token(index)
        complement = token[::-1].translate(str.maketrans("ACGT", "TGCA"))
        other = encoder.tokenizer.token_to_id(complement)
        rows.append(
            {
                "rank": int(rank[index]),
                "token": token,
                "count": int(counts[index]),
                "share": f"{counts[index] / len(ids):.5f}",
                "reverse_complement": complement,
                "its_count": "" if other is None else int(counts[other]),
                "its_rank": "" if other is None else int(rank[other]),
            }
        )
    return rows


def long_piece_rows(encoder: Encoder, paths: Iterable[str], seed: int = 0) -> list[dict]:
    """Table 6: 11 random pieces without N of each contig that is long enough, for each length."""
    random = np.random.default_rng(seed)
    counts = {length: [] for length in LONG_LENGTHS}
    for path in paths:
        for record in read_fasta(path):
            sequence = normalize(record.sequence)
            for length in LONG_LENGTHS:
                runs = np.array(acgt_runs(sequence, min_length=length)).reshape(-1, 2)
                if not len(runs):
                    continue
                starts = runs[:, 1] - runs[:, 0] - length + 1  # possible starts in each run
                for pick in random.integers(0, starts.sum(), PIECES_PER_CONTIG):
                    run = int(np.searchsorted(np.cumsum(starts), pick, side="right"))
                    start = int(runs[run, 1] - length - (np.cumsum(starts)[run] - 1 - pick))
                    counts[length].append(len(encoder.encode(sequence[start : start + length])))
    return [
        {
            "length_bp": length,
            "pieces": len(counts[length]),
            "longest_tokens": max(counts[length]),
            "shortest_tokens": min(counts[length]),
            "mean_tokens": f"{np.mean(counts[length]):.0f}",
        }
        for length in LONG_LENGTHS
        if counts[length]
    ]


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows with the columns of the first one, atomically."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_bytes_atomically(path, text.getvalue().encode())


def draw(rows: list[dict], path: Path) -> None:
    """Figure 3a and 3b side by side, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bpe = [row for row in rows if row["tokenizer"].startswith("BPE")]
    names = [str(row["vocabulary"]) for row in bpe]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(
        names, [float(row["mean_length_in_vocabulary_bp"]) for row in bpe], "o-", label="mean length in vocabulary"
    )
    left.plot(names, [float(row["bases_per_token"]) for row in bpe], "s-", label="bases per token, held out")
    left.axhline(6, color="grey", linestyle=":", label="non-overlapping 6-mer")
    left.set(xlabel="vocabulary", ylabel="bp", title="a  token length")
    left.legend()
    right.bar(names, [float(row["relative_encoder_flops"]) for row in bpe], color="tab:orange")
    right.set(xlabel="vocabulary", ylabel=f"relative to {names[0]}", title=f"b  encoder FLOPs on {SEQUENCE_LENGTH} bp")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    write_bytes_atomically(path, image.getvalue())


def main(words: list[str] | None = None) -> int:
    """Command line entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenization.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs="+", required=True, metavar="FASTA", help="genomes to train on")
    parser.add_argument("--held-out", nargs="+", required=True, metavar="FASTA", help="other species, for every number")
    parser.add_argument(
        "--long", nargs="+", metavar="FASTA", help="chromosomes for long_pieces.csv (default: held out)"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="vocabulary sizes (default: 2^8 .. 2^15)")
    parser.add_argument("--size", type=int, default=4096, help="the one for shift, frequent and long (default: 4096)")
    parser.add_argument("--word-length", type=int, default=DEFAULT_WORD_LENGTH, help="bases (default: 1000)")
    arguments = parser.parse_args(words)
    sizes = sorted({*arguments.sizes, arguments.size})
    if sizes[0] <= FIRST_MERGE_ID:
        parser.error(f"sizes must be above {FIRST_MERGE_ID}")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        pieces = read_pieces(arguments.held_out, SEQUENCE_LENGTH)
        if not pieces:
            raise ValueError(f"the held-out files have no {SEQUENCE_LENGTH} bp without N")
        merges = train_vocabularies(arguments.train, sizes, arguments.word_length)
        rows = vocabulary_rows(merges, sizes, pieces)
        write_csv(arguments.output / "vocabulary_sizes.csv", rows)
        draw(rows, arguments.output / "vocabulary_sizes.png")
        encoder = Encoder(bpe_tokenizer(merges[: arguments.size - FIRST_MERGE_ID]))
        write_csv(arguments.output / "shift.csv", shift_rows(encoder, pieces))
        write_csv(arguments.output / "frequent_tokens.csv", frequent_token_rows(encoder, pieces))
        write_csv(arguments.output / "long_pieces.csv", long_piece_rows(encoder, arguments.long or arguments.held_out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: measured on {len(pieces):,} held-out sequences of {SEQUENCE_LENGTH} bp")
    for row in rows:
        print(
            f"  {row['tokenizer']:24} {row['bases_per_token']} bases per token, FLOPs {row['relative_encoder_flops']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
