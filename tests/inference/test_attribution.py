"""Attribution: parts that add up, on tokens and bases as they are; and a planted motif is found again."""

import random

import numpy as np
import pyarrow.parquet
import pytest
import torch

from inference.attribution import _sequences, attention_profile, integrated_gradients, main
from inference.loading import SequenceEncoder, load_classifier
from inference.reading import reverse_complement
from modeling.nucleotides import token_lengths, token_spans

from ..conftest import ROOT
from .conftest import random_sequences
from .planted import SITE, train_classifier, with_motif

SEQUENCE = random_sequences(4, [70])[0].encode()


@pytest.fixture(scope="module")
def model(classifier_folder):
    return load_classifier(str(classifier_folder), torch.float32)


@pytest.fixture(scope="module")
def encoder(classifier_folder, model):
    return SequenceEncoder(str(classifier_folder), model.config)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("sequence", [SEQUENCE, SEQUENCE[:30] + b"NNN" + SEQUENCE[33:], b"A"])
def test_parts_add_up_to_the_gain_over_the_masked_sequence(model, encoder, sequence, target):
    found = integrated_gradients(model, encoder, sequence, target)
    logits, masked = [], []
    for strand in (sequence, reverse_complement(sequence)):
        ids = encoder.tokenizer(strand.decode(), return_tensors="pt")["input_ids"]
        hidden = ids.clone()
        hidden[:, 1:-1] = encoder.tokenizer.mask_token_id
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits[0, target].item())
            masked.append(model(input_ids=hidden).logits[0, target].item())
    assert found.score == pytest.approx(np.mean(logits), abs=1e-4)
    assert found.baseline == pytest.approx(np.mean(masked), abs=1e-4)
    assert len(found.bases) == len(sequence)
    assert abs(found.bases.sum() - (np.mean(logits) - np.mean(masked))) < 1e-2


def test_bases_of_one_token_have_equal_parts(model, encoder):
    bases = integrated_gradients(model, encoder, SEQUENCE, 0, both_strands=False).bases
    (ids,) = encoder([SEQUENCE])
    spans = token_spans(ids[1:-1], token_lengths(encoder.tokenizer)).tolist()
    for start, end in spans:
        np.testing.assert_allclose(bases[start:end], bases[start])
    assert len({round(bases[start], 12) for start, _ in spans}) == len(spans)


def test_other_strand_has_mirrored_parts(model, encoder):
    forward, backward = (
        integrated_gradients(model, encoder, s, 1).bases for s in (SEQUENCE, reverse_complement(SEQUENCE))
    )
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-5)


def test_predicted_class_is_the_default_target(model, encoder):
    found = integrated_gradients(model, encoder, SEQUENCE)
    assert found.score == max(integrated_gradients(model, encoder, SEQUENCE, target).score for target in range(3))


