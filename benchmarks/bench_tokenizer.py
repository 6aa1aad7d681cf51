"""Speed, memory and exactness of the tokenizer beside its rivals, on real genomes.

    python -m benchmarks.bench_tokenizer GENOMES_FOLDER [--only train|encode|overflow|disk|me-bpe] [--output FILE.csv]

GENOMES_FOLDER: FASTA files in subfolders. Every measurement is a process of its own on one thread; CPU seconds are
compared, since a machine may be shared. Ours is warm (compiled code in the cache). A training time runs from a file
with one word per line to the merge list; encoders are warmed up by one pass, and of five more the fastest counts.
Rivals: tokenizers, and sentencepiece if it is installed. Rows are written as they come; a row that the file has already
is not measured again, unless it failed.
"""

import argparse
import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import peak_memory_gb

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tokenizer.csv"
COLUMNS = [
    "what", "implementation", "corpus", "bases", "setting", "cpu_s", "wall_s", "ns_per_base", "mb_per_s",
    "peak_memory_mb", "above_start_mb", "note",
]  # fmt: skip
SIZES = (16, 64)  # Mbp
WORD_LENGTHS = (1000, 12_200)  # bp: DNABERT-2 and dnaGrinder
VOCABULARY = 4096  # of the command, in memory, from disk and with ME-BPE
HELD_OUT = ("galGal4", "monDom5", "celegans", "NC_006980", "caulobacter", "mtuberculosis")  # beginnings of file names
NOT_USED = "rice"  # holds the Arabidopsis sequence of another file
REPEATS = 5  # of an encoder, after it is warm


# ---- the measured processes ----


def measured(work):
    """Run work() and return (its result, figures of the process)."""
    start_memory = peak_memory()
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    figures = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    figures |= {"peak_memory_mb": peak_memory(), "above_start_mb": peak_memory() - start_memory}
    return result, figures


def peak_memory() -> float:
    """Largest resident size of this process so far, MB (2^20 bytes, as in all rows)."""
    return peak_memory_gb() * 1e9 / 2**20


def warm(encode, lines: list[str]):
    """(encode(lines), figures): time of the fastest of REPEATS passes, memory of the pass before them."""
    encode(lines[:1])  # compiled code is loaded here
    result, figures = measured(lambda: encode(lines))
    fastest = min((measured(lambda: encode(lines))[1] for _ in range(REPEATS)), key=lambda found: found["cpu_s"])
    return result, figures | {name: fastest[name] for name in ("cpu_s", "wall_s")}


def train_ours(words: str, vocabulary: int):
    from tokenization.bpe_trainer import Limits, Progress, TokensInMemory, merges_as_text, train
    from tokenization.words import CODES, load_codes

    def merge(codes, merges, positions=None):
        progress = Progress(np.zeros((merges, 3), np.int64))
        store = TokensInMemory(codes)
        store.positions = positions or store.positions
        train(store, progress, Limits(), lambda done: None)
        return [merge[:2] for merge in merges_as_text(progress)]

    def read():
        newlines = CODES.copy()
        with open(words, "rb") as file:
            while block := file.read(1 << 24):
                yield newlines[np.frombuffer(block, np.uint8)]

    random_codes = np.random.default_rng(0).integers(0, 4, 30_000).astype(np.uint8)
    random_codes[[0, -1]] = 255
    merge(random_codes, 1200, positions=2000)  # compiled code is loaded here
    return measured(lambda: merge(load_codes(read(), 1 << 40)[0], vocabulary - 9))


def train_tokenizers(words: str, vocabulary: int):
    from tokenizers import Tokenizer, models, trainers

    def work():
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocabulary - 5, initial_alphabet=list("ACGT"), show_progress=False)
        with open(words) as file:
            tokenizer.train_from_iterator((line.strip() for line in file), trainer)
        return tokenizer

    tokenizer, figures = measured(work)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]], figures


