"""`python -m inference.embed`: files in, vectors out, equal to `model.embed`."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import load_file

from inference import embed, jobs
from modeling import StrandBertModel

from ..conftest import ROOT
from .conftest import random_sequences, save_model, with_infinite_bias

SEQUENCES = [*random_sequences(5, [9, 300, 41, 1200, 77, 500]), "N" * 20, "acgtnRYU" * 9, "A"]


@pytest.fixture
def fasta(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "BLOCK_RECORDS", 2)
    path = tmp_path / "in.fa"
    path.write_text("".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(SEQUENCES)))
    return path


def command(fasta, model_folder, output, *options):
    embed.main([str(fasta), "--model", str(model_folder), "--output", str(fasta.with_name(output)), "--cpu", *options])
    return fasta.with_name(output)


def vectors(table):
    return np.stack(table["embedding"].to_numpy())


@pytest.mark.parametrize(
    "options, arguments",
    [
        ({}, []),
        ({"pooling": "max", "layer": 1}, ["--pooling", "max", "--layer", "1"]),
        ({"reverse_complement": "average"}, ["--reverse-complement", "average"]),
        ({"window": 50, "overlap": 10}, ["--window", "50", "--overlap", "10"]),
    ],
)
def test_parquet_holds_the_vector_of_every_sequence_in_order(fasta, model_folder, model, options, arguments):
    table = pyarrow.parquet.read_table(command(fasta, model_folder, "out.parquet", *arguments))
    assert table["name"].to_pylist() == [f"s{i}" for i in range(len(SEQUENCES))]
    assert table["length"].to_pylist() == [len(sequence) for sequence in SEQUENCES]
    assert np.abs(vectors(table) - model.embed(SEQUENCES, **options).numpy()).max() < 1e-5


@pytest.mark.parametrize("resolution", ["sequence", "token", "nucleotide"])
def test_vectors_that_are_not_finite_are_not_written(fasta, model_folder, tmp_path, resolution):
    folder = with_infinite_bias(model_folder, tmp_path / "model")
    with pytest.raises(SystemExit, match="line 1, record 's0'.*: the outputs are not finite"):
        command(fasta, folder, "out.parquet", "--resolution", resolution)
    assert not (tmp_path / "out.parquet").exists()


def test_npy_and_safetensors_hold_the_same_matrix(fasta, model_folder, model):
    expected = vectors(pyarrow.parquet.read_table(command(fasta, model_folder, "out.parquet")))
    assert np.array_equal(np.load(command(fasta, model_folder, "out.npy"), allow_pickle=False), expected)
    assert np.array_equal(load_file(command(fasta, model_folder, "out.safetensors"))["embedding"], expected)


@pytest.mark.parametrize("strand", ["none", "average"])
def test_nucleotide_rows_of_a_matrix_are_found_by_the_index(fasta, model_folder, model, strand, monkeypatch):
    monkeypatch.setattr(embed, "ROWS_AT_ONCE", 64)
    options = ["--resolution", "nucleotide", "--reverse-complement", strand]
    matrix = np.load(command(fasta, model_folder, "out.npy", *options))
    lines = fasta.with_name("out.npy.index.tsv").read_text().splitlines()
    index = [line.split("\t") for line in lines[1:]]
    assert lines[0] == "name\tfirst_row\trows" and [name for name, *_ in index] == [f"s{i}" for i in range(9)]
    expected = model.embed(SEQUENCES, resolution="nucleotide", reverse_complement=strand)
    for (_, first, rows), row in zip(index, expected, strict=True):
        assert np.abs(matrix[int(first) : int(first) + int(rows)] - row.numpy()).max() < 1e-5
    assert len(matrix) == sum(map(len, SEQUENCES))


def test_token_rows_say_which_bases_they_cover(fasta, model_folder, model):
    table = pyarrow.parquet.read_table(command(fasta, model_folder, "out.parquet", "--resolution", "token"))
    assert pyarrow.parquet.read_metadata(fasta.with_name("out.parquet")).num_row_groups == 1
    expected = model.embed(SEQUENCES, resolution="token")
    assert np.abs(vectors(table) - torch.cat(expected).numpy()).max() < 1e-5
    for number, sequence in enumerate(SEQUENCES):
        rows = table.filter(pyarrow.compute.field("record") == number)
        start, end = rows["start"].to_pylist(), rows["end"].to_pylist()
        assert start == [0, *end[:-1]] and end[-1] == len(sequence)


def interrupt_the_third_pass(monkeypatch):
    passes = []
    original = StrandBertModel.forward

    def forward(self, *args, **kwargs):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StrandBertModel, "forward", forward)


@pytest.mark.parametrize("output", ["out.parquet", "out.npy"])
def test_interrupted_at_half_and_resumed_equals_uninterrupted(fasta, model_folder, output, monkeypatch):
    whole = command(fasta, model_folder, "whole" + output).read_bytes()
    interrupt_the_third_pass(monkeypatch)
    with pytest.raises(SystemExit, match="the same command goes on"):
        command(fasta, model_folder, output)
    assert len(list(fasta.with_name(output + ".parts").glob("*.parquet"))) == 2
    assert command(fasta, model_folder, output).read_bytes() == whole
    assert not fasta.with_name(output + ".parts").exists()


def test_an_interrupted_job_goes_on_with_smaller_batches(fasta, model_folder, monkeypatch):
    whole = vectors(pyarrow.parquet.read_table(command(fasta, model_folder, "whole.parquet")))
    interrupt_the_third_pass(monkeypatch)
    with pytest.raises(SystemExit, match="the same command goes on"):
        command(fasta, model_folder, "out.parquet")
    resumed = command(fasta, model_folder, "out.parquet", "--batch-tokens", "64")
    assert np.abs(vectors(pyarrow.parquet.read_table(resumed)) - whole).max() < 1e-5


@pytest.mark.parametrize(
    "file, change", [("config.json", {"glu_activation": "silu"}), ("tokenizer.json", {"normalizer": None})]
)
def test_a_changed_configuration_or_tokenizer_does_not_go_on_with_what_is_there(
    fasta, model_folder, monkeypatch, file, change
):
    folder = shutil.copytree(model_folder, fasta.with_name("model"))
    interrupt_the_third_pass(monkeypatch)
    with pytest.raises(SystemExit, match="the same command goes on"):
        command(fasta, folder, "out.parquet")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | change))
    with pytest.raises(SystemExit, match="an interrupted job with other settings: model was"):
        command(fasta, folder, "out.parquet")
    (folder / file).write_text(json.dumps(content))
    command(fasta, folder, "out.parquet")


SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from inference import embed, jobs
jobs.BLOCK_RECORDS = 2
embed.main(sys.argv[1:])
"""


