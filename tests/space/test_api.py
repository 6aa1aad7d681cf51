"""Every named endpoint, called by gradio_client, gives what the Python functions give."""

import csv
from dataclasses import replace

import gradio as gr
import httpx
import numpy as np
import pytest
import torch

from inference.attribution import integrated_gradients
from inference.masked_scores import BaseProbabilities
from inference.mutagenesis import mutagenesis
from inference.reading import SequenceRecord
from inference.score_variants import VariantScorer
from inference.variant_windows import variant_windows
from space import answers, benchmarks
from space.answers import FLANK
from space.benchmarks import SPEED, bars, cases, measurements, speed_rows
from space.inputs import InputError
from space.parts import about_line
from training.classification_batches import TooLongError

from ..conftest import ROOT
from ..inference.conftest import random_sequences

SEQUENCES = random_sequences(0, [90, 150, 60, 120])
FASTA = "".join(f">s{i}\n{s}\n" for i, s in enumerate(SEQUENCES))
ENDPOINTS = {"tokens", "fill_mask", "base_probabilities", "embed", "similarity", "classify", "attribution",
             "mutagenesis", "variant", "benchmark"}  # fmt: skip


@pytest.fixture(scope="module")
def small(models):
    return models.get("language")


@pytest.fixture(scope="module")
def head(models):
    return models.get("classifier")


def close(found, expected):
    return np.allclose(np.array(found, float), np.array(expected, float), atol=2e-5)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def other_strand(sequence):
    return sequence.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def test_these_endpoints_are_named_and_no_other(client):
    assert {name.strip("/") for name in client.view_api(return_format="dict")["named_endpoints"]} == ENDPOINTS


def test_tokens_are_those_of_the_tokenizer(client, small):
    found = client.predict(SEQUENCES[0], api_name="/tokens")
    assert [token["id"] for token in found["tokens"]] == small.encoder.tokenizer(SEQUENCES[0])["input_ids"][1:-1]
    assert "".join(token["text"] for token in found["tokens"]) == SEQUENCES[0]


def test_a_result_says_how_it_was_made(client):
    about = client.predict(SEQUENCES[0], api_name="/tokens")["about"]
    expected = {"model": "small", "backend": "sdpa", "device": "cpu", "dtype": "float32", "bp": 90}
    assert {key: about[key] for key in expected} == expected
    assert about["tokens"] > 0 and about["seconds"] >= 0


def test_fill_mask_gives_the_logits_of_the_model_at_the_mask(client, small):
    found = client.predict(SEQUENCES[0], 40, api_name="/fill_mask")
    assert found["start"] < 40 <= found["end"] and SEQUENCES[0][found["start"] : found["end"]] == found["token"]
    ids = torch.tensor(small.encoder.tokenizer(SEQUENCES[0])["input_ids"])
    tokens = client.predict(SEQUENCES[0], api_name="/tokens")["tokens"]
    place = 1 + [token["start"] for token in tokens].index(found["start"])
    ids[place] = small.model.config.mask_token_id
    with torch.no_grad():
        expected = small.model(ids[None]).logits[0, place].softmax(-1).topk(10)
    names = small.encoder.tokenizer.convert_ids_to_tokens(expected.indices.tolist())
    assert [row["token"] for row in found["predictions"]] == names
    assert close([row["probability"] for row in found["predictions"]], expected.values)


def test_fill_mask_counts_positions_as_the_name_says(client):
    named = client.predict(f">chr7:5001-5090\n{SEQUENCES[0]}\n", 5040, api_name="/fill_mask")
    plain = client.predict(SEQUENCES[0], 40, api_name="/fill_mask")
    assert [named[key] for key in ("token", "start", "end")] == [plain[key] for key in ("token", "start", "end")]


def test_base_probabilities_are_those_of_the_command(client, small):
    found = client.predict(SEQUENCES[2], api_name="/base_probabilities")
    rest, context = BaseProbabilities(small.model, small.encoder)(SEQUENCES[2].encode())
    assert close(found["given_rest"], rest) and close(found["given_context"], context)


def test_vectors_are_those_of_embed(client, small):
    found = client.predict(FASTA, api_name="/embed")
    vectors = small.model.embed(SEQUENCES)
    assert found["names"] == ["s0", "s1", "s2", "s3"]
    assert close(found["vectors"], vectors)
    assert close(found["similarity"], [[cosine(a, b) for b in vectors] for a in vectors])
    backward = small.model.embed([other_strand(s) for s in SEQUENCES])
    assert close(found["strands"], [cosine(a, b) for a, b in zip(vectors, backward, strict=True)])
    nearest = [
        max((j for j in range(4) if j != i), key=lambda j, i=i: cosine(vectors[i], vectors[j])) for i in range(4)
    ]
    assert [row[0][0] for row in found["neighbours"]] == nearest