def train_sentencepiece(words: str, vocabulary: int):
    import sentencepiece

    def work():
        model = io.BytesIO()
        with open(words) as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line.strip() for line in file), model_writer=model, model_type="bpe",
                vocab_size=vocabulary - 5, num_threads=1, add_dummy_prefix=False, character_coverage=1.0,
                max_sentence_length=1 << 20, minloglevel=2, bos_id=-1, eos_id=-1, input_sentence_size=0,
                max_sentencepiece_length=512,
            )  # fmt: skip
        return model

    return [], measured(work)[1]


def encode_ours(lines: list[str], tokenizer: str):
    from tokenization.encoder import Encoder

    (ids, _), figures = warm(Encoder.load(tokenizer).encode_batch, lines)
    return ids.tolist(), figures


def encode_tokenizers(lines: list[str], tokenizer: str):
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    encodings, figures = warm(lambda some: encoder.encode_batch_fast(some, add_special_tokens=False), lines)
    return [index for encoding in encodings for index in encoding.ids], figures


def overflow_tokenizers(repeats: int):
    """First merge of tokenizers for `repeats` words of 999 A and one C: AA counts 998 times as much."""
    from tokenizers import Tokenizer, models, trainers

    def work():
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=5, initial_alphabet=list("ACGT"), show_progress=False)
        tokenizer.train_from_iterator(("A" * 999 + "C" for _ in range(repeats)), trainer)
        return json.loads(tokenizer.to_str())["model"]["merges"]

    return measured(work)


def overflow_ours(repeats: int):
    from tokenization.bpe_trainer import Limits, Progress, TokensInMemory, merges_as_text, train

    def work():
        word = np.array([255] + [0] * 999 + [1], np.uint8)
        codes = np.empty(len(word) * repeats + 1, np.uint8)
        codes[:-1].reshape(repeats, -1)[:] = word
        codes[-1] = 255
        progress = Progress(np.zeros((1, 3), np.int64))
        train(TokensInMemory(codes), progress, Limits(), lambda done: None)
        return [[left, right, count] for left, right, count in merges_as_text(progress)]

    return measured(work)


# ---- the suite ----


