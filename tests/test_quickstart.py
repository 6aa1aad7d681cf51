"""The quick start: it runs, runs again, says honestly how far it got, and names what is wrong with a genome."""

import subprocess
import sys

import pytest

import quickstart
from corpus.fasta import FastaError
from corpus.synthetic import write_synthetic_genomes

from .conftest import ROOT

RESULTS = {
    "eval_loss": 3.4,
    "eval_unigram_entropy": 4.4,
    "eval_bigram_entropy": 3.9,
    "eval_accuracy": 0.25,
    "global_step": 1200,
    "train_tokens_per_second": 12345.6,
    "train_base_pairs_per_second": 37000.0,
}


def start(genome, output, cwd=ROOT):
    program = str(ROOT / "quickstart.py")
    command = [sys.executable, program, "--fasta", str(genome), "--output", str(output), "--steps", "4"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_a_genome_becomes_a_model_that_fills_masks_and_running_again_goes_on(tmp_path):
    [genome, _] = write_synthetic_genomes(tmp_path, 100_000)
    first = start(genome.name, "out", cwd=genome.parent)  # relative to where one is
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("[MASK]") == 3 and "truth" in first.stdout
    assert "| held-out masked-LM loss" in (tmp_path / "out" / "borealis" / "results.md").read_text()
    model = tmp_path / "out" / "borealis" / "model"
    assert (model / "loss_curve.png").stat().st_size > 0
    weights = (model / "model.safetensors").read_bytes()
    again = start(genome, tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert "training a tokenizer" not in again.stdout
    assert (model / "model.safetensors").read_bytes() == weights


def test_synthetic_genomes_of_an_interrupted_run_are_completed_and_whole_ones_kept(tmp_path, monkeypatch):
    written = []

    def write(folder):
        written.append(folder)
        return write_synthetic_genomes(folder, 10_000)

    monkeypatch.setattr(quickstart, "write_synthetic_genomes", write)
    paths = quickstart.synthetic_genomes(tmp_path)
    assert sorted(paths) == sorted(tmp_path.iterdir()) and len(paths) == 2
    assert quickstart.synthetic_genomes(tmp_path) == paths and len(written) == 1
    paths[1].unlink()
    assert quickstart.synthetic_genomes(tmp_path) == paths and len(written) == 2
    assert paths[1].is_file()


def test_a_file_that_is_not_fasta_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("gene expression\n")
    with pytest.raises(FastaError, match=r"notes\.txt"):
        quickstart.own_genome([tmp_path / "notes.txt"], tmp_path)


def test_a_missing_file_is_named(tmp_path):
    run = start(tmp_path / "absent.fa", tmp_path / "out")
    assert run.returncode == 1 and "absent.fa" in run.stderr and "Traceback" not in run.stderr


def test_a_genome_that_is_too_small_says_how_much_is_needed(tmp_path):
    (tmp_path / "small.fa").write_text(">plasmid\n" + "ACGTNN" * 3 + "\n")
    run = start("small.fa", "out", cwd=tmp_path)
    assert run.returncode == 1 and "Traceback" not in run.stderr and "--vocab-size" not in run.stderr
    assert f"{tmp_path / 'small.fa'}: too small, 12 bp" in run.stderr and "at least 10,000 bp" in run.stderr


def test_soft_masked_bases_and_u_count_and_the_files_count_together(tmp_path):
    for name in ("a.fa", "b.fa"):
        (tmp_path / name).write_text(">one\n" + "acGU" * 1250 + "\n")
    quickstart.check_size([tmp_path / "a.fa", tmp_path / "b.fa"])
    with pytest.raises(quickstart.QuickStartError, match="5,000 bp"):
        quickstart.check_size([tmp_path / "a.fa"])


def test_of_a_large_genome_the_first_part_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "LARGEST_INPUT", 25)
    (tmp_path / "a.fa").write_text(">one\n" + "A" * 10 + "\n>two\n" + "C" * 10 + "\n")
    (tmp_path / "b.fa").write_text(">three\n" + "G" * 10 + "\n")
    assert quickstart.own_genome([tmp_path / "a.fa"], tmp_path) == [tmp_path / "a.fa"]
    [part] = quickstart.own_genome([tmp_path / "a.fa", tmp_path / "b.fa"], tmp_path)
    assert [r.sequence for r in quickstart.read_fasta(part)] == [b"A" * 10, b"C" * 10, b"G" * 5]
    written = part.stat().st_mtime_ns
    assert quickstart.own_genome([tmp_path / "a.fa", tmp_path / "b.fa"], tmp_path) == [part]
    assert part.stat().st_mtime_ns == written


def test_no_empty_record_follows_a_first_part_that_ends_with_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "LARGEST_INPUT", 10)
    (tmp_path / "a.fa").write_text(">one\n" + "A" * 10 + "\n>two\n" + "C" * 10 + "\n")
    [part] = quickstart.own_genome([tmp_path / "a.fa"], tmp_path)
    assert [(r.name, r.sequence) for r in quickstart.read_fasta(part)] == [("one", b"A" * 10)]


