"""Probabilities of tokens and bases: each is what its definition says, and fill-mask works."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from inference.loading import SequenceEncoder, load_masked_lm
from inference.masked_scores import BaseProbabilities, main, pseudo_log_likelihood
from inference.reading import reverse_complement
from modeling import StrandBertForMaskedLM, memory
from training.classification_model import ModelError

from .conftest import random_sequences, save_model

SEQUENCE = random_sequences(3, [60])[0].encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("lm"), StrandBertForMaskedLM)


@pytest.fixture(scope="module")
def model(folder):
    return load_masked_lm(str(folder))


@pytest.fixture(scope="module")
def encoder(folder, model):
    return SequenceEncoder(str(folder), model.config)


def masked_token(model, tokenizer, sequence, base):
    """(letters of the token over a base, first base of it, the model's probabilities when it is masked)."""
    ids = tokenizer(sequence.decode(), return_tensors="pt")["input_ids"]
    end = 0
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids[0])):
        if token in ("[CLS]", "[SEP]"):
            continue
        start, end = end, end + (1 if token == "[UNK]" else len(token))
        if start <= base < end:
            ids[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                return sequence[start:end].decode(), start, model(input_ids=ids).logits[0, place].double().softmax(0)


@pytest.mark.parametrize("base", [0, 17, 31, 59])
def test_both_probabilities_of_a_base_are_sums_over_the_tokens_that_could_stand_there(model, encoder, base):
    rest, context = BaseProbabilities(model, encoder)(SEQUENCE)
    letters, start, probabilities = masked_token(model, encoder.tokenizer, SEQUENCE, base)
    place = base - start
    given_rest, given_context = np.zeros((2, 4))
    for token, index in encoder.tokenizer.get_vocab().items():
        if len(token) == len(letters) and set(token) <= set("ACGT"):
            given_context["ACGT".index(token[place])] += probabilities[index]
            if token[:place] + token[place + 1 :] == letters[:place] + letters[place + 1 :]:
                given_rest["ACGT".index(token[place])] += probabilities[index]
    np.testing.assert_allclose(rest[base], given_rest / given_rest.sum(), atol=1e-5)
    np.testing.assert_allclose(context[base], given_context / given_context.sum(), atol=1e-5)


def test_probabilities_are_complete_and_the_read_base_is_always_possible(model, encoder):
    for values in BaseProbabilities(model, encoder, both_strands=True)(SEQUENCE):
        assert values.shape == (60, 4)
        np.testing.assert_allclose(values.sum(1), 1)
        assert (values[np.arange(60), ["ACGT".index(chr(base)) for base in SEQUENCE]] > 0).all()


def test_the_vocabulary_does_not_hold_all_four_replacements(model, encoder):
    rest, context = BaseProbabilities(model, encoder)(SEQUENCE)
    assert (rest == 0).any() and (context > 0).sum() > (rest > 0).sum()


def test_other_strand_mirrors_probabilities_of_both_strands(model, encoder):
    compute = BaseProbabilities(model, encoder, both_strands=True)
    for forward, backward in zip(compute(SEQUENCE), compute(reverse_complement(SEQUENCE)), strict=True):
        np.testing.assert_allclose(forward, backward[::-1, ::-1], atol=1e-5)


def test_batches_change_no_probability(model, encoder):
    for one, many in zip(
        BaseProbabilities(model, encoder, batch_tokens=1)(SEQUENCE),
        BaseProbabilities(model, encoder)(SEQUENCE),
        strict=True,
    ):
        np.testing.assert_allclose(one, many, atol=1e-5)


def test_too_little_memory_for_one_sequence_names_no_option_that_is_not_there(model, encoder, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    with pytest.raises(MemoryError, match="would fit; cut it into pieces, or lower the flank$"):
        BaseProbabilities(model, encoder, batch_tokens=1)(SEQUENCE)


def test_base_under_n_is_predicted_as_a_token_of_one_letter(model, encoder):
    sequence = SEQUENCE[:20] + b"N" + SEQUENCE[21:]
    rest, context = BaseProbabilities(model, encoder)(sequence)
    _, start, probabilities = masked_token(model, encoder.tokenizer, sequence, 20)
    expected = np.array([probabilities[encoder.tokenizer.convert_tokens_to_ids(base)] for base in "ACGT"])
    assert start == 20
    np.testing.assert_allclose(rest[20], expected / expected.sum(), atol=1e-5)
    np.testing.assert_allclose(context[20], expected / expected.sum(), atol=1e-5)


def test_tokenizer_that_makes_one_token_of_several_n_is_refused(folder, model, tmp_path):
    fused = shutil.copytree(folder, tmp_path / "fused")
    content = json.loads((fused / "tokenizer.json").read_text())
    content["model"]["fuse_unk"] = True
    (fused / "tokenizer.json").write_text(json.dumps(content))
    compute = BaseProbabilities(model, SequenceEncoder(str(fused), model.config))
    assert compute(SEQUENCE)[0].shape == (60, 4)
    with pytest.raises(ModelError, match="the tokens hold 61 bases, the sequence 62: .* end to end"):
        compute(SEQUENCE[:30] + b"NN" + SEQUENCE[30:])


def test_pseudo_log_likelihood_masks_each_token_alone_and_skips_n(model, encoder):
    sequence = SEQUENCE[:20] + b"N" + SEQUENCE[21:]
    expected, base = 0.0, 0
    while base < len(sequence):
        letters, start, probabilities = masked_token(model, encoder.tokenizer, sequence, base)
        if letters != "N":
            expected += float(probabilities[encoder.tokenizer.convert_tokens_to_ids(letters)].log())
        base = start + len(letters)
    values = pseudo_log_likelihood(model, encoder, [SEQUENCE, sequence])
    assert values[1] == pytest.approx(expected, abs=1e-4)


def test_fill_mask_pipeline_predicts_a_masked_token(folder):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)
    answers = fill("GATTACAGGCAT[MASK]CCGAACGATCG")
    ids = tokenizer("GATTACAGGCAT[MASK]CCGAACGATCG", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[0, ids[0] == tokenizer.mask_token_id].softmax(-1)[0]
    assert [answer["token"] for answer in answers] == probabilities.topk(3).indices.tolist()
    assert answers[0]["score"] == pytest.approx(float(probabilities.max()), rel=1e-4)


def test_command_writes_a_row_for_each_base(folder, tmp_path):
    (tmp_path / "x.fa").write_text(">a\nacgtnACGTTT\n>b\nGATTACA\n")
    main([str(tmp_path / "x.fa"), "--model", str(folder), "--output", str(tmp_path / "bases.parquet"), "--cpu"])
    table = pyarrow.parquet.read_table(tmp_path / "bases.parquet").to_pandas()
    assert "".join(table["base"]) == "ACGTNACGTTTGATTACA" and list(table["position"]) == [*range(11), *range(7)]
    np.testing.assert_allclose(table[["A", "C", "G", "T"]].sum(axis=1), 1, rtol=1e-5)


def test_columns_of_a_table_are_chosen(folder, tmp_path):
    (tmp_path / "x.csv").write_text("gene,dna\nrpoB,GATTACA\n")
    main([str(tmp_path / "x.csv"), "--sequence-column", "dna", "--name-column", "gene", "--model", str(folder),
          "--output", str(tmp_path / "bases.parquet"), "--cpu"])  # fmt: skip
    assert pyarrow.parquet.read_table(tmp_path / "bases.parquet")["name"].to_pylist() == ["rpoB"] * 7


@pytest.mark.parametrize(
    "content, output, words",
    [
        (">a\nACGT\n", "bases.npy", "must end in .parquet"),
        (">a\nACG!\n", "bases.parquet", "line 2"),
        ("", "bases.parquet", "empty"),
    ],
)
def test_bad_input_is_said_in_one_line(folder, tmp_path, capsys, content, output, words):
    (tmp_path / "x.fa").write_text(content)
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path / "x.fa"), "--model", str(folder), "--output", str(tmp_path / output), "--cpu"])
    text = error.value.code if isinstance(error.value.code, str) else capsys.readouterr().err
    assert words in text