def test_attributing_leaves_no_gradient_in_the_weights(model, encoder):
    integrated_gradients(model, encoder, SEQUENCE, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layer", [1, 2, -1])
@pytest.mark.parametrize("query", ["cls", "mean"])
def test_attention_profile_is_the_models_attention(model, encoder, layer, query):
    profile = attention_profile(model, encoder, SEQUENCE, layer, query, both_strands=False)
    ids = encoder.tokenizer(SEQUENCE.decode(), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        attentions = model(input_ids=ids, output_attentions=True).attentions[layer - 1 if layer > 0 else layer][0]
    received = attentions[:, 0].mean(0) if query == "cls" else attentions.mean((0, 1))
    lengths = token_lengths(encoder.tokenizer)[ids[0]]
    expected = torch.repeat_interleave(received / lengths.clamp(min=1), lengths)
    np.testing.assert_allclose(profile, expected.numpy(), atol=1e-6)


def test_attention_of_many_tokens_is_read_in_chunks(model, encoder):
    sequence = random_sequences(9, [3000])[0].encode()
    profile = attention_profile(model, encoder, sequence, query="mean")
    assert len(profile) == 3000 and 0.9 < profile.sum() < 1


@pytest.mark.parametrize("layer, query", [(0, "cls"), (4, "cls"), (-4, "cls"), (1, "sep")])
def test_unknown_layer_or_query_is_refused(model, encoder, layer, query):
    with pytest.raises(ValueError, match="does not exist|unknown"):
        attention_profile(model, encoder, SEQUENCE, layer, query)


@pytest.mark.parametrize("size", [1, 4, 5, 30])
def test_records_are_found_again_in_tables_of_any_size(size):
    expected = [("a", b"ACGTA"), ("a", b"C"), ("b", b"GGTTACA")]  # two neighbours have one name
    rows = [(name, number, chr(letter)) for number, (name, letters) in enumerate(expected) for letter in letters]
    columns = dict(zip(("name", "record", "base"), map(list, zip(*rows, strict=True)), strict=True))
    table = pyarrow.table({**columns, "attribution": [float(place) for place in range(len(rows))]})
    found = list(_sequences(table.slice(low, size) for low in range(0, len(rows), size)))
    assert [(name, letters) for name, letters, _ in found] == expected
    assert np.concatenate([values for *_, values in found]).tolist() == list(range(len(rows)))


def test_planted_motif_is_the_top_motif(tmp_path):
    train_classifier(tmp_path / "model", ROOT / "tokenization" / "vocabulary", steps=400)
    source = random.Random(7)
    sequences = [with_motif(source, 80, SITE) for _ in range(60)]
    sequences = [s if i % 2 else reverse_complement(s) for i, s in enumerate(sequences)]
    (tmp_path / "x.fa").write_bytes(b"".join(b">%d\n%s\n" % item for item in enumerate(sequences)))
    main([str(tmp_path / "x.fa"), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "a.parquet"),
          "--motifs", str(tmp_path / "m.meme"), "--logos", "1", "--target", "1", "--cpu"])  # fmt: skip
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pandas()
    gains = table.groupby("record")["attribution"].sum()
    assert (table["gap"] <= 1e-2 * gains.abs().clip(lower=1)[table["record"]].to_numpy()).all()
    inside = 0
    for number, sequence in enumerate(sequences):
        values = table["attribution"][table["record"] == number].to_numpy()
        place = max(sequence.find(SITE), sequence.find(reverse_complement(SITE)))
        inside += place - 4 <= values.argmax() < place + len(SITE) + 4
    assert inside > 50
    first = next(line for line in (tmp_path / "m.meme").read_text().splitlines() if line.startswith("MOTIF"))
    consensus = first.split("_")[-1].encode()
    assert any(strand[1:-1] in consensus for strand in (SITE, reverse_complement(SITE)))
    for name in ("m.png", "a_1.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "more, words",
    [
        (["--target", "exon"], "'exon' is no class of the model; it has background, promoter, enhancer"),
        (["--target", "3"], "is no class"),
        (["--method", "attention", "--layer", "9"], "layer=9 does not exist"),
        (["--output", "x.png"], "must end in .parquet"),
        (["--motifs", "m.png"], "must end in .meme"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_said_in_one_line(classifier_folder, tmp_path, more, words):
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    with pytest.raises(SystemExit, match=words):
        main([str(tmp_path / "x.fa"), "--model", str(classifier_folder), "--output", str(tmp_path / "a.parquet"),
              "--cpu", *more])  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["x.fa"]


def test_figures_and_motifs_of_others_are_kept(classifier_folder, tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    (tmp_path / "m.png").write_text("mine")
    with pytest.raises(SystemExit, match="m.png already exists"):
        main([str(tmp_path / "x.fa"), "--model", str(classifier_folder), "--output", str(tmp_path / "a.parquet"),
              "--motifs", str(tmp_path / "m.meme"), "--cpu"])  # fmt: skip
    assert (tmp_path / "m.png").read_text() == "mine"


def test_an_older_picture_does_not_stay_where_no_motif_is_found(classifier_folder, tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    for name in ("m.png", "m.meme"):
        (tmp_path / name).write_text("of an earlier run")
    main([str(tmp_path / "x.fa"), "--model", str(classifier_folder), "--output", str(tmp_path / "a.parquet"),
          "--motifs", str(tmp_path / "m.meme"), "--cpu", "--overwrite"])  # fmt: skip
    assert "MOTIF" not in (tmp_path / "m.meme").read_text() and not (tmp_path / "m.png").exists()


def test_model_without_classifier_is_refused(model_folder, tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    with pytest.raises(SystemExit, match="is no classifier"):
        main([str(tmp_path / "x.fa"), "--model", str(model_folder), "--output", str(tmp_path / "a.csv"), "--cpu"])