def test_the_map_keeps_what_two_components_hold(client):
    found = client.predict(FASTA, api_name="/embed")
    vectors = np.array(found["vectors"])
    variance = ((vectors - vectors.mean(0)) ** 2).sum()
    assert np.square(found["map"]).sum() == pytest.approx(sum(found["explained"]) * variance, rel=1e-3)
    assert found["explained"][0] >= found["explained"][1] > 0


def test_similarity_is_the_cosine_of_embed(client, small):
    found = client.predict(SEQUENCES[0], SEQUENCES[1], api_name="/similarity")
    one, other, back = small.model.embed([SEQUENCES[0], SEQUENCES[1], other_strand(SEQUENCES[1])])
    assert close(found["similarity"], cosine(one, other))
    assert close(found["similarity_other_strand"], cosine(one, back))


def test_sequences_that_are_compared_may_be_wrapped(client):
    wrapped = "\n".join(SEQUENCES[0][start : start + 20] for start in range(0, 90, 20))
    assert client.predict(wrapped, SEQUENCES[0], api_name="/similarity")["similarity"] == pytest.approx(1, abs=1e-5)


def test_classify_gives_the_probabilities_of_the_model(client, head):
    rows = client.predict(FASTA, api_name="/classify")["rows"]
    for row, sequence in zip(rows, SEQUENCES, strict=True):
        with torch.no_grad():
            ids = torch.tensor([head.encoder.tokenizer(sequence)["input_ids"]])
            expected = head.model(ids).logits[0].softmax(-1)
        labels = head.model.config.id2label
        assert close([row[f"probability_{labels[i]}"] for i in (0, 1)], expected)
        assert row["predicted"] == labels[int(expected.argmax())]


def test_tokens_of_another_architecture_are_not_counted(head):
    records = [SequenceRecord("a", SEQUENCES[2].encode(), "line 1")]
    about = answers.classify(replace(head, encoder=None), records)["about"]
    assert about["tokens"] is None and "tokens" not in about_line(about) and "60 bp" in about_line(about)
    counted = answers.classify(head, records)["about"]
    assert f"{counted['tokens']} tokens" in about_line(counted)


def test_attribution_is_that_of_the_command(client, head):
    found = client.predict(SEQUENCES[2], api_name="/attribution")
    expected = integrated_gradients(head.model, head.encoder, SEQUENCES[2].encode())
    assert close(found["bases"], expected.bases)
    assert found["label"] == head.model.config.id2label[expected.target]


def test_mutagenesis_is_that_of_the_command(client, small):
    text = f">chr7:5001-{5000 + len(SEQUENCES[3])}\n{SEQUENCES[3]}\n"
    found = client.predict(text, 5051, 5053, api_name="/mutagenesis")
    expected = mutagenesis(VariantScorer(small.model, small.encoder), SEQUENCES[3].encode(), 50, 53, FLANK)
    assert close(found["llr"], expected)


def test_a_variant_has_the_scores_of_the_command(client, small):
    ref = SEQUENCES[3][59]
    alt = "G" if ref == "A" else "A"
    found = client.predict(SEQUENCES[3], f"60 {ref}>{alt}", api_name="/variant")
    windows = variant_windows(SEQUENCES[3].encode(), 59, ref.encode(), alt.encode(), FLANK)
    expected = VariantScorer(small.model, small.encoder)([windows])
    assert close(
        [found["llr"], found["pll"], found["distance"]], [expected.llr[0], expected.pll[0], expected.distance[0]]
    )


def test_benchmarks_are_the_rows_of_the_files(client):
    found = client.predict("encoder.csv", api_name="/benchmark")
    with open(ROOT / "benchmarks" / "results" / "encoder.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tokens_per_s"] for row in found] == [row["tokens_per_s"] for row in rows]
    assert {"task", "metric"} <= set(client.predict("gue", api_name="/benchmark")[0])


def test_every_result_file_is_drawn_and_memory_where_it_was_measured():
    drawn = set(measurements().values())
    assert {file for file, _ in drawn} == set(SPEED)
    with_memory = {"embed.csv": "peak_memory_gb", "training.csv": "peak_memory_gb", "corpus.csv": "peak_memory_mb",
                   "tokenizer.csv": "peak_memory_mb"}  # fmt: skip
    assert set(with_memory.items()) <= drawn


@pytest.mark.parametrize(
    "file, column", [(file, column) for file, (_, _, titles) in SPEED.items() for column in titles]
)
def test_every_measurement_is_drawn_with_one_bar_for_each_rival(file, column):
    for case in cases(file, column):
        drawn = bars(file, column, case)["value"]
        rivals = list(drawn.iloc[:, 0])
        assert rivals and len(rivals) == len(set(rivals))
        assert (drawn[column] > 0).all()


