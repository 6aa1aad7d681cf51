"""python -m tokenization.train: what it reads, what it writes, what it refuses."""

import errno
import gzip
import json
import os
import re
import resource
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from tests.tokenization.oracle import dna_like, reference_merges, write_fasta
from tokenization.train import main, parse_memory

SEQUENCES = [dna_like(seed=11, length=30_000), dna_like(seed=12, length=20_000)]


@pytest.fixture
def fasta(tmp_path):
    return write_fasta(tmp_path / "genome.fa", SEQUENCES)


def run(*words):
    return main([*map(str, words), "--quiet"])


def merges_in(folder):
    return [tuple(merge.split()) for merge in json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]]


def expected_merges(sequences, vocab_size=300, word_length=1000):
    words = [s[start : start + word_length] for s in sequences for start in range(0, len(s), word_length)]
    return reference_merges(words, vocab_size - 5)


def test_the_folder_loads_with_auto_tokenizer(tmp_path, fasta):
    assert run(fasta, "--vocab-size", 300, "--output", tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "A", "C", "G", "T"]) == list(
        range(9)
    )


def test_merges_are_those_of_tokenizers(tmp_path, fasta):
    run(fasta, "--vocab-size", 300, "--output", tmp_path / "out")
    assert merges_in(tmp_path / "out") == expected_merges(SEQUENCES)


def test_words_are_cut_every_word_length_bases(tmp_path, fasta):
    run(fasta, "--vocab-size", 300, "--word-length", 77, "--output", tmp_path / "out")
    assert merges_in(tmp_path / "out") == expected_merges(SEQUENCES, word_length=77)


def test_words_end_at_n_and_case_and_u_do_not_matter(tmp_path):
    fasta = write_fasta(tmp_path / "rna.fa", [SEQUENCES[0].lower().replace("t", "u") + "NNNRY" + SEQUENCES[1]])
    run(fasta, "--vocab-size", 300, "--output", tmp_path / "out")
    assert merges_in(tmp_path / "out") == expected_merges(SEQUENCES)


def test_both_strands_add_the_reverse_complement(tmp_path, fasta):
    run(fasta, "--vocab-size", 300, "--both-strands", "--word-length", 900, "--output", tmp_path / "out")
    complements = [s[::-1].translate(str.maketrans("ACGT", "TGCA")) for s in SEQUENCES]
    assert merges_in(tmp_path / "out") == expected_merges([*SEQUENCES, *complements], word_length=900)