def test_two_processes_write_what_one_writes(fasta, model_folder):
    one = command(fasta, model_folder, "one.parquet")
    script, output = fasta.with_name("script.py"), fasta.with_name("two.parquet")
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, ROOT]
    options = [fasta, "--model", model_folder, "--output", output, "--cpu"]
    completed = subprocess.run([str(word) for word in launch + options], capture_output=True, text=True, timeout=300)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("9 sequences") == 1  # of the main process
    assert output.read_bytes() == one.read_bytes()


def test_bed_intervals_of_both_strands(fasta, model_folder, model):
    bed = fasta.with_name("in.bed")
    bed.write_text("s1\t10\t90\ts1a\t0\t+\ns3\t5\t700\ts3b\t0\t-\n")
    options = ["--genome", str(fasta)]
    table = pyarrow.parquet.read_table(command(bed, model_folder, "bed.parquet", *options))
    other = SEQUENCES[3][5:700][::-1].translate(str.maketrans("ACGT", "TGCA"))
    expected = model.embed([SEQUENCES[1][10:90], other]).numpy()
    assert table["name"].to_pylist() == ["s1a", "s3b"] and np.abs(vectors(table) - expected).max() < 1e-5


def test_letters_without_meaning_are_counted(fasta, model_folder, capsys):
    command(fasta, model_folder, "out.parquet")
    assert "9 sequences" in (out := capsys.readouterr().out) and "47 letters (2.12%) are none of A, C, G, T" in out


@pytest.mark.parametrize(
    "content, options, message",
    [
        (">a\nACGT\n>b\nACXT\n", {}, "line 4, record 'b': letter 'X'"),
        (">a\nACGT\n", {"--model": "nowhere"}, "nowhere: no model"),
        (">a\nACGT\n", {"--output": "x.xlsx"}, "x.xlsx must end in one of .parquet"),
        (">a\nACGT\n", {"--output": "x.npy", "--resolution": "token"}, "--resolution token needs a .parquet"),
        (">a\nACGT\n", {"--layer": "9"}, "layer=9 does not exist"),
        (">a\nACGT\n", {"--window": "5", "--overlap": "4"}, "overlap=4 must be"),
        (">a\nACGT\n", {"--overlap": "4"}, "overlap=4 is of windows"),
        (">a\nACGT\n", {"--window": "9", "--pooling": "cls"}, "no meaning with windows"),
        (">a\nACGT\n", {"--resolution": "nucleotide", "--pooling": "cls"}, "leave it out"),
        (">a\nACGT\n", {"--resolution": "token", "--reverse-complement": "average"}, "use resolution='nucleotide'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, model_folder, content, options, message):
    (tmp_path / "in.fa").write_text(content)
    arguments = {"--model": str(model_folder), "--output": str(tmp_path / "x.parquet"), **options}
    flat = [word for pair in arguments.items() for word in pair]
    with pytest.raises(SystemExit) as error:
        embed.main([str(tmp_path / "in.fa"), "--cpu", *flat])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa"]


def damaged(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


@pytest.mark.parametrize(
    "change, message",
    [(lambda folder: (folder / "model.safetensors").unlink(), "no weights that can be loaded"),
     (damaged, "no weights that can be loaded")],
)  # fmt: skip
def test_a_model_without_whole_weights_is_refused_in_one_line(fasta, model_folder, change, message):
    folder = shutil.copytree(model_folder, fasta.with_name("model"))
    change(folder)
    with pytest.raises(SystemExit, match=message) as error:
        command(fasta, folder, "out.parquet")
    assert "\n" not in str(error.value)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(fasta, tmp_path):
    folder = save_model(tmp_path / "small", StrandBertModel, vocab_size=100)
    with pytest.raises(SystemExit, match="4,096 tokens, more than vocab_size 100"):
        command(fasta, folder, "out.parquet")


@pytest.mark.parametrize("resolution", ["nucleotide", "token"])
def test_a_tokenizer_whose_tokens_are_not_end_to_end_has_no_rows_with_positions(fasta, model_folder, resolution):
    folder = shutil.copytree(model_folder, fasta.with_name("model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["fuse_unk"] = True  # letters N in a row become one token
    (folder / "tokenizer.json").write_text(json.dumps(content))
    message = (
        f"--resolution {resolution}: line 13, record 's6': the tokens hold 1 bases, the sequence 20: .* end to end"
    )
    with pytest.raises(SystemExit, match=message) as error:
        command(fasta, folder, "out.parquet", "--resolution", resolution)
    assert "\n" not in str(error.value)


def test_the_input_is_never_overwritten(tmp_path, model_folder):
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sequence": ["ACGT"]}), path)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="is the input itself"):
        command(path, model_folder, "in.parquet", "--overwrite")
    assert path.read_bytes() == before
