"""corpus.build from end to end: same bytes however it is run, nothing half-made, what is held out stays out."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.dataset
import pytest

from corpus import build as build_module
from corpus.build import CorpusError, build, main
from corpus.fasta import FastaError, read_fasta
from corpus.recipe import read_genomes, read_recipe
from corpus.sequences import reverse_complement
from corpus.synthetic import write_synthetic_genomes
from corpus.variants import VariantError
from tests.corpus.vcf import vcf_text, write_indexed
from training.storage import StorageError

ROOT = Path(build_module.__file__).resolve().parents[1]
VOCABULARY = ROOT / "tokenization" / "vocabulary"


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    """Three species of about 40,000 bp: two synthetic ones, and one that repeats half of the first."""
    folder = tmp_path_factory.mktemp("genomes")
    borealis, australis = write_synthetic_genomes(folder, 40_000)
    record = next(read_fasta(borealis))
    half = reverse_complement(record.sequence.upper())[:20_000].decode()
    (folder / "copy.fa").write_text(f">copy1\n{half}\n>copy2\n{next(read_fasta(australis)).sequence[:500].decode()}\n")
    return folder


TABLE = "species,category,path\nborealis,plant,borealis.fa.gz\naustralis,bacteria,australis.fa.gz\ncopy,plant,copy.fa\n"


def prepare(folder: Path, genomes: Path, text: str = "recipe: dnabert2", table: str = TABLE, tokenizer=None):
    """(recipe, genomes) as `build` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(table)
    (folder / "recipe.yaml").write_text(f"genomes: table.csv\n{text}\n")
    recipe = read_recipe(folder / "recipe.yaml", tokenizer)
    return recipe, read_genomes(recipe, genomes)


def rows_of(folder: Path, split: str = "train") -> list[dict]:
    files = sorted((folder / split).glob("*.parquet"))
    return pyarrow.dataset.dataset(files, format="parquet").to_table().to_pylist() if files else []


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".build" not in path.parts
    }