def test_all_input_formats_give_the_same_vocabulary(tmp_path, fasta):
    (tmp_path / "lines.txt").write_text("\n".join(SEQUENCES))
    (tmp_path / "marked.txt").write_text("\n".join(SEQUENCES), encoding="utf-8-sig")  # with a byte order mark
    (tmp_path / "lines.txt.gz").write_bytes(gzip.compress("\n".join(SEQUENCES).encode()))
    (tmp_path / "genome.fa.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"sequence": SEQUENCES}), tmp_path / "rows.parquet")
    written = set()
    for name in ("genome.fa", "genome.fa.gz", "lines.txt", "marked.txt", "lines.txt.gz", "rows.parquet"):
        assert run(tmp_path / name, "--vocab-size", 200, "--output", tmp_path / f"out-{name}") == 0
        written.add((tmp_path / f"out-{name}" / "tokenizer.json").read_text())
    assert len(written) == 1


def test_several_sizes_come_from_one_run(tmp_path, fasta):
    run(fasta, "--vocab-size", "256,100", "--output", tmp_path / "out")
    assert merges_in(tmp_path / "out" / "100") == merges_in(tmp_path / "out" / "256")[:91]
    assert merges_in(tmp_path / "out" / "256") == expected_merges(SEQUENCES, 256)


def test_a_corpus_above_the_budget_is_trained_from_disk_to_the_same_file(tmp_path, fasta):
    run(fasta, "--vocab-size", 300, "--output", tmp_path / "memory")
    run(fasta, "--vocab-size", 300, "--memory", "20KB", "--output", tmp_path / "disk")
    assert (tmp_path / "disk" / "tokenizer.json").read_bytes() == (tmp_path / "memory" / "tokenizer.json").read_bytes()


def test_the_report_says_what_was_done(tmp_path, fasta):
    write_fasta(fasta, [SEQUENCES[0] + "NN", SEQUENCES[1]])
    run(fasta, "--vocab-size", 100, "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "training_report.json").read_text())
    assert report["files"] == ["genome.fa"]  # names only: a published report does not show folders of a machine
    assert (report["sequences"], report["bases"], report["dropped"]) == (2, 50_000, 2)
    assert [tuple(merge[:2]) for merge in report["merges"]] == merges_in(tmp_path / "out")
    assert report["merges"][0][2] > report["merges"][-1][2] > 0
    assert report["peak_memory_bytes"] > 10_000_000 and report["seconds"] >= 0


def test_dropped_letters_are_reported(tmp_path, fasta, capsys):
    write_fasta(fasta, [SEQUENCES[0] + "NNRYN"])
    run(fasta, "--vocab-size", 100, "--output", tmp_path / "out")
    assert "5 letters (0.02%) were N or other ambiguity codes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b">only N\nNNNNNNNN\n", "n.fa", "no A, C, G or T in .*n.fa"),
        (b">short\nACGTACGT\n", "short.fa", "allows a vocabulary of only 13 tokens"),
        (b">protein\nMEEPQSDPSV\n", "protein.fa", "protein.fa"),
        (b">a\nACGT\xc3\xa4CGT\n", "accent.fa", "accent.fa"),
        ("ACGT\nACGäT\n".encode(), "accent.txt", "accent.txt, line 2.*position 4"),
        (b"", "empty.fa", "empty.fa"),
        (gzip.compress(b">a\n" + b"ACGT" * 5000, mtime=0)[:-20], "cut.fa.gz", "cut.fa.gz"),
        (gzip.compress(b"ACGTTGCA\n" * 5000, mtime=0)[:-20], "cut.txt.gz", "cut.txt.gz.*truncated"),
        (b"PAR1 is not enough", "bad.parquet", "bad.parquet.*not a readable Parquet"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_written(tmp_path, capsys, content, name, message):
    (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name, "--vocab-size", 300, "--output", tmp_path / "out") == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert list((tmp_path / "out").glob("*")) == []


def test_bad_input_behind_much_good_input_leaves_no_work_folder(tmp_path, fasta, capsys):
    protein = tmp_path / "protein.fa"
    protein.write_text(">p\nMEEPQSDPSV\n")
    assert run(fasta, protein, "--vocab-size", 300, "--memory", "10KB", "--output", tmp_path / "out") == 1
    assert "protein.fa" in capsys.readouterr().err
    assert list((tmp_path / "out").glob("*")) == []


def test_a_parquet_file_without_sequences_says_what_it_has(tmp_path, capsys):
    pyarrow.parquet.write_table(pyarrow.table({"seq": ["ACGT"]}), tmp_path / "rows.parquet")
    assert run(tmp_path / "rows.parquet", "--output", tmp_path / "out") == 1
    assert "no column `sequence`; it has seq" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, 7, ["ACGT"]])
def test_a_parquet_row_that_is_no_sequence_is_named(tmp_path, capsys, value):
    pyarrow.parquet.write_table(pyarrow.table({"sequence": [value]}), tmp_path / "rows.parquet")
    assert run(tmp_path / "rows.parquet", "--output", tmp_path / "out") == 1
    message = f"error: {tmp_path / 'rows.parquet'}, row 1: column 'sequence' holds {value!r}, no sequence"
    assert message in capsys.readouterr().err


def test_a_parquet_file_with_damaged_pages_is_named(tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sequence": SEQUENCES}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)
    assert run(path, "--output", tmp_path / "out") == 1
    assert f"error: {path}: not a readable Parquet file" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
    assert run(tmp_path / "absent.fa", "--output", tmp_path / "out") == 1
    assert "absent.fa" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 9, 70_000])
def test_a_vocabulary_below_the_alphabet_or_above_16_bits_is_refused(tmp_path, fasta, size, capsys):
    with pytest.raises(SystemExit):
        run(fasta, "--vocab-size", size, "--output", tmp_path / "out")
    assert f"--vocab-size {size}: it must be from 10" in capsys.readouterr().err


