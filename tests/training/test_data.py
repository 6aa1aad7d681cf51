"""training.data: every base in exactly one window, kept on disk, reused, sampled by (epoch, index)."""

import itertools
import os

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.sequences import reverse_complement
from tests.training.conftest import random_dna
from training import data
from training.data import DataSettings, EpochSampler, MlmDataset, TokenStore, prepare_data
from training.loading import log_data_report
from training.masking import IGNORED, TokenMasker
from training.report import _data_table
from training.sources import SequenceFileError


@pytest.fixture
def prepare(tmp_path, tokenizer):
    """Write FASTA contigs, prepare them, return (train store, validation store, report)."""

    def prepare_contigs(*contigs: str, validation=(), **settings):
        train_file = tmp_path / "train.fa"
        train_file.write_text("".join(f">contig{i}\n{contig}\n" for i, contig in enumerate(contigs)))
        validation_files = []
        if validation:
            validation_files = [tmp_path / "validation.fa"]
            validation_files[0].write_text("".join(f">held{i}\n{contig}\n" for i, contig in enumerate(validation)))
        settings = DataSettings(**{"max_seq_length": 32, "min_run_length": 20} | settings)
        return prepare_data([train_file], validation_files, tokenizer, settings, tmp_path / "cache")

    return prepare_contigs


def text_of(store: TokenStore, tokenizer) -> list[str]:
    """The bases of every window."""
    return ["".join(tokenizer.convert_ids_to_tokens(store[i].tolist())) for i in range(len(store))]


def test_windows_use_every_base_once(prepare, tokenizer):
    genome = random_dna(5000, seed=1)
    train, validation, _ = prepare(genome, validation_split_percentage=10)
    assert "".join(text_of(train, tokenizer) + text_of(validation, tokenizer)) == genome


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(1, 400), min_size=1, max_size=5), window=st.integers(3, 40))
def test_windows_use_every_base_of_every_run_once(tmp_path_factory, tokenizer, pieces, window):
    folder = tmp_path_factory.mktemp("runs")
    runs = [random_dna(length, seed=length) for length in pieces]
    (folder / "genome.fa").write_text(">chr\n" + "NN".join(runs) + "\n")
    options = DataSettings(max_seq_length=window, min_run_length=1, validation_split_percentage=0)
    with pytest.MonkeyPatch.context() as patch:  # small pieces and batches, so that runs cross their borders
        patch.setattr(data, "PIECE_LENGTH", 100)
        patch.setattr(data, "BATCH_LENGTH", 150)
        train, validation, report = prepare_data([folder / "genome.fa"], [], tokenizer, options, folder)
    assert validation is None
    assert "".join(text_of(train, tokenizer)) == "".join(runs)
    assert report["splits"]["train"]["base_pairs"] == train.base_pairs == sum(pieces)
    assert 0 < np.diff(train.offsets).min() and np.diff(train.offsets).max() <= window - 2


def test_windows_of_a_run_are_nearly_equally_long(prepare):
    train, _, _ = prepare(random_dna(5000, seed=1), validation_split_percentage=0)
    lengths = np.diff(train.offsets)
    assert lengths.max() == 30  # 32 with [CLS] and [SEP]
    assert lengths.min() >= 29


def test_lower_case_and_u_read_as_upper_case_dna(prepare, tokenizer):
    train, _, _ = prepare("acgu" * 20, validation_split_percentage=0)
    assert "".join(text_of(train, tokenizer)) == "ACGT" * 20


def test_ambiguous_bases_and_short_runs_are_dropped_and_counted(prepare, tokenizer):
    long, short = random_dna(200, seed=1), "ACGTACGTAC"
    train, _, report = prepare(long + "NNNRY" + short, "N" * 50, validation_split_percentage=0)
    assert "".join(text_of(train, tokenizer)) == long
    assert report["files"][0] == {
        "file": report["files"][0]["file"],
        "validation_file": False,
        "sequences": 2,
        "base_pairs_read": 265,
        "base_pairs_ambiguous": 55,
        "base_pairs_in_short_runs": 10,
        "base_pairs_held_out": 0,
        "held_out": "nothing",
    }


def test_held_out_end_of_a_single_contig_is_told(prepare, tokenizer):
    genome = random_dna(5000, seed=1)
    _, validation, report = prepare(genome, validation_split_percentage=5)
    assert report["files"][0]["held_out"] == "the last 250 bp of contig0"
    assert "".join(text_of(validation, tokenizer)) == genome[-250:]


def test_held_out_contigs_are_whole_and_told(prepare, tokenizer):
    contigs = [random_dna(500, seed) for seed in range(10)]
    train, validation, report = prepare(*contigs, validation_split_percentage=10)
    held_out = "".join(text_of(validation, tokenizer))
    assert report["files"][0]["held_out"] == f"contig{contigs.index(held_out)}"
    assert "".join(text_of(train, tokenizer)) == "".join(contig for contig in contigs if contig != held_out)