class Suite:
    """Runs measurements in processes of their own and keeps their rows in a CSV file."""

    def __init__(self, output: Path, folder: Path):
        self.output, self.folder = output, folder
        self.rows = list(csv.DictReader(output.open())) if output.exists() else []

    def row(self, what: str, implementation: str, corpus: str, setting: str) -> dict | None:
        key = (what, implementation, corpus, setting)
        return next((r for r in self.rows if (r["what"], r["implementation"], r["corpus"], r["setting"]) == key), None)

    def add(self, row: dict) -> None:
        for name, value in row.items():
            row[name] = f"{value:.3f}" if isinstance(value, float) else value
        self.rows.append(row)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.output.with_suffix(".part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.output)
        print(" ".join(f"{name}={value}" for name, value in row.items() if value != ""), flush=True)

    def measure(self, what: str, implementation: str, corpus: str, setting: str, bases: int, *arguments) -> None:
        """Measure unless the row is there; the result goes to a file that `result` reads."""
        there = self.row(what, implementation, corpus, setting)
        if there and there["cpu_s"]:
            return
        self.rows = [row for row in self.rows if row is not there]
        path = self._file(what, implementation, corpus, setting)
        path.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_tokenizer",
            "--measure",
            f"{what}_{implementation}",
            str(path),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command += map(json.dumps, arguments)
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if process.returncode:
            self.add(self._empty(what, implementation, corpus, setting) | {"note": process.stderr.strip()[-200:]})
            return
        figures = json.loads(process.stdout.splitlines()[-1])
        figures |= {"ns_per_base": figures["cpu_s"] / bases * 1e9, "mb_per_s": bases / figures["cpu_s"] / 1e6}
        self.add(self._empty(what, implementation, corpus, setting) | {"bases": bases} | figures)

    def result(self, what: str, implementation: str, corpus: str, setting: str):
        path = self._file(what, implementation, corpus, setting)
        return json.loads(path.read_text()) if path.exists() else None

    def note(self, what: str, implementation: str, corpus: str, setting: str, note: str) -> None:
        row = self.row(what, implementation, corpus, setting)
        self.rows.remove(row)
        self.add({**row, "note": note})

    def compare(self, what: str, corpus: str, setting: str, equal: str) -> None:
        """Note beside our row whether the result equals that of tokenizers, and the ratio, where both were measured."""
        keys = [(what, implementation, corpus, setting) for implementation in ("ours", "tokenizers")]
        results, rows = [self.result(*key) for key in keys], [self.row(*key) for key in keys]
        if None in results or not all(row["cpu_s"] for row in rows):
            return
        ratio = float(rows[1]["cpu_s"]) / float(rows[0]["cpu_s"])
        self.note(*keys[0], f"{equal}: {results[0] == results[1]}; {ratio:.1f}x its speed")

    def _file(self, *key: str) -> Path:
        return self.folder / ("-".join(key).replace(" ", "_").replace("/", "_") + ".json")

    @staticmethod
    def _empty(*key: str) -> dict:
        return dict.fromkeys(COLUMNS, "") | dict(
            zip(["what", "implementation", "corpus", "setting"], key, strict=False)
        )


def write_words(genomes: list[Path], most: float, word_length: int, path: Path) -> int:
    """Write words, one a line, of the files in a fixed random order until `most` bases are there; returns the bases."""
    from tokenization.words import read_codes

    letters = np.frombuffer(b"ACGT" + b"\n" * 252, np.uint8)
    bases = 0
    with open(path, "wb") as file:
        for codes in read_codes(genomes, word_length):
            file.write(letters[codes].tobytes())
            bases += int((codes != 255).sum())
            if bases >= most:
                break
        file.write(b"\n")
    return bases


def train_suite(suite: Suite, genomes: list[Path]) -> None:
    corpora = [(f"real {size} Mbp", genomes, size * 1e6) for size in SIZES]
    corpora += [
        ("E. coli K-12", [p for p in genomes if "ecoli_K12" in p.name], 1e12),
        ("all real genomes", genomes, 1e12),
    ]
    for corpus, files, most in corpora:
        for word_length in WORD_LENGTHS:
            words = suite.folder / f"{corpus.replace(' ', '_')}_{word_length}.txt"
            if corpus.startswith("all") and word_length != WORD_LENGTHS[0]:
                continue
            bases = write_words(files, most, word_length, words)
            setting = f"words of {word_length} bp, vocabulary 4096"
            suite.measure("train", "ours", corpus, setting, bases, str(words), 4096)
            if corpus.startswith("all"):
                continue
            suite.measure("train", "tokenizers", corpus, setting, bases, str(words), 4096)
            suite.compare("train", corpus, setting, "merges equal to tokenizers")
            if word_length == WORD_LENGTHS[0] and "E. coli" not in corpus:
                suite.measure("train", "sentencepiece", corpus, setting, bases, str(words), 4096)
    words = suite.folder / "real_16_Mbp_1000.txt"
    bases = int(suite.row("train", "ours", "real 16 Mbp", "words of 1000 bp, vocabulary 4096")["bases"])
    setting = "words of 1000 bp, vocabulary 32768"
    suite.measure("train", "ours", "real 16 Mbp", setting, bases, str(words), 32768)
    suite.measure("train", "tokenizers", "real 16 Mbp", setting, bases, str(words), 32768)
    suite.compare("train", "real 16 Mbp", setting, "merges equal to tokenizers")


def encode_suite(suite: Suite, genomes: list[Path]) -> None:
    tokenizer = Path(__file__).parents[1] / "tokenization" / "vocabulary" / "tokenizer.json"
    sources = {"E. coli K-12": "ecoli_K12", "hg38, soft-masked": "hg38.cgp"}
    for corpus, name in sources.items():
        for length, most, rival_most in ((1000, 20, 4), (12_000, 20, 4), (120_000, 20, 4), (1_000_000, 20, 4)):
            setting = f"pieces of {length} bp"
            for implementation, megabases in (("ours", most), ("tokenizers", rival_most), ("ours", rival_most)):
                key = corpus if megabases == most else f"{corpus}, start"
                arguments = ([str(p) for p in genomes if name in p.name], length, megabases * 1e6, str(tokenizer))
                pieces = _pieces(*arguments[:3])
                suite.measure("encode", implementation, key, setting, sum(map(len, pieces)), *arguments)
            suite.compare("encode", f"{corpus}, start", setting, "ids equal to encode_batch_fast")


def _pieces(files: list[str], length: int, most: float) -> list[str]:
    """Upper-case pieces without N of the files, cut every `length` bases."""
    from tokenization.alphabet import acgt_runs, normalize
    from tokenization.words import read_sequences

    pieces, bases = [], 0
    for path in files:
        for _, sequence in read_sequences(path):
            sequence = normalize(sequence)
            for start, end in acgt_runs(sequence):
                for cut in range(start, end, length):
                    pieces.append(sequence[cut : min(cut + length, end)].decode())
                    bases += len(pieces[-1])
                    if bases >= most:
                        return pieces
    return pieces


def overflow_suite(suite: Suite) -> None:
    for repeats in (1_000_000, 2_200_000):
        setting = f"{repeats:,} words of 999 A and one C: AA occurs {repeats * 998:,} times"
        for implementation in ("tokenizers", "ours"):
            suite.measure("overflow", implementation, "synthetic", setting, repeats * 1000, repeats)
            first = suite.result("overflow", implementation, "synthetic", setting)
            if first is not None:
                suite.note("overflow", implementation, "synthetic", setting, f"first merge: {first}")


def disk_suite(suite: Suite, genomes: list[Path]) -> None:
    """The command itself on all genomes, in memory and with a quarter of the corpus as its budget."""
    bases = write_words(genomes, 1e12, 1000, Path(os.devnull))
    for name, memory in (("in memory", "16GB"), ("a quarter of the corpus", f"{bases // 4}")):
        output = suite.folder / f"command-{memory}"
        command = [sys.executable, "-m", "tokenization.train", *map(str, genomes), "--quiet", "--memory", memory]
        key = ("command", "ours", "all real genomes", f"vocabulary 4096, budget: {name}")
        if suite.row(*key):
            continue
        wall = time.perf_counter()
        subprocess.run([*command, "--output", str(output)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        report = json.loads((output / "training_report.json").read_text())
        figures = {"cpu_s": report["cpu_seconds"], "wall_s": time.perf_counter() - wall, "bases": bases}
        figures |= {"peak_memory_mb": report["peak_memory_bytes"] / 2**20}
        figures |= {"ns_per_base": report["cpu_seconds"] / bases * 1e9, "mb_per_s": bases / report["cpu_seconds"] / 1e6}
        suite.add(
            Suite._empty(*key)
            | figures
            | {"note": f"budget {int(bases // 4) / 2**20:.0f} MB" if memory[-1] != "B" else ""}
        )
    files = [suite.folder / f"command-{memory}" / "tokenizer.json" for memory in ("16GB", str(bases // 4))]
    if all(path.exists() for path in files):
        same = files[0].read_bytes() == files[1].read_bytes()
        suite.note(*key, f"budget {int(bases // 4) / 2**20:.0f} MB; file equal to the one trained in memory: {same}")


def me_bpe_suite(suite: Suite, genomes: list[Path]) -> None:
    """The command on four files, exact and ME-BPE in two orders; tokens per base on species that it did not see."""
    from tokenization.encoder import Encoder

    genomes = sorted(path for path in genomes if not path.name.startswith(NOT_USED))
    held_out = [path for path in genomes if path.name.startswith(HELD_OUT)]
    files = _groups([path for path in genomes if path not in held_out], suite.folder)
    orders = {"exact": files, "ME-BPE, vertebrates first": files, "ME-BPE, vertebrates last": [*files[1:], files[0]]}
    keys = {
        name: ("me-bpe", name, "four files", f"words of {WORD_LENGTHS[1]} bp, vocabulary {VOCABULARY}")
        for name in orders
    }
    if all(suite.row(*key) for key in keys.values()):
        return
    suite.rows = [row for row in suite.rows if row["what"] != "me-bpe"]
    pieces = [piece for path in held_out for piece in _pieces([str(path)], 10_000, 4e6 / len(held_out))]
    made: dict[str, set[str]] = {}
    for name, order in orders.items():
        output = suite.folder / name.replace(" ", "_")
        command = [sys.executable, "-m", "tokenization.train", *map(str, order), "--quiet", "--output", str(output)]
        command += ["--algorithm", name.split(",")[0].lower(), "--word-length", str(WORD_LENGTHS[1])]
        command += ["--vocab-size", str(VOCABULARY)]
        wall = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - wall
        report = json.loads((output / "training_report.json").read_text())
        encoder = Encoder.load(output)
        tokens = len(encoder.encode_batch(pieces)[0]) / sum(map(len, pieces))
        vocabulary = set(encoder.tokenizer.get_vocab())
        shared = [f"{len(vocabulary & made[other]) / len(vocabulary):.2f} of its tokens in {other}" for other in made]
        made[name] = vocabulary
        figures = {"bases": report["bases"], "cpu_s": report["cpu_seconds"], "wall_s": wall}
        figures |= {"ns_per_base": report["cpu_seconds"] / report["bases"] * 1e9}
        figures |= {"peak_memory_mb": report["peak_memory_bytes"] / 2**20}
        note = "; ".join([f"{tokens:.4f} tokens per base of other species", *shared])
        suite.add(Suite._empty(*keys[name]) | figures | {"note": note})


def _groups(genomes: list[Path], folder: Path) -> list[Path]:
    """One file of sequences each of vertebrates, fungi, bacteria and the rest."""
    from tokenization.words import read_sequences

    files = [folder / f"{name}.txt" for name in ("vertebrates", "fungi", "bacteria", "rest")]
    folders = {"vertebrates_softmasked": 0, "human_other": 0, "fungi": 1, "bacteria": 2}
    for file in files:
        file.unlink(missing_ok=True)
    for path in genomes:
        with open(files[folders.get(path.parent.name, 3)], "ab") as file:
            for _, sequence in read_sequences(path):
                file.write(sequence + b"\n")
    return files


def run_measurement(name: str, path: str, arguments: list) -> None:
    if name.startswith("encode"):
        files, length, most, tokenizer = arguments
        arguments = [_pieces(files, length, most), tokenizer]
    result, figures = globals()[name](*arguments)
    Path(path).write_text(json.dumps(result))
    print(json.dumps(figures))


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        run_measurement(sys.argv[2], sys.argv[3], [json.loads(word) for word in sys.argv[4:]])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genomes", type=Path)
    parser.add_argument("--only", choices=["train", "encode", "overflow", "disk", "me-bpe"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench_tokenizer")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    genomes = sorted(path for path in arguments.genomes.rglob("*") if path.suffix in (".gz", ".fa", ".fasta", ".fna"))
    random.Random(0).shuffle(genomes)
    suite = Suite(arguments.output, arguments.folder)
    if arguments.only in (None, "train"):
        train_suite(suite, genomes)
    if arguments.only in (None, "encode"):
        encode_suite(suite, genomes)
    if arguments.only in (None, "disk"):
        disk_suite(suite, genomes)
    if arguments.only in (None, "me-bpe"):
        me_bpe_suite(suite, genomes)
    if arguments.only in (None, "overflow"):
        overflow_suite(suite)


if __name__ == "__main__":
    main()
