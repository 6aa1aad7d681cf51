"""`model.embed`: a sequence's vectors depend on the sequence alone, and mean what the documentation says."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertModel
from modeling import memory as memory_module
from modeling.embedding import embed_token_ids
from tokenization.kmer import save_overlapping_kmer_tokenizer

from ..conftest import ROOT
from ..inference.conftest import SIZES, random_sequences, save_model

RAGGED = ["N", "nnnn", "ACGT", *random_sequences(1, [7, 60, 301, 1200, 5000]), "acgtN" * 30, "TTTTTTTTTT" * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), StrandBertForMaskedLM, hidden_dropout_prob=0.1)


@pytest.fixture(scope="module")
def model(folder):
    return StrandBertForMaskedLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(ROOT / "tokenization" / "vocabulary")


def close(a, b):
    return all(x.shape == y.shape and (x - y).abs().max() < 1e-5 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "none"])
@pytest.mark.parametrize("batch_tokens", [1, 500, 100_000])
def test_a_batch_gives_what_each_sequence_gives_alone(model, pooling, batch_tokens):
    together = model.embed(RAGGED, pooling=pooling, batch_tokens=batch_tokens)
    assert close(together, [model.embed(sequence, pooling=pooling) for sequence in RAGGED])


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(len(RAGGED))), batch_tokens=st.integers(1, 3000))
def test_a_permutation_of_the_input_permutes_the_output(model, order, batch_tokens):
    expected = model.embed(RAGGED)[order]
    assert close(model.embed([RAGGED[i] for i in order], batch_tokens=batch_tokens), expected)


@settings(max_examples=60, deadline=None)
@given(sequence=st.text("ACGTacgtNnRyUu", min_size=1, max_size=300), strand=st.sampled_from(["none", "average"]))
def test_there_is_a_row_for_every_nucleotide(model, sequence, strand):
    rows = model.embed(sequence, resolution="nucleotide", reverse_complement=strand)
    assert rows.shape == (len(sequence), SIZES["hidden_size"]) and rows.isfinite().all()


@pytest.mark.parametrize("strand", ["none", "average"])
def test_windows_keep_a_row_for_every_nucleotide(model, strand):
    options = {"window": 40, "overlap": 13, "resolution": "nucleotide", "reverse_complement": strand}
    assert [len(rows) for rows in model.embed(RAGGED, **options)] == [len(sequence) for sequence in RAGGED]


def test_the_mean_is_over_tokens_of_letters_without_unknown_ones(model, tokenizer):
    (sequence,) = random_sequences(2, [200])
    sequence += "NNN"
    ids = torch.tensor([tokenizer(sequence)["input_ids"]])
    with torch.no_grad():
        hidden = model.eval()(ids, output_hidden_states=True).hidden_states
    for layer in (0, 2, -1):
        expected = hidden[layer][0, 1:-4].mean(dim=0)  # [CLS] ... [UNK] [UNK] [UNK] [SEP]
        assert (model.embed(sequence, layer=layer) - expected).abs().max() < 1e-5
        assert (model.embed(sequence, layer=layer, pooling="cls") - hidden[layer][0, 0]).abs().max() < 1e-5


def test_case_and_u_do_not_matter(model):
    assert torch.equal(model.embed("ACGTTGCATTAR"), model.embed("acgutgcauuan"))


def test_the_average_of_both_strands_is_that_of_the_other_strand(model):
    sequence, other = "ACCGTTNGATTACAGATTACA", "TGTAATCTGTAATCNAACGGT"
    a, b = (model.embed(strand, reverse_complement="average") for strand in (sequence, other))
    assert (a - b).abs().max() < 1e-6 and (a - (model.embed(sequence) + model.embed(other)) / 2).abs().max() < 1e-6
    a, b = (model.embed(s, reverse_complement="average", resolution="nucleotide") for s in (sequence, other))
    assert (a - b.flip(0)).abs().max() < 1e-6


def test_windows_that_hold_the_sequence_change_nothing(model):
    assert close(model.embed(RAGGED, window=5000), model.embed(RAGGED))


def test_longer_windows_come_nearer_to_the_whole(model):
    (sequence,) = random_sequences(3, [20_000])
    whole = model.embed(sequence, resolution="token")
    windows = [model.embed(sequence, resolution="token", window=size, overlap=size // 2) for size in (150, 600, 2400)]
    errors = [float((rows - whole).norm() / whole.norm()) for rows in windows]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_the_mode_of_every_module_is_left_as_it_was_and_dropout_does_not_act(folder):
    model = StrandBertForMaskedLM.from_pretrained(folder).train()
    model.cls.eval()
    before = [module.training for module in model.modules()]
    first = model.embed(RAGGED)
    assert torch.equal(first, model.embed(RAGGED)) and not first.requires_grad
    assert before == [module.training for module in model.modules()]


def test_fewer_layers_are_computed_for_an_inner_layer(model):
    calls = []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in model.bert.encoder.layer]
    model.embed("ACGT", layer=1)
    for handle in handles:
        handle.remove()
    assert len(calls) == 1


def test_the_published_folder_embeds_without_the_checkout(folder, model, tmp_path):
    program = (
        "import sys; from transformers import AutoModel; from safetensors.torch import save_file;"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True);"
        "assert type(model).__module__.startswith('transformers_modules');"
        "save_file({'rows': model.embed(['ACGTNacgt', 'TTT'])}, 'rows.safetensors')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=tmp_path, env=environment, check=True)
    assert torch.equal(load_file(tmp_path / "rows.safetensors")["rows"], model.embed(["ACGTNacgt", "TTT"]))


def test_nothing_gives_nothing(model):
    assert model.embed([]).shape == (0, SIZES["hidden_size"]) and model.embed([], resolution="token") == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling": "average"}, "pooling='average' is unknown; choose one of mean"),
        ({"resolution": "base"}, "resolution='base' is unknown"),
        ({"reverse_complement": True}, "reverse_complement=True is unknown"),
        ({"resolution": "token", "pooling": "cls"}, "leave it out"),
        ({"resolution": "token", "reverse_complement": "average"}, "use resolution='nucleotide'"),
        ({"layer": 4}, r"layer=4 does not exist; the model has 3, so -4 \.\. 3"),
        ({"window": 10, "overlap": 8}, "overlap=8 must be"),
        ({"window": 3, "pooling": "cls"}, "no meaning with windows"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.embed("ACGTACGTACGTTTACGGGATC", **options)


def test_a_bad_sequence_is_named(model):
    with pytest.raises(ValueError, match="sequence 2: character '-' at position 3"):
        model.embed(["ACGT", "AC", "AC-"])


def test_a_model_from_nowhere_asks_for_a_tokenizer(tokenizer):
    model = StrandBertModel(StrandBertConfig(**SIZES))
    with pytest.raises(ValueError, match="tokenizer=..."):
        model.embed("ACGT")
    assert model.embed("ACGT", tokenizer=tokenizer).shape == (32,)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_sequence_without_a_token_is_named(model, tmp_path, pooling):
    save_overlapping_kmer_tokenizer(6, tmp_path)
    kmers = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match=f"sequence 1 has no token to take the {pooling} of"):
        model.embed(["ACGTACGTAA", "ACGT"], tokenizer=kmers, pooling=pooling)
    assert model.embed(["ACGTACGTAA", "ACGT"], tokenizer=kmers, pooling="cls").isfinite().all()


def test_a_foreign_tokenizer_is_refused(folder, tokenizer):
    model = StrandBertModel(StrandBertConfig(**SIZES, pad_token_id=0, unk_token_id=3))
    with pytest.raises(ValueError, match="unk_token_id is 0 in the tokenizer and 3 in the model"):
        model.embed("ACGT", tokenizer=tokenizer)


def test_too_little_memory_states_the_length_that_fits(model, monkeypatch):
    each = memory_module.bytes_per_token(model.config, torch.float32)
    monkeypatch.setattr(memory_module, "free_memory", lambda device: 1000 * each)
    (long, short) = random_sequences(4, [20_000, 1500])
    with pytest.raises(
        MemoryError, match=r"a sequence of 4,\d\d\d tokens does not fit .*: 1,000 tokens, about 4,\d\d\d bp"
    ):
        model.embed([short, long])
    assert model.embed([short, long], window=500, batch_tokens=1000).isfinite().all()


def test_a_failed_allocation_states_the_length_that_fits(model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(type(model.bert), "forward", fail)
    with pytest.raises(MemoryError, match="tokens, about .* bp, would fit; read it in windows"):
        model.embed("ACGT")


def test_other_failures_pass_unchanged(model):
    with pytest.raises(ValueError, match="token id 5000 lies outside"):
        embed_token_ids(model, [torch.tensor([1, 5000, 2])])
