"""Parameters and FLOPs are counted, on the sequences of the dnaGrinder paper."""

import shutil
from pathlib import Path

import pytest
from transformers import BertConfig, PreTrainedTokenizerFast

from gue.cost import COUNTED_FLOPS, count_flops
from tests.gue.conftest import random_rows, write_split
from tokenization.kmer import non_overlapping_kmer_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def folder_of(name, tmp_path, shared_data):
    folder = tmp_path / name
    shutil.copytree(ROOT / "hub_configs" / name, folder)
    for file in (*ROOT.glob("modeling/*.py"), *shared_data("data/tokenizer/DNABERT-2-117M").glob("tokenizer*.json")):
        shutil.copy(file, folder)
    return str(folder)


@pytest.mark.shared
@pytest.mark.parametrize("name, unit", [("dnabert2-117m", "DNABERT-2"), ("dnagrinder-64m", "dnaGrinder")])
def test_unit_is_what_is_counted(tmp_path, shared_data, name, unit):
    folder = folder_of(name, tmp_path, shared_data)
    assert count_flops(folder, folder, shared_data("data")) == COUNTED_FLOPS[unit]


def test_count_is_the_sum_of_the_matrix_products(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=non_overlapping_kmer_tokenizer(2), model_max_length=512)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(vocab_size=300, **sizes).save_pretrained(tmp_path / "bert")
    write_split(tmp_path / "data/EMP/H3/test.csv", random_rows(3, 500, 0))
    bert = str(tmp_path / "bert")
    length, hidden = 500 // 2 + 2, 16
    layer = 2 * length * (4 * hidden**2 + 2 * hidden * 64) + 2 * 2 * length**2 * hidden
    pooler_and_classifier = 2 * hidden**2 + 2 * hidden * 2
    assert count_flops(bert, bert, tmp_path / "data") == 2 * layer + pooler_and_classifier


def test_what_cannot_be_counted_is_left_out_with_the_reason(tmp_path):
    with pytest.warns(UserWarning, match="FLOPs of nowhere are not counted: EMP/H3/test.csv.* is not under"):
        assert count_flops("nowhere", "nowhere", tmp_path) is None
    write_split(tmp_path / "EMP/H3/test.csv", random_rows(3, 500, 0))
    with pytest.warns(UserWarning, match="FLOPs of nowhere are not counted: no model configuration at nowhere"):
        assert count_flops("nowhere", "nowhere", tmp_path) is None