def test_dnabert2_sequences_are_the_windows_of_the_genome_without_n(tmp_path, genomes):
    manifest = build(*prepare(tmp_path, genomes), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    contigs = {r.name: r.sequence for path in genomes.glob("*.fa*") for r in read_fasta(path)}
    for row in rows:
        reference = contigs[row["contig"]][row["start"] : row["end"]]
        assert (
            row["sequence"].encode() == reference.upper() and len(reference) == 1000 and b"N" not in reference.upper()
        )
        assert row["soft_masked"] == pytest.approx(sum(reference.count(c) for c in b"acgt") / 1000)
        assert (row["strand"], row["sample"], row["haplotype"]) == ("+", None, None)
    assert manifest["splits"]["train"] == {"sequences": len(rows), "bases": 1000 * len(rows), "tokens": 0}
    assert len(rows) > 90 and {row["species"] for row in rows} == {"borealis", "australis", "copy"}


def test_one_worker_and_two_give_the_same_bytes(tmp_path, genomes):
    text = "recipe: dnagrinder\nsegment: 1220\ncut: 1200\nstrand: random\nvalidation_species: australis"
    for workers in (1, 2):
        build(*prepare(tmp_path, genomes, text, tokenizer=VOCABULARY), tmp_path / f"out{workers}", workers=workers)
    assert content_of(tmp_path / "out1") == content_of(tmp_path / "out2")


def test_another_seed_gives_other_cuts(tmp_path, genomes):
    text = "recipe: dnagrinder\nsegment: 1220\ncut: 1200\nseed: "
    for seed in (0, 1):
        build(*prepare(tmp_path, genomes, text + str(seed)), tmp_path / f"out{seed}")
    starts = [[row["start"] for row in rows_of(tmp_path / f"out{seed}")] for seed in (0, 1)]
    assert len(starts[0]) == len(starts[1]) and starts[0] != starts[1]


KILLED = """
import os, signal, sys
from corpus import shards
finish = shards.ShardWriter._finish_shard
def die(writer):
    if writer.stem.startswith("00001") and writer._writer is not None:
        writer._writer.close()
        os.kill(os.getpid(), signal.SIGKILL)
    finish(writer)
shards.ShardWriter._finish_shard = die
from corpus.build import main
main(sys.argv[1:])
"""


def test_killed_before_a_shard_is_renamed_and_resumed_equals_uninterrupted(tmp_path, genomes):
    plan = prepare(tmp_path, genomes)
    build(*plan, tmp_path / "whole")
    command = [str(tmp_path / "recipe.yaml"), "--genomes", str(genomes), "--output", str(tmp_path / "out")]
    killed = subprocess.Popen([sys.executable, "-c", KILLED, *command], cwd=ROOT, start_new_session=True)
    assert killed.wait(timeout=120) == -signal.SIGKILL
    os.killpg(killed.pid, signal.SIGKILL)  # the process in which datatrove keeps its counters
    assert [path.name for path in (tmp_path / "out").rglob("*.parquet") if ".build" not in path.parts] == [
        "00000-borealis-0000.parquet"
    ]
    first = tmp_path / "out" / "train" / "00000-borealis-0000.parquet"
    made = first.stat().st_mtime_ns
    build(*plan, tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    assert first.stat().st_mtime_ns == made  # a finished genome is not made twice
    assert not (tmp_path / "out" / ".build" / "partial").exists()


def test_a_command_that_is_told_to_end_leaves_no_process_behind(tmp_path, genomes):
    prepare(tmp_path, genomes, "recipe: dnagrinder\nsegment: 1220\ncut: 1200\nrounds: 20000")
    command = [sys.executable, "-m", "corpus.build", str(tmp_path / "recipe.yaml"), "--genomes", str(genomes)]
    command += ["--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "0/3" in line:
            break
    while not list((tmp_path / "out").rglob("*/partial/*/*")):
        assert process.poll() is None
    process.terminate()
    rest = process.communicate(timeout=60)[1]  # ends with the last process that holds the pipe
    assert "interrupted; give the same command again" in rest and process.returncode == 1
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_finished_corpus_is_left_as_it_is(tmp_path, genomes):
    plan = prepare(tmp_path, genomes)
    first = build(*plan, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").iterdir()}
    assert build(*plan, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").iterdir()} == before


def test_a_folder_with_another_recipe_or_other_files_is_refused(tmp_path, genomes):
    build(*prepare(tmp_path, genomes), tmp_path / "out")
    with pytest.raises(CorpusError, match="corpus of another recipe .window differ"):
        build(*prepare(tmp_path, genomes, "recipe: dnabert2\nwindow: 500"), tmp_path / "out")
    with pytest.raises(CorpusError, match="is not empty"):
        build(*prepare(tmp_path, genomes), tmp_path)
    assert not (tmp_path / ".build").exists()


def test_a_genome_that_changed_in_between_is_refused(tmp_path, genomes):
    copy = shutil.copytree(genomes, tmp_path / "genomes")
    build(*prepare(tmp_path, copy), tmp_path / "out")
    with open(copy / "copy.fa", "a") as file:
        file.write("ACGT\n")
    with pytest.raises(CorpusError, match="copy.fa: has changed since it was added"):
        build(*prepare(tmp_path, copy), tmp_path / "out")


def written_again(path: Path, content: bytes):
    """Write a file so that it is newer than everything before."""
    path.write_bytes(content)
    os.utime(path, (later := path.stat().st_mtime + 10, later))


def test_a_change_that_keeps_the_size_is_refused_and_a_file_that_was_only_copied_again_is_not(tmp_path, genomes):
    copy = shutil.copytree(genomes, tmp_path / "genomes")
    plan = prepare(tmp_path, copy)
    manifest = build(*plan, tmp_path / "out")
    content = (copy / "copy.fa").read_bytes()
    written_again(copy / "copy.fa", content)
    assert build(*plan, tmp_path / "out") == manifest
    written_again(copy / "copy.fa", content.replace(b"ACG", b"ACC"))
    with pytest.raises(CorpusError, match="copy.fa: has changed since it was added"):
        build(*plan, tmp_path / "out")


@pytest.mark.parametrize("change", [b"its", b"its name and size"])
def test_a_file_of_variants_that_changed_is_named(tmp_path, change):
    (tmp_path / "long.fa").write_text(">a\n" + "ACGT" * 4000 + "\n")
    (tmp_path / "short.fa").write_text(">a\nACGT\n")
    for name in "12":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.vcf").write_text(f"too short for segments: never read {name}")
    table = "species,category,path,vcf\nx,plant,short.fa,{contig}/a.vcf\ny,plant,long.fa,\n"
    plan = prepare(tmp_path, tmp_path, "recipe: dnagrinder", table)
    manifest = build(*plan, tmp_path / "out")
    assert sorted(manifest["genomes"][0]["vcf_sha256"]) == ["1/a.vcf", "2/a.vcf"]
    written_again(tmp_path / "1" / "a.vcf", (tmp_path / "1" / "a.vcf").read_bytes())
    assert build(*plan, tmp_path / "out") == manifest
    written_again(tmp_path / "2" / "a.vcf", (tmp_path / "2" / "a.vcf").read_bytes().replace(b"too", change))
    with pytest.raises(CorpusError, match="2/a.vcf: has changed since it was added"):
        build(*plan, tmp_path / "out")
    (tmp_path / "2" / "a.vcf").unlink()
    with pytest.raises(CorpusError, match="2/a.vcf: has changed since it was added"):
        build(*plan, tmp_path / "out")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_genome_whose_shard_is_gone_is_made_again(tmp_path, genomes, damage):
    plan = prepare(tmp_path, genomes)
    build(*plan, tmp_path / "out")
    before = content_of(tmp_path / "out")
    damage(next((tmp_path / "out" / "train").glob("00001-*")))
    build(*plan, tmp_path / "out")
    assert content_of(tmp_path / "out") == before


def test_held_out_species_are_in_validation_only_and_their_shared_32_mers_are_reported(tmp_path, genomes):
    text = "recipe: dnabert2\nvalidation_species: [copy, australis]"
    manifest = build(*prepare(tmp_path, genomes, text), tmp_path / "out")
    assert {row["species"] for row in rows_of(tmp_path / "out")} == {"borealis"}
    assert {row["species"] for row in rows_of(tmp_path / "out", "validation")} == {"copy", "australis"}
    shared = {row["species"]: row for row in manifest["shared_kmers"]["held_out"]}
    assert shared["copy"]["share"] > 0.9 and shared["copy"]["nearest"] == "borealis"
    assert shared["australis"]["share"] < 0.05
    assert "held out copy: " in build_module.summary(manifest)


def test_held_out_contigs_are_in_validation_only(tmp_path, genomes):
    build(*prepare(tmp_path, genomes, "recipe: dnabert2\nvalidation_contigs: copy1"), tmp_path / "out")
    assert {row["contig"] for row in rows_of(tmp_path / "out", "validation")} == {"copy1"}
    assert "copy1" not in {row["contig"] for row in rows_of(tmp_path / "out")}


def test_a_contig_to_hold_out_that_is_nowhere_is_refused(tmp_path, genomes):
    with pytest.raises(CorpusError, match="no sequence is of a contig 'chr9'"):
        build(*prepare(tmp_path, genomes, "recipe: dnabert2\nvalidation_contigs: chr9"), tmp_path / "out")


def test_a_target_number_of_bases_takes_random_windows_and_too_large_a_one_is_noted(tmp_path, genomes):
    table = "species,category,path,bases\nborealis,plant,borealis.fa.gz,9_500\naustralis,bacteria,australis.fa.gz,1e9\n"
    manifest = build(*prepare(tmp_path, genomes, table=table), tmp_path / "out")
    rows = [row for row in rows_of(tmp_path / "out") if row["species"] == "borealis"]
    assert len(rows) == 10
    starts = [row["start"] for row in rows]
    assert starts == sorted(starts) and starts != list(range(0, 10_000, 1000))
    assert manifest["genomes"][1]["notes"] == ["1,000,000,000 bp were asked for, its windows hold 39,000"]


def test_token_ids_are_those_of_the_tokenizer_and_order_dnagrinders_sequences(tmp_path, genomes):
    from transformers import AutoTokenizer

    text = "recipe: dnagrinder\nsegment: 1220\ncut: 1200\nrounds: 2"
    manifest = build(*prepare(tmp_path, genomes, text, tokenizer=VOCABULARY), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(VOCABULARY)
    rows = rows_of(tmp_path / "out")
    for row in rows[::7]:
        assert row["input_ids"] == tokenizer(row["sequence"], add_special_tokens=False)["input_ids"]
    for species in ("borealis", "australis", "copy"):
        lengths = [len(row["input_ids"]) for row in rows if row["species"] == species]
        assert lengths == sorted(lengths) and len(set(lengths)) > 5
    assert manifest["splits"]["train"]["tokens"] == sum(len(row["input_ids"]) for row in rows)


def test_datasets_reads_and_streams_the_folder(tmp_path, genomes):
    build(*prepare(tmp_path, genomes, "recipe: dnabert2\nvalidation_species: copy"), tmp_path / "out")
    expected = [row["sequence"] for row in rows_of(tmp_path / "out", "validation")]
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"} and loaded["validation"]["sequence"][:] == expected
    streamed = datasets.load_dataset(str(tmp_path / "out"), streaming=True, split="validation")
    assert [row["sequence"] for row in streamed] == expected


def test_repeats_are_filtered_and_the_shares_reported(tmp_path, genomes):
    table = "species,category,path,repeats\nborealis,plant,borealis.fa.gz,filter\nborealis,plant,borealis.fa.gz,keep\n"
    text = "recipe: dnagrinder\nsegment: 1220\ncut: 1200"
    manifest = build(*prepare(tmp_path, genomes, text, table), tmp_path / "out")
    filtered, kept = manifest["genomes"]
    (row,) = filtered["repeats"]
    assert row["retained"] < row["non_repetitive"] + 1220 / row["bases"] < 1 and row["retained"] == pytest.approx(
        row["segments"] * 1220 / row["bases"], abs=1e-4
    )
    assert filtered["splits"]["train"]["bases"] < kept["splits"]["train"]["bases"]


def test_both_haplotypes_of_a_random_individual_travel_with_their_sequences(tmp_path):
    random = np.random.default_rng(0)
    letters = bytes(random.choice(list(b"ACGT"), 5000).astype(np.uint8)).decode()
    (tmp_path / "human.fa").write_text(f">chr1\n{letters}\n>chr2\n{letters[:2000]}\n")
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    records = [("1", p + 1, letters[p], other[letters[p]], ".", "0|1", "1|1") for p in range(0, 5000, 100)]
    write_indexed(tmp_path / "human.vcf.gz", vcf_text(records, samples=("HG1", "HG2")))
    table = "species,category,path,vcf\nhuman,mammalian,human.fa,human.vcf.gz\n"
    text = "recipe: dnagrinder\nsegment: 600\noverlap: 50\ncut: 500"
    manifest = build(*prepare(tmp_path / "recipe", tmp_path, text, table), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    changed = "".join(other[base] if p % 100 == 0 else base for p, base in enumerate(letters))
    carriers = {("HG1", 1): letters, ("HG1", 2): changed, ("HG2", 1): changed, ("HG2", 2): changed}
    chr1 = [row for row in rows if row["contig"] == "chr1"]
    for row in chr1:
        assert row["sequence"] == carriers[row["sample"], row["haplotype"]][row["start"] : row["end"]]
    assert {row["sample"] for row in chr1} == {"HG1", "HG2"}
    pairs = [(row["start"], row["haplotype"]) for row in chr1]
    assert len(set(pairs)) == len(pairs) and {(start, 3 - number) for start, number in pairs} == set(pairs)
    (report,) = manifest["genomes"]
    applied = sum(5 for row in chr1 if (row["sample"], row["haplotype"]) != ("HG1", 1))
    assert report["variants"]["applied SNV"] == applied
    assert report["contigs_without_variants"] == 1
    assert report["notes"] == ["1 of 2 contigs have no variants: chr2"]
    assert {(row["sample"], row["haplotype"]) for row in rows if row["contig"] == "chr2"} == {(None, None)}


def test_variants_of_another_assembly_in_one_place_are_refused_by_file_contig_and_sample(tmp_path):
    letters = "ACGT" * 1000
    (tmp_path / "a.fa").write_text(f">chr1\n{letters}\n")
    wrong = range(2001, 2012)
    records = [
        ("1", pos, letters[pos if pos in wrong else pos - 1], "N", ".", "1|1" if pos in wrong else "0|0")
        for pos in sorted({*range(1, 4000, 8), *wrong})
    ]
    (tmp_path / "a.vcf").write_text(vcf_text(records))
    plan = prepare(
        tmp_path,
        tmp_path,
        "recipe: dnagrinder\nsegment: 600\noverlap: 50\ncut: 500",
        "species,category,path,vcf\na,plant,a.fa,a.vcf\n",
    )
    with pytest.raises(VariantError, match=r"a\.vcf: contig '1', sample 'HG1', [\d,]+ to [\d,]+: 1[01] of 1[01] REF"):
        build(*plan, tmp_path / "out")


@pytest.mark.parametrize(
    "workers, content, message",
    [
        (1, ">a\nACGT\n>a\nACGT\n", "contig 'a' was already at line 1"),
        (1, "", "empty file"),
        (2, ">a\nMKVLLEF\n", "looks like protein"),
    ],
)
def test_a_bad_genome_stops_the_work_with_its_name_and_is_taken_up_when_mended(tmp_path, workers, content, message):
    (tmp_path / "good.fa").write_text(">a\n" + "ACGTTGCA" * 200 + "\n")
    (tmp_path / "bad.fa").write_text(content)
    table = "species,category,path\ngood,plant,good.fa\nbad,plant,bad.fa\n"
    plan = prepare(tmp_path, tmp_path, table=table)
    with pytest.raises(FastaError, match=rf"bad\.fa.*{message}"):
        build(*plan, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "bad.fa").write_text(">a\n" + "ACGTTGCA" * 200 + "\n")
    build(*plan, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 2


def test_no_shard_stays_of_a_genome_that_was_refused_late_and_mended_shorter(tmp_path):
    sequence = "ACGTTGCA" * 200
    (tmp_path / "a.fa").write_text("".join(f">{name}\n{sequence}\n" for name in "abc") + ">d\nACGT!\n")
    text = "recipe: dnabert2\nshard_bases: 1000\nvalidation_contigs: a"
    plan = prepare(tmp_path, tmp_path, text, "species,category,path\na,plant,a.fa\n")
    with pytest.raises(FastaError):
        build(*plan, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 2
    (tmp_path / "a.fa").write_text("".join(f">{name}\n{sequence}\n" for name in "ab"))
    manifest = build(*plan, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == manifest["splits"]["train"]["sequences"] == 1
    assert len(rows_of(tmp_path / "out", "validation")) == 1


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
from corpus.build import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("options", [[], ["--tokenizer", str(VOCABULARY)]])
def test_a_file_that_cannot_grow_leaves_no_half_written_shard(tmp_path, genomes, options):
    recipe = "recipe: dnagrinder\nsegment: 1220\ncut: 1200" if options else "recipe: dnabert2"
    prepare(tmp_path, genomes, recipe)
    command = [str(tmp_path / "recipe.yaml"), "--genomes", str(genomes), "--output", str(tmp_path / "out"), *options]
    failed = subprocess.run(
        [sys.executable, "-c", FULL, *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("corpus.build: cannot write to") and "give the same command again" in last
    assert [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".parquet", ".arrow")] == []


def test_a_second_build_in_the_same_folder_is_refused_and_a_killed_one_does_not_stand_in_the_way(tmp_path, genomes):
    plan = prepare(tmp_path, genomes)
    holder = "import sys, time\nfrom pathlib import Path\nfrom corpus.build import _alone\n"
    holder += "with _alone(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    (tmp_path / "out" / ".build").mkdir(parents=True)
    first = subprocess.Popen([sys.executable, "-c", holder, tmp_path / "out"], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(CorpusError, match="another corpus.build works in it"):
            build(*plan, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").rglob("*")] == [".build", "lock"]
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert build(*plan, tmp_path / "out")["splits"]


def test_another_file_of_variants_is_another_corpus(tmp_path, genomes):
    for name in ("a.vcf", "b.vcf"):
        (tmp_path / name).write_text("the contig is too short for segments, and this is never read")
    (tmp_path / "long.fa").write_text(">a\n" + "ACGT" * 4000 + "\n")
    (tmp_path / "short.fa").write_text(">a\nACGT\n")
    table = "species,category,path,vcf\nx,plant,short.fa,a.vcf\ny,plant,long.fa,\n"
    manifest = build(*prepare(tmp_path, tmp_path, "recipe: dnagrinder", table), tmp_path / "out")
    content = (tmp_path / "a.vcf").read_bytes()
    assert manifest["genomes"][0]["vcf_sha256"] == {"a.vcf": hashlib.sha256(content).hexdigest()}
    with pytest.raises(CorpusError, match="another recipe .table differ"):
        build(*prepare(tmp_path, tmp_path, "recipe: dnagrinder", table.replace("a.vcf", "b.vcf")), tmp_path / "out")


def test_a_corpus_with_nothing_to_train_on_is_refused(tmp_path, genomes):
    with pytest.raises(CorpusError, match="nothing is left to train on; borealis.fa.gz: no sequence was made of it"):
        build(*prepare(tmp_path, genomes, "recipe: dnabert2\nwindow: 100000"), tmp_path / "out")


def test_a_genome_to_filter_that_is_not_soft_masked_is_kept_and_noted(tmp_path):
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 500 + "\n")
    table = "species,category,path,repeats\na,plant,a.fa,filter\n"
    text = "recipe: dnagrinder\nsegment: 300\ncut: 280"
    manifest = build(*prepare(tmp_path, tmp_path, text, table), tmp_path / "out")
    assert manifest["splits"]["train"]["sequences"] == 7
    assert "it is not soft-masked" in build_module.summary(manifest)


def test_a_long_name_of_a_species_fits_a_file_name(tmp_path, genomes):
    table = f"species,category,path\n{'ä' * 300},plant,borealis.fa.gz\n"
    build(*prepare(tmp_path, genomes, table=table), tmp_path / "out")
    assert {row["species"] for row in rows_of(tmp_path / "out")} == {"ä" * 300}


def test_an_output_that_is_a_file_is_refused(tmp_path, genomes):
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match="is not a folder"):
        build(*prepare(tmp_path, genomes), tmp_path / "out")


def test_the_command_prints_what_was_made_or_one_line_of_error(tmp_path, genomes, capsys):
    prepare(tmp_path, genomes)
    command = [str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out")]
    main([*command, "--genomes", str(genomes)])
    assert capsys.readouterr().out.startswith("train: 97 sequences, 97,000 bp")
    with pytest.raises(SystemExit, match="corpus.build: .*borealis.fa.gz: no such file"):
        main(command)
    with pytest.raises(SystemExit, match="tokenizer: .*no such tokenizer file"):
        main([*command, "--genomes", str(genomes), "--tokenizer", str(tmp_path / "none")])


def test_the_manifest_names_no_path_of_the_machine_and_every_file_with_its_hash(tmp_path, genomes):
    build(*prepare(tmp_path, genomes), tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in text and str(genomes) not in text
    files = [file["file"] for genome in json.loads(text)["genomes"] for file in genome["files"]]
    assert sorted([*files, "manifest.json"]) == sorted(content_of(tmp_path / "out"))