def test_result_files_without_rows_do_not_stop_the_app(tmp_path, monkeypatch):
    results = benchmarks.RESULTS
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    for file in SPEED:
        (tmp_path / file).write_text((results / file).read_text(encoding="utf-8").partition("\n")[0] + "\n")
    (tmp_path / "attention.csv").write_text("")
    assert measurements() == {} and speed_rows("encoder.csv") == []
    with gr.Blocks():
        benchmarks.build()
    (tmp_path / "training.csv").write_bytes((results / "training.csv").read_bytes())
    assert {file for file, _ in measurements().values()} == {"training.csv"}
    with gr.Blocks():
        benchmarks.build()


def test_long_work_goes_in_steps_that_can_be_stopped(small, head):
    record = SequenceRecord("a", SEQUENCES[2].encode(), "line 1")
    for steps in (
        answers.base_probabilities(small, record),
        answers.embed(small, [record]),
        answers.attribution(head, record),
        answers.mutate(small, record, 10, 14),
    ):
        *progress, found = steps
        assert progress and all(isinstance(step, int | float) for step in progress)
        assert "about" in found


def test_mutagenesis_computes_only_what_is_shown(small, monkeypatch):
    record = SequenceRecord("a", SEQUENCES[2].encode(), "line 1")
    expected = mutagenesis(VariantScorer(small.model, small.encoder), record.sequence, 10, 12, FLANK)
    for name in ("_single", "_distances"):
        monkeypatch.setattr(VariantScorer, name, lambda *_: pytest.fail("computed in vain"))
    *_, found = answers.mutate(small, record, 10, 12)
    assert close(found["llr"], expected)


def test_a_sequence_beyond_the_positions_of_a_model_is_said(head):
    def too_long(first, records):
        raise TooLongError("line 1, record 'a': 700 tokens, more than the 512 that fit; add --truncate to cut")

    loaded = replace(head, predictor=too_long)
    with pytest.raises(InputError, match="more than the 512 that fit; shorten it.$"):
        answers.classify(loaded, [SequenceRecord("a", b"ACGT", "line 1")])


@pytest.mark.parametrize(
    "endpoint, arguments, said",
    [
        ("/tokens", [""], "no sequence yet"),
        ("/tokens", ["HELLO"], "not a nucleotide"),
        ("/tokens", ["A" * 2_000_000], "more than 20,000 bp, the most that this page takes"),
        ("/tokens", ["ACGT", "/etc"], "not on the list of models: small"),
        ("/classify", ["ACGT", "../head"], "not on the list"),
        ("/fill_mask", ["ACGT", 5], "Position 5 does not exist"),
        ("/fill_mask", [">chr7:5001-5004\nACGT\n", 2], "Position 2 does not exist; .* positions 5001 to 5004"),
        ("/fill_mask", ["ACGT", "five"], "position is 'five'; give a whole number"),
        ("/mutagenesis", ["ACGT" * 100, 1, 200], "at most 100"),
        ("/mutagenesis", ["ACGT", 0, 2], "between 1 and 4"),
        ("/variant", ["ACGTACGT", "2 A>G"], "the sequence has C there"),
        ("/variant", ["ACGTACGT", "1 A>N"], "letters other than ACGT"),
        ("/variant", ["C" + "A" * 130 + "G", "1 CA>C"], "all places where it could be written span more than 100 bp"),
        ("/benchmark", ["../../pyproject.toml"], "no result file"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_sentence(client, endpoint, arguments, said):
    with pytest.raises(Exception, match=said) as error:
        client.predict(*arguments, api_name=endpoint)
    assert str(ROOT) not in str(error.value) and "Traceback" not in str(error.value)
    assert "&" not in str(error.value)  # no HTML


def test_a_fault_of_the_program_shows_nothing_of_its_inside(client, models, monkeypatch):
    monkeypatch.setattr(models, "get", lambda *arguments: 1 / 0)
    with pytest.raises(Exception) as error:
        client.predict("ACGT", api_name="/tokens")
    assert "division" not in str(error.value) and str(ROOT) not in str(error.value)


def test_a_classifier_is_not_said_to_be_a_task_of_gue(server):
    components = httpx.get(f"{server}config").json()["components"]
    (shown,) = [part["props"] for part in components if part["props"].get("label") == "Fine-tuned model"]
    assert "GUE" not in (shown.get("info") or "")


def test_browsers_keep_no_history_of_what_was_computed(server):
    assert httpx.get(f"{server}config").json()["run_history"] is False


def test_files_of_the_server_cannot_be_read(server):
    for path in (ROOT / "pyproject.toml", "/etc/passwd"):
        assert httpx.get(f"{server}gradio_api/file={path}").status_code in (403, 404)
