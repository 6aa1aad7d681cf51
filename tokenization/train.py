"""Train a DNA vocabulary by Byte Pair Encoding, exactly, in bounded memory.

    python -m tokenization.train genome.fa.gz more.fa --vocab-size 4096 --output my-tokenizer

Input: FASTA (plain, .gz, .bgz), .txt with one sequence per line, .parquet with a column `sequence`. Lower case counts
as upper case and U as T; N and other ambiguity codes end a word. Words are the runs of A, C, G, T, cut every
--word-length bases. Output: tokenizer.json and tokenizer_config.json, which load with AutoTokenizer, and
training_report.json. A run on a corpus larger than --memory works in OUTPUT/unfinished and, when interrupted, goes on
where it stopped if the same command is given again.
"""

import argparse
import errno
import itertools
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tokenization.bpe_kernels import MAX_TOKENS
from tokenization.bpe_trainer import NO_LENGTH_LIMIT, Limits, Progress, TokensInMemory, merges_as_text, train
from tokenization.locks import locked_folder
from tokenization.me_bpe import train_me_bpe
from tokenization.peak_memory import peak_memory_bytes
from tokenization.tokenizer_files import (
    FIRST_MERGE_ID,
    SPECIAL_TOKENS,
    bpe_tokenizer,
    save_tokenizer_files,
    write_text_atomically,
)
from tokenization.tokens_on_disk import TokensOnDisk
from tokenization.words import DEFAULT_WORD_LENGTH, Counts, load_codes, read_codes, split_codes

LARGEST_VOCABULARY = MAX_TOKENS + len(SPECIAL_TOKENS)
MEMORY_PER_CODE = 1.25  # bytes that training in memory takes for each base or word


def train_files(arguments: argparse.Namespace) -> tuple[list[tuple[str, str, int]], Counts]:
    """Merges (left, right, count) of the files, most frequent first, and what was read. Raises ValueError, OSError."""
    counts = Counts()
    limits = Limits(max(1, arguments.min_frequency), arguments.max_token_length or NO_LENGTH_LIMIT)
    wanted = max(arguments.vocab_size) - FIRST_MERGE_ID
    unfinished = Path(arguments.output) / "unfinished"
    if arguments.algorithm == "me-bpe" and (unfinished / "state.json").exists():
        raise ValueError(
            f"{unfinished} holds an unfinished exact run, which me-bpe cannot go on with; finish it with its command, "
            "delete the folder, or choose another --output"
        )
    bar = tqdm(total=wanted, unit=" merges", desc="training", disable=arguments.quiet, delay=0.1)

    def report(done: int) -> None:
        bar.update(done - bar.n)

    if arguments.algorithm == "me-bpe":
        merges = train_me_bpe(_files_one_by_one(arguments, counts), wanted, limits, report)
    else:
        progress = Progress(np.zeros((wanted, 3), np.int64))
        store = _open_tokens(arguments, counts)
        if isinstance(store, TokensOnDisk):
            store.restore(progress)
        train(store, progress, limits, report)
        merges = merges_as_text(progress)
    bar.close()
    if counts.sequences and not counts.bases:
        raise ValueError(f"no A, C, G or T in {', '.join(map(str, arguments.files))}")
    if len(merges) < wanted:
        reached = len(merges) + FIRST_MERGE_ID
        raise ValueError(
            f"the corpus allows a vocabulary of only {reached} tokens, not {max(arguments.vocab_size)}: "
            f"ask for --vocab-size {reached} or less, or give more sequence"
        )
    return merges, counts


def _files_one_by_one(arguments: argparse.Namespace, counts: Counts):
    for path in arguments.files:
        blocks = _with_progress(read_codes([path], arguments.word_length, arguments.both_strands, counts), arguments)
        codes, complete = load_codes(blocks, _codes_that_fit(arguments))
        if not complete:
            raise ValueError(f"{path} does not fit the memory budget: me-bpe needs smaller files, or a larger --memory")
        if len(codes) < 2:
            raise ValueError(f"no A, C, G or T in {path}")
        yield codes


def _open_tokens(arguments: argparse.Namespace, counts: Counts) -> TokensInMemory | TokensOnDisk:
    """The corpus in memory if it fits the budget, else on disk; or an interrupted run on disk."""
    folder = Path(arguments.output) / "unfinished"
    source = {
        "files": [
            [str(Path(path).resolve()), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in arguments.files
        ],
        "word length": arguments.word_length,
        "both strands": arguments.both_strands,
        "min frequency": arguments.min_frequency,
        "max token length": arguments.max_token_length,
    }
    store = TokensOnDisk.resume(folder, arguments.memory, source)
    if store is not None:
        for name, value in store.state["counts"].items():
            setattr(counts, name, value)
        return store
    blocks = _with_progress(
        read_codes(arguments.files, arguments.word_length, arguments.both_strands, counts), arguments
    )
    codes, complete = load_codes(blocks, _codes_that_fit(arguments))
    if complete:
        return TokensInMemory(codes)
    return TokensOnDisk.create(
        folder, arguments.memory, itertools.chain(split_codes(codes), blocks), source, lambda: asdict(counts)
    )


def _codes_that_fit(arguments: argparse.Namespace) -> int:
    return min(int(arguments.memory / MEMORY_PER_CODE), (1 << 32) - (1 << 28))


def _with_progress(blocks, arguments: argparse.Namespace):
    with tqdm(unit="b", unit_scale=True, desc="reading bases", disable=arguments.quiet) as bar:
        for block in blocks:
            bar.update(len(block))
            yield block


def save(merges: list[tuple[str, str, int]], counts: Counts, arguments: argparse.Namespace, seconds: float) -> None:
    """Write one folder for each vocabulary size: OUTPUT itself for a single size, OUTPUT/<size> for several."""
    for size in arguments.vocab_size:
        folder = Path(arguments.output) / str(size) if len(arguments.vocab_size) > 1 else Path(arguments.output)
        own = merges[: size - FIRST_MERGE_ID]
        save_tokenizer_files(bpe_tokenizer([merge[:2] for merge in own]), folder, arguments.model_max_length)
        report = {
            "files": [Path(path).name for path in arguments.files],
            "algorithm": arguments.algorithm,
            "vocab_size": size,
            "word_length": arguments.word_length,
            "both_strands": arguments.both_strands,
            **asdict(counts),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(time.process_time(), 2),
            "peak_memory_bytes": peak_memory_bytes(),
            "merges": own,
        }
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in report.items())
        write_text_atomically(folder / "training_report.json", "{\n" + lines + "\n}\n")


