"""A small genome, a small vocabulary and a minuscule model for the tests of pre-training."""

import gc
import json
import random
from pathlib import Path

import hypothesis
import pytest
from transformers import PreTrainedTokenizerFast

import run_classification
from tests.training.classification_runs import planted, write_table
from tests.training.runs import STEPS
from tokenization.tokenizer_files import bpe_tokenizer, save_tokenizer_files
from training import classification_results, loss_curve

hypothesis.settings.register_profile("no deadline", deadline=None)  # machines of a CI share their cores
hypothesis.settings.load_profile("no deadline")

MERGES = [("A", "A"), ("C", "G"), ("T", "T"), ("AA", "CG"), ("G", "TT"), ("AACG", "T"), ("A", "C"), ("AC", "AC")]
VOCABULARY_SIZE = 9 + len(MERGES)


def random_dna(length: int, seed: int) -> str:
    """Random bases, a little structured: every fifth word is the same."""
    rng = random.Random(seed)
    words = ("".join(rng.choices("ACGT", k=9)) if rng.random() < 0.8 else "AACGTTACG" for _ in range(length // 9 + 1))
    return "".join(words)[:length]


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection():
    """accelerate collects garbage before every training; leave the imported modules out of it."""
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer_files(bpe_tokenizer(MERGES), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.json"
    config = {
        "model_type": "strandbert",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "hidden_dropout_prob": 0.0,
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def genome_file(tmp_path_factory):
    """Three contigs of 3,000 bp, the second with a gap of N; about 80 windows of 48 tokens."""
    contigs = [random_dna(3000, seed) for seed in range(3)]
    contigs[1] = contigs[1][:1000] + "N" * 200 + contigs[1][1200:]
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text("".join(f">contig{i} test\n{contig}\n" for i, contig in enumerate(contigs)))
    return path


@pytest.fixture
def without_pictures(monkeypatch):
    """Drawing takes longer than training here."""
    monkeypatch.setattr(loss_curve, "_draw", lambda *_: None)
    monkeypatch.setattr(loss_curve, "_draw_speed", lambda *_: None)
    monkeypatch.setattr(classification_results, "draw_predictions", lambda *_: None)
    monkeypatch.setattr(run_classification, "draw_training", lambda *_: None)


@pytest.fixture
def settings(tmp_path, config_file, tokenizer_folder, genome_file) -> dict:
    """Settings of a run of STEPS steps, as a JSON file would hold them."""
    return {
        "config_name": str(config_file),
        "tokenizer_name": str(tokenizer_folder),
        "train_file": str(genome_file),
        "output_dir": str(tmp_path / "run"),
        "validation_split_percentage": 20,
        "max_train_samples": 76,
        "max_seq_length": 32,
        "max_steps": STEPS,
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "eval_steps": 6,
        "save_steps": 4,
        "use_cpu": True,
        "disable_tqdm": True,
    }


@pytest.fixture
def with_dropout(tmp_path, settings) -> dict:
    """The same settings with a model that has dropout: its random numbers must be resumed too."""
    config = json.loads(Path(settings["config_name"]).read_text()) | {"hidden_dropout_prob": 0.1}
    (tmp_path / "dropout.json").write_text(json.dumps(config))
    return settings | {"config_name": str(tmp_path / "dropout.json")}


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    sizes = {"train_file": 64, "validation_file": 32, "test_file": 32}
    return {
        name: write_table(folder / f"{name}.csv", planted(size, seed))
        for seed, (name, size) in enumerate(sizes.items())
    }


@pytest.fixture
def classification_settings(tmp_path, config_file, tokenizer_folder, tables) -> dict:
    """Settings of a short run from random weights, as flags."""
    return tables | {
        "config_name": str(config_file),
        "tokenizer_name": str(tokenizer_folder),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 12,
        "eval_steps": 4,
        "global_batch_size": 8,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