def test_a_validation_file_leaves_training_files_whole(prepare, tokenizer):
    genome, other = random_dna(500, seed=1), random_dna(300, seed=2)
    train, validation, _ = prepare(genome, validation=[other])
    assert "".join(text_of(train, tokenizer)) == genome
    assert "".join(text_of(validation, tokenizer)) == other


@pytest.mark.parametrize("validation", [False, True])
def test_held_out_sequences_that_are_also_trained_on_are_counted(tmp_path, tokenizer, caplog, validation):
    rows = [random_dna(60, seed=i) for i in range(40)]
    rows[:20] = rows[20:40]  # every row twice
    both = [tmp_path / "a.csv", tmp_path / "b.txt"]
    both[0].write_text("sequence,label\n" + "".join(f"{row},0\n" for row in rows))
    both[1].write_text("\n".join(reverse_complement(row.encode()).decode() for row in rows[:5] + [random_dna(80, 99)]))
    files = ([both[0]], [both[1]]) if validation else (both, [])
    options = DataSettings(max_seq_length=64, min_run_length=20, validation_split_percentage=10)
    _, _, report = prepare_data(*files, tokenizer, options, tmp_path / "cache")
    found = report["held_out_sequences"]
    if validation:
        assert found == {"total": 6, "also_in_training": 5}
    else:
        places = [int(word[5:]) - 2 for word in report["files"][0]["held_out"].split(", ")]
        left = [row for i, row in enumerate(rows) if i not in places] + rows[:5]
        assert found["total"] == 4 and found["also_in_training"] == sum(rows[i] in left for i in places) > 0
    log_data_report(report)
    shared = found["also_in_training"]
    assert f"{shared} of {found['total']} held-out sequences also stand in the training part" in caplog.text
    assert f"of which {shared} also stand in the training part" in _data_table(report)


def test_the_end_of_a_genome_is_not_counted_as_trained_on(prepare, caplog):
    _, _, report = prepare(random_dna(5000, seed=1))
    assert report["held_out_sequences"] == {"total": 0, "also_in_training": 0}
    log_data_report(report)
    assert "too good" not in caplog.text


def test_all_ambiguous_input_is_refused(prepare):
    with pytest.raises(SequenceFileError, match=r"train\.fa: no run of ACGT of at least 20 bp is left to train on"):
        prepare("N" * 100)


def test_a_held_out_part_without_a_window_is_refused(prepare):
    with pytest.raises(SequenceFileError, match="raise --validation_split_percentage"):
        prepare(random_dna(100, seed=1), validation_split_percentage=5)