def test_the_same_settings_give_the_same_folder_and_others_a_fresh_one(tmp_path):
    first = quickstart.run_folder(tmp_path, {"name": "yeast", "fasta": "a"})
    other = quickstart.run_folder(tmp_path, {"name": "yeast", "fasta": "b"})
    assert (first.name, other.name) == ("yeast", "yeast-2")
    assert quickstart.run_folder(tmp_path, {"name": "yeast", "fasta": "a"}) == first
    assert quickstart.run_folder(tmp_path, {"name": "yeast", "fasta": "b"}) == other


def test_the_table_says_how_far_below_the_bigram_the_model_is():
    table = quickstart.results_table(RESULTS, 528_768, 100.0)
    assert "0.500 nats below the bigram" in table and "12,346 tokens/s" in table and "25.0%" in table


def test_the_table_says_when_the_model_is_not_below_the_bigram():
    table = quickstart.results_table({**RESULTS, "eval_loss": 4.1}, 528_768, 100.0)
    assert "still 0.200 nats above the bigram; train longer: --steps 2400" in table


def test_the_example_is_the_last_repeat(tmp_path):
    (tmp_path / "a.fa").write_text(">one\n" + "acgt" * 50 + "NNN" + "ttaac" * 100 + "ACGTT" * 40 + "NN\n")
    description, sequence = quickstart.example_sequence([tmp_path / "a.fa"])
    assert (description, sequence) == ("a repeat of one, from base 304", b"ttaac" * 80)


def test_without_repeats_the_example_is_the_last_piece_without_ambiguous_bases(tmp_path):
    (tmp_path / "a.fa").write_text(">short\nACGT\n>one\n" + "ACGT" * 50 + "NNN" + "ACGTT" * 40 + "NN\n")
    description, sequence = quickstart.example_sequence([tmp_path / "a.fa"])
    assert (description, sequence) == ("a piece of one, from base 204", b"ACGTT" * 40)


def test_the_example_may_be_rna_and_in_any_file(tmp_path):
    (tmp_path / "a.fa").write_text(">short\nACGU\n")
    (tmp_path / "b.fa").write_text(">one\n" + "ACGU" * 30 + "\n")
    (tmp_path / "c.fa").write_text(">two\n" + "N" + "ggauu" * 30 + "\n")
    a, b, c = (tmp_path / name for name in ("a.fa", "b.fa", "c.fa"))
    assert quickstart.example_sequence([a, b]) == ("a piece of one, from base 1", b"ACGU" * 30)
    assert quickstart.example_sequence([a, c]) == ("a repeat of two, from base 2", b"ggauu" * 30)


def test_a_genome_without_an_example_is_refused_before_training(tmp_path):
    (tmp_path / "a.fa").write_text("".join(f">contig{number}\n{'ACGTT' * 12}\n" for number in range(200)))
    run = start(tmp_path / "a.fa", tmp_path / "out")
    assert run.returncode == 1 and "Traceback" not in run.stderr and "== training" not in run.stdout
    assert f"{tmp_path / 'a.fa'}: no stretch of 100 bp without ambiguous bases" in run.stderr