def test_sizes_of_memory():
    assert [parse_memory(text) for text in ("8GB", "500MB", "1.5k", "123")] == [8 * 10**9, 5 * 10**8, 1500, 123]


def test_a_system_that_does_not_tell_its_memory_needs_the_option(tmp_path, fasta, monkeypatch, capsys):
    monkeypatch.delattr(os, "sysconf")
    with pytest.raises(SystemExit):
        run(fasta, "--vocab-size", 100, "--output", tmp_path / "out")
    assert "--memory is needed here" in capsys.readouterr().err
    assert run(fasta, "--vocab-size", 100, "--memory", "1GB", "--output", tmp_path / "out") == 0


def test_a_damaged_gzip_file_of_lines_is_named(tmp_path, capsys):
    content = bytearray(gzip.compress("\n".join(SEQUENCES).encode()))
    content[len(content) // 2 : len(content) // 2 + 40] = b"\x5a" * 40
    (tmp_path / "lines.txt.gz").write_bytes(content)
    assert run(tmp_path / "lines.txt.gz", "--output", tmp_path / "out") == 1
    assert "lines.txt.gz: damaged or truncated gzip file" in capsys.readouterr().err


def test_a_full_disk_is_said_and_leaves_no_half_written_file(tmp_path, fasta):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tokenization.train",
            fasta,
            "--vocab-size",
            "300",
            "--quiet",
            "--output",
            tmp_path / "out",
        ],
        preexec_fn=small_files,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "no room left on the disk" in process.stderr and "Traceback" not in process.stderr
    assert list((tmp_path / "out").glob("*")) == []


def test_a_second_run_in_the_same_folder_is_refused_and_a_killed_one_does_not_stand_in_the_way(tmp_path, fasta, capsys):
    holder = "import sys, time\nfrom tokenization.locks import locked_folder\n"
    holder += "with locked_folder(sys.argv[1]) as free:\n    print(free, flush=True)\n    time.sleep(60)"
    (tmp_path / "out").mkdir()
    first = subprocess.Popen([sys.executable, "-c", holder, tmp_path / "out"], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"True\n"
        assert run(fasta, "--vocab-size", 100, "--output", tmp_path / "out") == 1
        message = f"error: --output {tmp_path / 'out'}: another tokenization.train works in it; wait until it has ended"
        assert message in capsys.readouterr().err
        assert list((tmp_path / "out").glob("*")) == []
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert run(fasta, "--vocab-size", 100, "--output", tmp_path / "out") == 0


def test_a_file_system_without_locks_trains_all_the_same(tmp_path, fasta, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert run(fasta, "--vocab-size", 100, "--output", tmp_path / "out") == 0


def test_an_existing_tokenizer_survives_a_failing_run(tmp_path, fasta):
    run(fasta, "--vocab-size", 100, "--output", tmp_path / "out")
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert run(fasta, "--vocab-size", 60_000, "--output", tmp_path / "out") == 1
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before


def test_me_bpe_leaves_an_unfinished_exact_run_alone(tmp_path, fasta, capsys):
    unfinished = tmp_path / "out" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "state.json").write_text("{}")
    assert run(fasta, "--vocab-size", 100, "--algorithm", "me-bpe", "--output", tmp_path / "out") == 1
    assert re.search("unfinished holds an unfinished exact run.* delete the folder", capsys.readouterr().err)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["unfinished", "state.json"]


def test_me_bpe_takes_files_one_by_one_in_order(tmp_path):
    files = [write_fasta(tmp_path / f"{i}.fa", [sequence]) for i, sequence in enumerate(SEQUENCES)]
    for name, order in (("forward", files), ("backward", files[::-1])):
        assert run(*order, "--vocab-size", 200, "--algorithm", "me-bpe", "--output", tmp_path / name) == 0
    forward, backward = merges_in(tmp_path / "forward"), merges_in(tmp_path / "backward")
    assert len(forward) == len(backward) == 191
    assert forward != expected_merges(SEQUENCES, 200)
