"""The k-mer baselines are what DNABERT and Nucleotide Transformer tokenize."""

import pytest
from transformers import AutoTokenizer

from tokenization.kmer import main


def load(tmp_path, *words):
    assert main([*words, "--output", str(tmp_path)]) == 0
    return AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_overlapping_has_one_token_for_every_position(tmp_path, k):
    tokenizer = load(tmp_path, "--k", str(k), "--overlapping")
    sequence = "ACGTTGCAACGT"
    assert tokenizer.tokenize(sequence) == [sequence[i : i + k] for i in range(len(sequence) - k + 1)]
    assert len(tokenizer) == 4**k + 5


def test_non_overlapping_takes_k_at_a_time_and_single_letters_at_the_end(tmp_path):
    tokenizer = load(tmp_path, "--k", "6")
    assert tokenizer.tokenize("ACGTACGTACGTAC") == ["ACGTAC", "GTACGT", "A", "C"]
    assert len(tokenizer) == 4**6 + 4 + 5


def test_non_overlapping_starts_again_behind_an_unknown_letter(tmp_path):
    assert load(tmp_path, "--k", "3").tokenize("ACGTNACGT") == ["ACG", "T", "[UNK]", "ACG", "T"]


def test_an_overlapping_token_with_an_unknown_letter_is_unknown(tmp_path):
    tokenizer = load(tmp_path, "--k", "3", "--overlapping")
    assert tokenizer.convert_ids_to_tokens(tokenizer("ACGNACG", add_special_tokens=False).input_ids) == [
        "ACG", "[UNK]", "[UNK]", "[UNK]", "ACG",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [["--overlapping"], []])
def test_case_u_and_white_space_do_not_matter(tmp_path, options):
    tokenizer = load(tmp_path, "--k", "4", *options)
    assert tokenizer("acgu\n acgt").input_ids == tokenizer("ACGTACGT").input_ids


@pytest.mark.parametrize("options", [["--overlapping"], []])
def test_special_ids_padding_and_decoding(tmp_path, options):
    tokenizer = load(tmp_path, "--k", "3", *options)
    assert tokenizer.convert_tokens_to_ids(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]) == [0, 1, 2, 3, 4]
    batch = tokenizer(["ACGTACG", "ACG"], padding=True)
    assert batch.input_ids[1][0] == 1 and batch.input_ids[1][2] == 2 and set(batch.input_ids[1][3:]) == {3}
    assert sum(batch.attention_mask[1]) == 3
    assert tokenizer.decode(batch.input_ids[0], skip_special_tokens=True) == "ACGTACG"


def test_a_pair_has_two_token_types(tmp_path):
    pair = load(tmp_path, "--k", "3", "--overlapping")("ACGT", "ACG", return_token_type_ids=True)
    assert pair.token_type_ids == [0, 0, 0, 0, 1, 1]


def test_a_saved_copy_loads_again(tmp_path):
    tokenizer = load(tmp_path / "first", "--k", "4", "--overlapping")
    tokenizer.save_pretrained(tmp_path / "second")
    again = AutoTokenizer.from_pretrained(tmp_path / "second", trust_remote_code=True)
    assert again("ACGTACGT").input_ids == tokenizer("ACGTACGT").input_ids


@pytest.mark.parametrize("k", ["1", "9"])
def test_an_impossible_k_is_refused(tmp_path, capsys, k):
    assert main(["--k", k, "--output", str(tmp_path)]) == 1
    assert f"k must be from 2 to 8, got {k}" in capsys.readouterr().err
