"""Tokenizer folders: what text means, and that both majors of transformers read them alike."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.tokenization.oracle import dna_like, our_merges
from tokenization.encoder import Encoder
from tokenization.tokenizer_files import bpe_tokenizer, save_tokenizer_files


@pytest.fixture(scope="module")
def merges():
    return our_merges([dna_like(seed=31, length=30_000)], 200)


@pytest.fixture(scope="module")
def folder(merges, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer_files(bpe_tokenizer(merges), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["acgtaacc", "AcGtAaCc", "ACGUAACC", "acguaacc", " ACGT\nAACC\t", "ACG TAA CC"])
def test_case_u_and_white_space_do_not_matter(tokenizer, text):
    assert tokenizer(text).input_ids == tokenizer("ACGTAACC").input_ids


@pytest.mark.parametrize("letter", ["N", "n", "R", "y", "-", "*"])
def test_every_other_character_is_one_unknown_token(tokenizer, letter):
    assert tokenizer.tokenize(f"AA{letter}{letter}AA") == ["AA", "[UNK]", "[UNK]", "AA"]


def test_special_tokens_frame_one_sequence_and_two(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("A").input_ids) == ["[CLS]", "A", "[SEP]"]
    pair = tokenizer("A", "C", return_token_type_ids=True)
    assert tokenizer.convert_ids_to_tokens(pair.input_ids) == ["[CLS]", "A", "[SEP]", "C", "[SEP]"]
    assert pair.token_type_ids == [0, 0, 0, 1, 1]


def test_a_mask_may_stand_inside_a_sequence(tokenizer):
    assert tokenizer.tokenize("A [MASK] c") == ["A", "[MASK]", "C"]


def test_decoding_gives_the_sequence_back_without_spaces(tokenizer):
    sequence = dna_like(seed=32, length=300)
    assert tokenizer.decode(tokenizer(sequence).input_ids, skip_special_tokens=True) == sequence


def test_defaults_that_differ_between_majors_are_explicit(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["model_max_length"] == 1_000_000
    assert (config["padding_side"], config["clean_up_tokenization_spaces"]) == ("right", False)


def test_model_max_length_cuts_on_request(merges, tmp_path):
    save_tokenizer_files(bpe_tokenizer(merges), tmp_path, model_max_length=8)
    assert len(AutoTokenizer.from_pretrained(tmp_path)("ACGT" * 50, truncation=True).input_ids) == 8


def test_merges_are_written_in_the_form_that_every_release_reads(folder, merges):
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["merges"][0] == " ".join(merges[0])


def test_text_and_dict_of_a_tokenizer_are_saved_alike(merges, tmp_path):
    text = bpe_tokenizer(merges).to_str()
    save_tokenizer_files(text, tmp_path / "text")
    save_tokenizer_files(json.loads(text), tmp_path / "dict")
    assert (tmp_path / "text/tokenizer.json").read_bytes() == (tmp_path / "dict/tokenizer.json").read_bytes()


def test_other_special_ids_are_refused(merges, tmp_path):
    content = json.loads(bpe_tokenizer(merges).to_str())
    content["added_tokens"][3]["id"] = 0
    with pytest.raises(ValueError, match=r"\[PAD\] must have id 3, the tokenizer has 0"):
        save_tokenizer_files(content, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failing_write_leaves_the_old_file(folder, merges, monkeypatch):
    before = (folder / "tokenizer.json").read_bytes()

    def broken(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="No space left"):
        save_tokenizer_files(bpe_tokenizer(merges[:5]), folder)
    assert (folder / "tokenizer.json").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_same_token_twice_is_refused():
    with pytest.raises(ValueError, match="same token twice"):
        bpe_tokenizer([("A", "A"), ("A", "AA"), ("AA", "A")])


@pytest.mark.shared
def test_the_vocabulary_of_dnabert2_in_this_form_keeps_its_ids_on_upper_case_bases(shared_data):
    from corpus.fasta import read_fasta
    from tokenization.alphabet import acgt_runs, normalize

    original = Tokenizer.from_file(str(shared_data("data/tokenizer/DNABERT-2-117M/tokenizer.json")))
    merges = [tuple(merge) for merge in json.loads(original.to_str())["model"]["merges"]]
    encoder = Encoder(bpe_tokenizer(merges))
    assert encoder.tokenizer.get_vocab() == original.get_vocab()
    bases = 0
    for genome in ("vertebrates_softmasked/mm10.cgp12way.fa.gz", "fungi/scerevisiae_S288C_R64-2-1.fa.gz"):
        for record in read_fasta(shared_data(f"data/genomes/{genome}")):
            sequence = normalize(record.sequence)
            pieces = [sequence[start:end].decode() for start, end in acgt_runs(sequence)]
            pieces = [piece[cut : cut + 12_000] for piece in pieces for cut in range(0, len(piece), 12_000)][:60]
            ids, offsets = encoder.encode_batch([piece.lower() for piece in pieces])
            for number, encoding in enumerate(original.encode_batch_fast(pieces, add_special_tokens=False)):
                assert ids[offsets[number] : offsets[number + 1]].tolist() == encoding.ids
            bases += sum(map(len, pieces))
            if bases > 2_000_000:
                break
    assert bases > 2_000_000