def test_missing_file_is_named(tmp_path, tokenizer):
    with pytest.raises(SequenceFileError, match=r"absent\.fa: no such file"):
        prepare_data([tmp_path / "absent.fa"], [], tokenizer, DataSettings(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_seq_length": 2}, "room for"), ({"validation_split_percentage": 100}, "below 100")],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**options)


# -- genomes ------------------------------------------------------------------------------------------------------


def genome_numbers(store) -> list[int]:
    return [int(number) for number, _ in itertools.groupby(store.genomes)]


def test_each_file_is_a_genome(tmp_path, tokenizer):
    for name in ("b", "a"):
        (tmp_path / f"{name}.fa").write_text("".join(f">{i}\n{random_dna(500, i)}\n" for i in range(3)))
    settings = DataSettings(max_seq_length=32, validation_split_percentage=0)
    train, _, _ = prepare_data([tmp_path / "b.fa", tmp_path / "a.fa"], [], tokenizer, settings, tmp_path / "cache")
    assert genome_numbers(train) == [0, 1]
    assert len(train.genomes) == len(train) == len(train.lengths)


def test_in_parquet_files_the_species_are_the_genomes(tmp_path, tokenizer):
    for name, species in (("1", ["mouse", "yeast"]), ("2", ["yeast", "mouse"])):
        table = pyarrow.table({"sequence": [random_dna(300, 1), random_dna(300, 2)], "species": species})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    settings = DataSettings(max_seq_length=1000, validation_split_percentage=0)
    files = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    train, _, _ = prepare_data(files, [], tokenizer, settings, tmp_path / "cache")
    assert train.genomes.tolist() == [0, 1, 1, 0]


# -- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """Counts how often windows are built."""
    calls = []
    write_splits = data._write_splits
    monkeypatch.setattr(data, "_write_splits", lambda *arguments: (calls.append(1), write_splits(*arguments)))
    return calls


def prepare_file(path, tokenizer, folder, build=True, **settings):
    return prepare_data([path], [], tokenizer, DataSettings(max_seq_length=32, **settings), folder, build=build)


def test_a_second_run_reuses_the_windows(genome_file, tokenizer, tmp_path, built):
    first, _, first_report = prepare_file(genome_file, tokenizer, tmp_path)
    second, _, second_report = prepare_file(genome_file, tokenizer, tmp_path)
    assert len(built) == 1
    assert np.array_equal(first.tokens, second.tokens)
    assert first_report == second_report


def test_tokens_are_mapped_from_disk_two_bytes_each(genome_file, tokenizer, tmp_path):
    train, _, _ = prepare_file(genome_file, tokenizer, tmp_path)
    assert isinstance(train.tokens, np.memmap)
    assert train.tokens.dtype == np.uint16


def test_other_settings_another_tokenizer_or_a_changed_file_build_anew(genome_file, tokenizer, tmp_path, built):
    copy = tmp_path / "genome.fa"
    copy.write_bytes(genome_file.read_bytes())
    prepare_file(copy, tokenizer, tmp_path)
    prepare_file(copy, tokenizer, tmp_path, min_run_length=60)
    larger = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    larger.add_tokens(["GGG"])
    prepare_file(copy, larger, tmp_path)
    copy.write_bytes(genome_file.read_bytes() + b">more\n" + b"ACGTT" * 50)
    prepare_file(copy, tokenizer, tmp_path)
    assert len(built) == 4


def test_an_interrupted_build_leaves_nothing_that_is_used(genome_file, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(data._WindowWriter, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_file(genome_file, tokenizer, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))
    assert len(prepare_file(genome_file, tokenizer, tmp_path)[0])


@pytest.mark.parametrize("same_process", [False, True])  # in a container every process has the same number
def test_leftovers_of_a_killed_build_are_removed(genome_file, tokenizer, tmp_path, same_process):
    process = os.getpid() if same_process else 99999
    prepare_file(genome_file, tokenizer, tmp_path)
    (finished,) = tmp_path.iterdir()
    leftover = tmp_path / f".building-{finished.name}-{process}"
    finished.rename(leftover)  # as a process that was killed before the rename left it
    prepare_file(genome_file, tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [finished.name]


def test_the_windows_may_be_read_by_whoever_may_read_the_folder(genome_file, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    prepare_file(genome_file, tokenizer, cache)
    (finished,) = cache.iterdir()
    assert finished.stat().st_mode == cache.stat().st_mode


def test_other_processes_wait_for_the_one_that_builds(genome_file, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    naps = []

    def nap(_):
        naps.append(1)
        if len(naps) == 3:  # meanwhile, elsewhere
            prepare_file(genome_file, tokenizer, folder)

    monkeypatch.setattr(data.time, "sleep", nap)
    train, _, _ = prepare_file(genome_file, tokenizer, folder, build=False)
    assert len(naps) == 3 and len(train)


# -- dataset and sampler -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(genome_file, tokenizer, tmp_path_factory):
    train, _, _ = prepare_file(genome_file, tokenizer, tmp_path_factory.mktemp("cache"))
    masker = TokenMasker(len(tokenizer), tokenizer.mask_token_id, tokenizer.all_special_ids, seed=0)
    return MlmDataset(train, masker, tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_a_sample_is_its_window_between_cls_and_sep(dataset, tokenizer):
    sample = dataset[0, 7]
    original = np.where(sample["labels"] == IGNORED, sample["input_ids"], sample["labels"])
    assert original.tolist() == [tokenizer.cls_token_id, *dataset.store[7], tokenizer.sep_token_id]


def test_the_epoch_travels_with_the_key(dataset):
    assert not np.array_equal(dataset[0, 7]["labels"], dataset[1, 7]["labels"])
    assert np.array_equal(dataset[0, 7]["labels"], dataset[7]["labels"])  # evaluation: epoch 0 always


def test_a_limit_takes_windows_evenly_from_the_whole_store(dataset):
    limited = MlmDataset(dataset.store, dataset.masker, 1, 2, limit=3)
    last = len(dataset) - 1
    assert limited.indices.tolist() == [0, round(last / 2), last] and len(limited) == len(limited.lengths) == 3
    assert len(MlmDataset(dataset.store, dataset.masker, 1, 2, limit=10**9)) == len(dataset)


@given(samples=st.integers(1, 50), batch=st.integers(1, 20), epoch=st.integers(0, 9), seed=st.integers(0, 9))
def test_an_epoch_takes_every_sample_and_fills_whole_batches(samples, batch, epoch, seed):
    sampler = EpochSampler(samples, batch, seed)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler) == sampler.steps_per_epoch * batch < samples + batch
    assert {key_epoch for key_epoch, _ in keys} == {epoch}
    assert sorted(index for _, index in keys[:samples]) == list(range(samples))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(50, 10, seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_a_longest_length_cuts_a_piece_that_depends_on_the_epoch(dataset, tokenizer):
    def unmasked(epoch, max_length):
        sample = dataset[epoch, 7, max_length]
        return np.where(sample["labels"] == IGNORED, sample["input_ids"], sample["labels"]).tolist()

    whole, cut = dataset.store[7].tolist(), [unmasked(epoch, 12) for epoch in range(20)]
    places = [whole[start : start + 10] for start in range(len(whole) - 9)]
    assert all(piece[0] == tokenizer.cls_token_id and piece[-1] == tokenizer.sep_token_id for piece in cut)
    assert all(piece[1:-1] in places for piece in cut)
    assert len({places.index(piece[1:-1]) for piece in cut}) > 5
    assert cut[0] == unmasked(0, 12)
    assert unmasked(0, 10**6) == unmasked(0, None)