def parse_sizes(text: str) -> list[int]:
    """Vocabulary sizes written with commas between, ascending, each once."""
    try:
        return sorted({int(size) for size in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 4096 or 256,4096") from None


def parse_memory(text: str) -> int:
    """Bytes of a size such as 8GB, 500MB or 2000000."""
    number, unit = text.upper().rstrip("B"), 1
    if number[-1:] in "KMGT" and number:
        unit = 1000 ** ("KMGT".index(number[-1]) + 1)
        number = number[:-1]
    try:
        size = int(float(number) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 8GB or 500MB") from None
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory at all")
    return size


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenization.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="FASTA, .txt or .parquet")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--vocab-size", type=parse_sizes, default=[4096], metavar="N[,N...]",
        help="tokens with the 5 special ones; several sizes, with commas between, are trained in one run into "
        "OUTPUT/<size> (default: 4096)",
    )  # fmt: skip
    parser.add_argument(
        "--word-length", type=int, default=DEFAULT_WORD_LENGTH, help="bases; no token reaches across (default: 1000)"
    )
    parser.add_argument(
        "--algorithm", choices=["exact", "me-bpe"], default="exact",
        help="exact: one vocabulary of all files together. me-bpe: dnaGrinder's greedy file-by-file update, in the "
        "order given, for comparison (default: exact)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=parse_memory, default=None, metavar="SIZE",
        help="budget, e.g. 8GB; a corpus of more than 0.8 bases per byte is trained from disk (default: half of this "
        "machine's memory)",
    )  # fmt: skip
    parser.add_argument("--both-strands", action="store_true", help="train on the reverse complement as well")
    parser.add_argument("--min-frequency", type=int, default=1, help="make no merge that counts less (default: 1)")
    parser.add_argument("--max-token-length", type=int, default=None, help="tokens stay below this many bases")
    parser.add_argument("--model-max-length", type=int, default=None, help="tokens at which truncation=True cuts")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args(words)
    for size in arguments.vocab_size:
        if not FIRST_MERGE_ID < size <= LARGEST_VOCABULARY:
            parser.error(
                f"--vocab-size {size}: it must be from {FIRST_MERGE_ID + 1} (5 special tokens, 4 letters, 1 merge) "
                f"to {LARGEST_VOCABULARY}"
            )
    if arguments.algorithm == "me-bpe" and len(arguments.vocab_size) > 1:
        parser.error("me-bpe trains one size: its small vocabularies are not the beginning of its large ones")
    if arguments.word_length < 2:
        parser.error(f"--word-length {arguments.word_length}: a word needs at least 2 bases")
    if arguments.memory is None and not hasattr(os, "sysconf"):
        parser.error("--memory is needed here: this system does not tell how much memory it has, e.g. --memory 8GB")
    if arguments.memory is None:
        arguments.memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return arguments


def main(words: list[str] | None = None) -> int:
    """Command line entry point; returns the exit status."""
    arguments = parse_arguments(words)
    started = time.time()
    try:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
        with locked_folder(arguments.output) as free:
            if not free:
                raise ValueError(
                    f"--output {arguments.output}: another tokenization.train works in it; wait until it has ended"
                )
            merges, counts = train_files(arguments)
            save(merges, counts, arguments, time.time() - started)
            if arguments.algorithm == "exact":
                shutil.rmtree(Path(arguments.output) / "unfinished", ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            print(f"error: {error.filename or arguments.output}: {error.strerror or error}", file=sys.stderr)
        else:
            print(
                f"error: no room left on the disk of {arguments.output}. Nothing half-written is kept; make room and "
                "give the same command again to go on",
                file=sys.stderr,
            )
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; a corpus above the memory budget goes on with the same command", file=sys.stderr)
        return 130
    share = counts.dropped / max(1, counts.dropped + counts.bases)
    print(
        f"{arguments.output}: vocabulary of {', '.join(map(str, arguments.vocab_size))} tokens from {counts.bases:,} "
        f"bases in {counts.sequences:,} sequences, {time.time() - started:.1f} s"
    )
    if counts.dropped:
        print(f"{counts.dropped:,} letters ({share:.2%}) were N or other ambiguity codes and ended words there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
