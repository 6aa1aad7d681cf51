"""Training from disk gives the merges of training in memory, within its budget, and goes on after any interruption."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.oracle import codes_of, dna_like, our_merges, reference_merges, word_lists, write_fasta
from tokenization import bpe_trainer
from tokenization.bpe_trainer import Limits, Progress, merges_as_text, train
from tokenization.tokens_on_disk import TokensOnDisk

COMMAND = [sys.executable, "-m", "tokenization.train", "--quiet", "--vocab-size", "700"]


def blocks_of(words, size):
    """Codes of words, `size` words in a block, as the reader gives them: without the closing separator."""
    for start in range(0, len(words), size):
        yield codes_of(words[start : start + size])[:-1]


def on_disk(folder, words, budget, block):
    return TokensOnDisk.create(folder, budget, blocks_of(words, block), {})


@settings(max_examples=100, deadline=None)
@given(
    words=word_lists,
    vocabulary=st.sampled_from([12, 60, 300]),
    min_frequency=st.integers(0, 3),
    max_token_length=st.sampled_from([None, 4, 9]),
    positions=st.sampled_from([5, 30, 1 << 16]),
    block=st.integers(1, 3),  # 1: a segment for each word
)
def test_merges_equal_those_of_tokenizers(
    tmp_path_factory, words, vocabulary, min_frequency, max_token_length, positions, block
):
    store = on_disk(tmp_path_factory.mktemp("disk"), words, budget=8, block=block)
    merges = our_merges(words, vocabulary, min_frequency, max_token_length, positions, store)
    assert merges == reference_merges(words, vocabulary, min_frequency, max_token_length)


def test_merges_of_a_longer_sequence_equal_those_in_memory(tmp_path):
    sequence = dna_like(seed=5, length=200_000)
    words = [sequence[start : start + 500] for start in range(0, len(sequence), 500)]
    store = on_disk(tmp_path / "work", words, budget=50_000, block=10)
    assert store.state["segments"] > 20
    assert our_merges(words, 900, store=store) == our_merges(words, 900)


def test_pairs_that_may_not_be_merged_need_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(bpe_trainer, "MOST_DENSE_BITS", 8)
    words = ["A" * 60_000, dna_like(seed=10, length=20_000)]
    expected = reference_merges(words, 300, max_token_length=6)
    store = on_disk(tmp_path / "work", words, budget=80_000, block=1)
    assert our_merges(words, 300, max_token_length=6, positions=4000, store=store) == expected


def test_a_budget_below_the_best_pair_of_a_full_dense_stage_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(bpe_trainer, "MOST_DENSE_BITS", 8)
    words = [dna_like(seed=10, length=20_000)]
    store = on_disk(tmp_path / "work", words, budget=80_000, block=1)
    with pytest.raises(ValueError, match="the memory budget is too small: .* give .* times as much"):
        our_merges(words, 300, positions=10, store=store)


def test_resuming_after_every_stage_changes_nothing(tmp_path):
    words = [dna_like(seed=6, length=30_000)]
    expected = our_merges(words, 300)

    class Stop(Exception):
        pass

    def stop(done):
        raise Stop

    on_disk(tmp_path / "work", words, budget=8000, block=1)
    stages = 0
    while True:
        store = TokensOnDisk.resume(tmp_path / "work", 8000, {})
        progress = Progress(np.zeros((296, 3), np.int64))
        store.restore(progress)
        if progress.finished:
            break
        with pytest.raises(Stop):
            train(store, progress, Limits(), stop)
        stages += 1
    assert stages > 20
    assert [merge[:2] for merge in merges_as_text(progress)] == expected


def test_a_failing_stage_leaves_the_stage_before_it(tmp_path, monkeypatch):
    words = [dna_like(seed=7, length=20_000)]
    store = on_disk(tmp_path / "work", words, budget=8000, block=1)
    before = sorted(path.name for path in (tmp_path / "work").rglob("*"))

    def broken(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenization.tokens_on_disk._Generation.write", broken)
    with pytest.raises(OSError, match="No space left"):
        our_merges(words, 100, store=store)
    assert sorted(path.name for path in (tmp_path / "work").rglob("*")) == before


def test_a_folder_of_another_run_is_not_continued(tmp_path):
    TokensOnDisk.create(tmp_path / "work", 1000, blocks_of(["ACGT"], 1), {"word length": 1000})
    with pytest.raises(ValueError, match="unfinished run with other word length"):
        TokensOnDisk.resume(tmp_path / "work", 1000, {"word length": 500})


def test_a_run_that_was_killed_while_reading_starts_over(tmp_path):
    (tmp_path / "work" / "generation-00000").mkdir(parents=True)
    assert TokensOnDisk.resume(tmp_path / "work", 1000, {}) is None


def test_killed_and_resumed_gives_the_same_file(tmp_path):
    fasta = write_fasta(tmp_path / "genome.fa", [dna_like(seed=8, length=400_000)])
    subprocess.run([*COMMAND, fasta, "--output", tmp_path / "whole"], check=True, cwd=".")
    command = [*COMMAND, fasta, "--output", tmp_path / "killed", "--memory", "30KB"]
    state = tmp_path / "killed" / "unfinished" / "state.json"
    generation = 0
    for kill_at in (3, 30):
        process = subprocess.Popen(command, cwd=".")
        while process.poll() is None and generation < kill_at:
            time.sleep(0.002)
            generation = json.loads(state.read_text())["generation"] if state.exists() else 0
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
        assert not (tmp_path / "killed" / "tokenizer.json").exists()
    subprocess.run(command, check=True, cwd=".")
    assert (tmp_path / "killed" / "tokenizer.json").read_bytes() == (tmp_path / "whole" / "tokenizer.json").read_bytes()
    assert not (tmp_path / "killed" / "unfinished").exists()
