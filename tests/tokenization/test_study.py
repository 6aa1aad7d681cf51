"""The study measures what it says, and writes all of its files."""

import csv

import pytest

from tests.tokenization.oracle import dna_like, our_merges, write_fasta
from tokenization import study
from tokenization.encoder import Encoder
from tokenization.study import changed_tokens, long_piece_rows, main, model_flops, shift_rows, vocabulary_rows
from tokenization.tokenizer_files import bpe_tokenizer

SEQUENCE = dna_like(seed=51, length=40_000)


@pytest.fixture(scope="module")
def merges():
    return our_merges([SEQUENCE], 500)


def test_changed_tokens_leaves_out_common_beginning_and_end():
    assert changed_tokens(list("abcdef"), list("abXYef")) == 2
    assert changed_tokens(list("abc"), list("abc")) == 0
    assert changed_tokens(list("aa"), list("aaa")) == 1


def test_an_inserted_base_changes_k_overlapping_tokens_and_the_rest_of_the_others(merges):
    encoder = Encoder(bpe_tokenizer(merges))
    pieces = [SEQUENCE[start : start + 500] for start in range(0, 20_000, 500)]
    rows = {(row["tokenizer"], row["change"]): row for row in shift_rows(encoder, pieces)}
    overlapping = float(rows["overlapping 6-mer", "one base inserted"]["tokens_changed_mean"])
    assert 5 <= overlapping <= 6  # six k-mers hold the base; at the ends of a sequence fewer
    assert float(rows["non-overlapping 6-mer", "window one base later"]["share_changed"]) > 0.95
    bpe = float(rows["BPE 505", "one base inserted"]["tokens_changed_mean"])
    assert 1 <= bpe < 6


def test_compression_is_bases_by_tokens_on_the_held_out_pieces(merges):
    pieces = ["ACGTACGTAC" * 50, SEQUENCE[:500]]
    (row, *_) = vocabulary_rows(merges, [505], pieces)
    tokens = sum(len(Encoder(bpe_tokenizer(merges)).encode(piece)) for piece in pieces)
    assert float(row["bases_per_token"]) == pytest.approx(1000 / tokens, abs=1e-4)


def test_flops_grow_with_the_square_of_the_tokens_in_attention_only():
    one, two = model_flops(1000, 4096)[0], model_flops(2000, 4096)[0]
    assert two - 2 * one == pytest.approx(12 * 4 * 768 * (2000**2 - 2 * 1000**2))


def test_long_pieces_are_taken_inside_runs(monkeypatch, tmp_path, merges):
    monkeypatch.setattr(study, "LONG_LENGTHS", [1000, 5000, 90_000])
    fasta = write_fasta(tmp_path / "genome.fa", [SEQUENCE[:5000] + "N" * 50 + SEQUENCE[5000:7000], SEQUENCE[:900]])
    encoder = Encoder(bpe_tokenizer(merges))
    rows = long_piece_rows(encoder, [fasta])
    assert [(row["length_bp"], row["pieces"]) for row in rows] == [(1000, 11), (5000, 11)]
    assert rows[1]["longest_tokens"] == rows[1]["shortest_tokens"] == len(encoder.encode(SEQUENCE[:5000]))
    assert encoder.unknown == 0


def test_the_command_writes_every_file(tmp_path):
    train = write_fasta(tmp_path / "train.fa", [SEQUENCE])
    held_out = write_fasta(tmp_path / "other.fa", [dna_like(seed=52, length=130_000)])
    sizes = ["--sizes", "64", "256", "--size", "256"]
    assert main(["--train", str(train), "--held-out", str(held_out), "--output", str(tmp_path / "out"), *sizes]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "vocabulary_sizes.csv").open()))
    assert [row["tokenizer"] for row in rows[:2]] == ["BPE 64", "BPE 256"] and len(rows) == 7
    assert float(rows[0]["bases_per_token"]) < float(rows[1]["bases_per_token"])
    assert float(rows[1]["relative_encoder_flops"]) < 1 == float(rows[0]["relative_encoder_flops"])
    assert (tmp_path / "out" / "vocabulary_sizes.png").read_bytes().startswith(b"\x89PNG")
    frequent = list(csv.DictReader((tmp_path / "out" / "frequent_tokens.csv").open()))
    counts = [int(row["count"]) for row in frequent]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0
    assert len(list(csv.DictReader((tmp_path / "out" / "long_pieces.csv").open()))) == 1
    assert len(list(csv.DictReader((tmp_path / "out" / "shift.csv").open()))) == 6


def test_too_large_a_vocabulary_is_refused(tmp_path, capsys):
    fasta = str(write_fasta(tmp_path / "train.fa", [SEQUENCE[:600]]))
    assert main(["--train", fasta, "--held-out", fasta, "--output", str(tmp_path / "out")]) == 1
    assert "the training genomes allow only" in capsys.readouterr().err
