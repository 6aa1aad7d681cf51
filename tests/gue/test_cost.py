"""Parameters and FLOPs are counted, on the sequences of the dnaGrinder paper."""

import json
import shutil
from pathlib import Path

import pytest

from gue.cost import COUNTED_FLOPS, count_cost
from tests.gue.conftest import random_rows, write_split

ROOT = Path(__file__).resolve().parents[2]


def folder_of(name, tmp_path, shared_data):
    folder = tmp_path / name
    shutil.copytree(ROOT / "hub_configs" / name, folder)
    for file in (*ROOT.glob("modeling/*.py"), *shared_data("data/tokenizer/DNABERT-2-117M").glob("tokenizer*.json")):
        shutil.copy(file, folder)
    return str(folder)


@pytest.mark.shared
@pytest.mark.parametrize(
    "name, unit, millions", [("dnabert2-117m", "DNABERT-2", 117), ("dnagrinder-64m", "dnaGrinder", 63.6)]
)
def test_units_are_what_is_counted(tmp_path, shared_data, name, unit, millions):
    cost = count_cost(folder_of(name, tmp_path, shared_data), shared_data("data"))
    assert cost["flops_500bp"] == COUNTED_FLOPS[unit]
    assert cost["parameters"] / 1e6 == pytest.approx(millions, rel=0.01)  # the papers count more than the encoder


def test_ratio_of_the_papers_two_models_is_the_printed_1_8():
    assert COUNTED_FLOPS["DNABERT-2"] / COUNTED_FLOPS["dnaGrinder"] == pytest.approx(1.8, abs=0.06)


def test_count_is_the_sum_of_the_matrix_products(tmp_path):
    from transformers import BertConfig, PreTrainedTokenizerFast

    from tokenization.kmer import non_overlapping_kmer_tokenizer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=non_overlapping_kmer_tokenizer(4), model_max_length=512)
    tokenizer.save_pretrained(tmp_path / "bert")
    BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ).save_pretrained(tmp_path / "bert")
    write_split(tmp_path / "data/EMP/H3/test.csv", random_rows(3, 500, 0))
    length, hidden = 500 // 4 + 2, 16
    layer = 2 * length * (4 * hidden**2 + 2 * hidden * 64) + 2 * 2 * length**2 * hidden
    assert count_cost(str(tmp_path / "bert"), tmp_path / "data")["flops_500bp"] == 2 * layer + 2 * hidden**2  # + pooler


def test_what_cannot_be_counted_is_left_out_with_the_reason(tmp_path):
    with pytest.warns(UserWarning, match="are not counted"):
        assert count_cost(str(tmp_path), tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 10, "hidden_size": 12}))
    with pytest.warns(UserWarning, match="not counted"):
        assert set(count_cost(str(tmp_path), tmp_path)) == {"parameters"}
