"""Saved folders work in transformers' pipelines."""

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from modeling import (
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
)
from tokenization.tokenizer_files import bpe_tokenizer, save_tokenizer_files

from .conftest import build

MERGES = [("A", "C"), ("G", "T"), ("AC", "GT"), ("T", "T")]
SEQUENCE = "ACGTTTACGTNacgtu"


@pytest.fixture
def saved(tmp_path):
    """Save a small model of a class with a small tokenizer; returns the folder."""

    def save(model_class, **changes):
        build(model_class, vocab_size=9 + len(MERGES), **changes).save_pretrained(tmp_path)
        save_tokenizer_files(bpe_tokenizer(MERGES), tmp_path)
        return tmp_path

    return save


def test_fill_mask(saved):
    predict = pipeline("fill-mask", model=str(saved(StrandBertForMaskedLM)), trust_remote_code=True)
    answers = predict("ACGT[MASK]TTAC", top_k=3)
    assert len(answers) == 3
    assert answers[0]["score"] >= answers[1]["score"] > 0
    assert " " not in answers[0]["sequence"]


def test_text_classification(saved):
    labels = {0: "background", 1: "promoter"}
    folder = saved(StrandBertForSequenceClassification, num_labels=2, id2label=labels)
    answers = pipeline("text-classification", model=str(folder), trust_remote_code=True)([SEQUENCE, SEQUENCE[:5]])
    assert {answer["label"] for answer in answers} <= set(labels.values())
    assert all(0.5 <= answer["score"] <= 1 for answer in answers)


def test_token_classification(saved):
    folder = saved(StrandBertForTokenClassification, num_labels=3)
    answers = pipeline("token-classification", model=str(folder), trust_remote_code=True)("ACGTTT")
    assert [(answer["start"], answer["end"]) for answer in answers] == [(0, 4), (4, 6)]


def test_feature_extraction(saved):
    folder = saved(StrandBertModel)
    features = pipeline("feature-extraction", model=str(folder), trust_remote_code=True)("ACGTTT")
    assert torch.tensor(features).shape == (1, 4, 32)


def test_batches_of_the_tokenizer_go_straight_into_the_model(saved):
    folder = saved(StrandBertModel)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer([SEQUENCE, "ACGT", ""], padding=True, return_tensors="pt")
    model = StrandBertModel.from_pretrained(folder)
    output = model(**batch).last_hidden_state
    assert torch.isfinite(output).all()
    for row, sequence in enumerate([SEQUENCE, "ACGT", ""]):
        alone = model(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0]
        assert (output[row, : len(alone)] - alone).abs().max() < 1e-5


def test_pairs_get_token_types(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved(StrandBertModel), trust_remote_code=True)
    batch = tokenizer("ACGT", "TTTT", return_tensors="pt", return_token_type_ids=True)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
