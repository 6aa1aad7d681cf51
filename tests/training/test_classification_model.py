"""Any encoder as a classifier: StrandBERT, DNABERT, Nucleotide Transformer, a folder with code; LoRA; refusals."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    ModernBertConfig,
    ModernBertModel,
)

from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertForSequenceClassification
from tests.training import hyena_like
from training.classification_batches import ClassificationCollator
from training.classification_data import REGRESSION, SINGLE_LABEL, Labels
from training.classification_model import (
    ModelError,
    add_lora,
    kmer_length,
    layer_depths,
    load_adapter,
    load_classifier,
    load_config,
    load_finetuned,
    load_tokenizer,
    scale_outputs,
)

LABELS = Labels(SINGLE_LABEL, ("off", "on", "both"))
SEQUENCES = [b"ACGTTGCATTACGA", b"TATAAAGGCNACG", b"ACGTA"]


@pytest.fixture(scope="session")
def strandbert(tmp_path_factory, config_file, tokenizer_folder):
    """A folder with a pre-trained StrandBERT."""
    folder = tmp_path_factory.mktemp("strandbert")
    torch.manual_seed(0)
    StrandBertForMaskedLM(StrandBertConfig.from_pretrained(config_file)).save_pretrained(folder)
    for path in tokenizer_folder.iterdir():
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def dnabert(tmp_path_factory):
    """DNABERT as on the Hub: BERT with a vocabulary of overlapping 3-mers, its config naming code of its own."""
    folder = tmp_path_factory.mktemp("dnabert")
    kmers = ["".join(letters) for letters in itertools.product("ATCG", repeat=3)]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *kmers]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "model_max_length": 32, "tokenizer_class": "BertTokenizer"})
    )
    config = BertConfig(
        vocab_size=69, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "dnabert_layer.DNABertModel"}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def nucleotide_transformer(tmp_path_factory):
    """The ESM architecture with a vocabulary of 6-mers and single bases."""
    folder = tmp_path_factory.mktemp("nucleotide-transformer")
    kmers = ["".join(letters) for letters in itertools.product("ATCG", repeat=6)]
    words = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>", *kmers, *"ATCGN"]
    (folder / "vocab.txt").write_text("\n".join(words))
    EsmTokenizer(str(folder / "vocab.txt"), eos_token=None).save_pretrained(folder)
    config = EsmConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1, mask_token_id=2, token_dropout=False,
    )  # fmt: skip
    torch.manual_seed(0)
    EsmForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hyena(tmp_path_factory):
    """A model with code of its own."""
    folder = tmp_path_factory.mktemp("hyena")
    shutil.copy(Path(hyena_like.__file__), folder / "hyena_like.py")
    words = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", *"ACGTN"]
    (folder / "characters.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    tokenizer = {"tokenizer_class": "CharacterTokenizer", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    tokenizer |= {"auto_map": {"AutoTokenizer": ["hyena_like.CharacterTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    hyena_like.HyenaLikeForSequenceClassification(hyena_like.HyenaLikeConfig(num_labels=3)).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {
        "AutoConfig": "hyena_like.HyenaLikeConfig",
        "AutoModelForSequenceClassification": "hyena_like.HyenaLikeForSequenceClassification",
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def load(folder, labels=LABELS, trust=False, **options):
    config = load_config(str(folder), labels, trust)
    tokenizer = load_tokenizer(str(folder), config, trust)
    return load_classifier(config, tokenizer, str(folder), trust_remote_code=trust, **options)


def logits(classifier, sequences=SEQUENCES) -> torch.Tensor:
    """Of all sequences in one batch."""
    collate = ClassificationCollator(classifier.tokenizer, classifier.packed, classifier.reads_mask)
    samples = [{"input_ids": classifier.sequences.encode([sequence])[0], "label": 0} for sequence in sequences]
    for sample in samples:
        sample["label"] = np.int64(0)
    batch = collate(samples)
    batch.pop("labels")
    with torch.no_grad():
        return classifier.model.eval()(**batch).logits


def tokens(classifier, sequence: bytes) -> list[str]:
    return classifier.tokenizer.convert_ids_to_tokens(classifier.sequences.encode([sequence])[0].tolist())


# -- architectures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["strandbert", "dnabert", "nucleotide_transformer"])
def test_every_model_classifies_and_a_batch_equals_single_sequences(request, name):
    torch.manual_seed(0)
    classifier = load(request.getfixturevalue(name))
    together = logits(classifier)
    assert together.shape == (3, 3)
    alone = torch.cat([logits(classifier, [sequence]) for sequence in SEQUENCES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert classifier.model.config.id2label == {0: "off", 1: "on", 2: "both"}


def test_a_model_with_code_of_its_own_needs_trust(hyena):
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(hyena)
    classifier = load(hyena, trust=True)
    assert tokens(classifier, b"ACGN") == ["A", "C", "G", "N", "[SEP]"]
    assert not classifier.reads_mask and logits(classifier).shape == (3, 3)


def test_a_bert_with_a_classifier_of_its_own_runs_it_when_trusted(dnabert, tmp_path):
    folder = shutil.copytree(dnabert, tmp_path / "own")
    (folder / "own_bert.py").write_text(
        "from transformers import BertForSequenceClassification\n\n\n"
        "class OwnBertForSequenceClassification(BertForSequenceClassification):\n    pass\n"
    )
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoModelForSequenceClassification": "own_bert.OwnBertForSequenceClassification"}
    (folder / "config.json").write_text(json.dumps(content))
    assert type(load(folder).model) is BertForSequenceClassification
    trusted = load(folder, trust=True)
    assert type(trusted.model).__name__ == "OwnBertForSequenceClassification"
    assert logits(trusted).shape == (len(SEQUENCES), len(LABELS.names))


def test_dnabert_reads_overlapping_kmers(dnabert):
    classifier = load(dnabert)
    assert tokens(classifier, b"ACGTN") == ["[CLS]", "ACG", "CGT", "[UNK]", "[SEP]"]


def test_a_saved_dnabert_names_no_code_that_it_does_not_hold(dnabert, tmp_path):
    load(dnabert).model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_nucleotide_transformer_reads_six_bases_at_a_time(nucleotide_transformer):
    classifier = load(nucleotide_transformer)
    assert tokens(classifier, b"ACGTACGTANA") == ["<cls>", "ACGTAC", "G", "T", "A", "N", "A"]
    assert kmer_length(classifier.tokenizer) is None


def test_strandbert_reads_pairs_as_its_tokenizer_writes_them(strandbert):
    classifier = load(strandbert)
    ids, types = classifier.sequences.encode([b"ACGTTGCA", b"TTNAC"])
    wanted = classifier.tokenizer("ACGTTGCA", "TTNAC")["input_ids"]
    second = len(classifier.tokenizer("ACGTTGCA")["input_ids"])
    assert ids.tolist() == wanted
    assert types.tolist() == [0] * second + [1] * (len(wanted) - second)


def test_random_cuts_change_the_tokens_and_never_the_letters(strandbert):
    classifier = load(strandbert)
    sequence = b"AACGTTAACGTTACACAACGT" * 3
    plain, _ = classifier.sequences.encode([sequence])
    cut, _ = classifier.sequences.encode([sequence], [(3, 9, 30)])
    assert len(cut) > len(plain)
    assert "".join(tokens(classifier, sequence)[1:-1]) == sequence.decode()
    spelled = "".join(classifier.tokenizer.convert_ids_to_tokens(cut.tolist())[1:-1])
    assert spelled == sequence.decode()


@pytest.mark.parametrize(("name", "limit"), [("dnabert", 32), ("nucleotide_transformer", 32), ("strandbert", 10)])
def test_what_is_too_long_is_named_or_cut(request, name, limit):
    folder = request.getfixturevalue(name)
    sequence = b"ACGT" * 60
    options = {"max_length": limit} if name == "strandbert" else {}
    with pytest.raises(ValueError, match=rf"row 7: .* tokens, more than the {limit} that fit; add --truncate"):
        load(folder, **options).sequences.encode([sequence], where="row 7")
    classifier = load(folder, truncate=True, **options)
    ids, _ = classifier.sequences.encode([sequence])
    whole = classifier.tokenizer(classifier.sequences.text(sequence.decode()))["input_ids"]
    assert len(ids) == limit and ids[1:-1].tolist() == whole[1 : limit - 1]
    assert torch.isfinite(logits(classifier, [sequence])).all()


def test_a_pair_is_cut_at_its_longer_sequence(strandbert):
    classifier = load(strandbert, max_length=12, truncate=True)
    for pair in ([b"GA" * 20, b"GA"], [b"GA", b"GA" * 20], [b"GA" * 20, b"GA" * 30]):
        ids, types = classifier.sequences.encode(pair)
        assert len(ids) == 12 and (ids == classifier.tokenizer.sep_token_id).sum() == 2
        assert min((types == 0).sum() - 2, (types == 1).sum() - 1) >= 2


# -- LoRA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["strandbert", "dnabert", "nucleotide_transformer"])
def test_lora_trains_adapters_and_the_head_only(request, name):
    classifier = load(request.getfixturevalue(name))
    add_lora(classifier, rank=2, alpha=4, dropout=0.0)
    trained = {key for key, parameter in classifier.model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in key for key in trained) and any("classifier" in key for key in trained)
    assert all("lora_" in key or "modules_to_save" in key for key in trained)
    assert any("pooler" in key for key in trained) == (name != "nucleotide_transformer")
    assert logits(classifier).shape == (3, 3)


def test_lora_on_strandbert_adapts_every_matrix_of_every_layer(strandbert):
    classifier = load(strandbert)
    add_lora(classifier, rank=2, alpha=4, dropout=0.0)
    adapted = {key.split(".lora_A")[0] for key, _ in classifier.model.named_parameters() if ".lora_A" in key}
    assert len(adapted) == 2 * 4  # layers x (Wqkv, dense, gated_layers, wo)
    assert not any("pooler" in key for key in adapted)


def test_lora_targets_that_are_not_there_are_refused_with_those_that_are(strandbert):
    with pytest.raises(ModelError, match="query value: the linear layers of this model are Wqkv, classifier, dense"):
        add_lora(load(strandbert), 2, 4, 0.0, ["query", "value"])


def trained_adapter(folder, base):
    """A saved adapter whose weights are not those of a fresh one."""
    classifier = load(base)
    add_lora(classifier, rank=2, alpha=4, dropout=0.0)
    torch.manual_seed(1)
    for parameter in classifier.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    classifier.model.save_pretrained(folder)
    classifier.model.config.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    return classifier


def test_an_adapter_loads_with_its_head_and_labels(strandbert, tmp_path):
    classifier = trained_adapter(tmp_path, strandbert)
    again = load_finetuned(tmp_path)
    assert torch.equal(logits(again), logits(classifier))
    assert again.model.config.id2label[2] == "both"


def test_nothing_is_said_of_a_head_that_the_adapter_brings(strandbert, tmp_path, monkeypatch):
    trained_adapter(tmp_path, strandbert)
    level, before = transformers.utils.logging.get_verbosity, transformers.utils.logging.get_verbosity()
    levels, from_pretrained = [], StrandBertForSequenceClassification.from_pretrained

    def noted(*arguments, **options):
        levels.append(level())
        return from_pretrained(*arguments, **options)

    monkeypatch.setattr(StrandBertForSequenceClassification, "from_pretrained", noted)
    load_finetuned(tmp_path)
    assert levels == [transformers.logging.ERROR] and level() == before


@pytest.mark.parametrize("part", ["classifier", "pooler", "lora_B"])
def test_an_adapter_without_its_head_does_not_load(strandbert, tmp_path, part):
    trained_adapter(tmp_path, strandbert)
    path = tmp_path / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({key: value for key, value in weights.items() if part not in key}, path)
    with pytest.raises(ModelError, match=f"lacks weights of the adapter or its head.*{part}"):
        load_finetuned(tmp_path)


def test_lora_trains_and_saves_every_layer_that_starts_random_whatever_its_name(strandbert, tmp_path):
    ids = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    base = ModernBertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, **ids
    )
    ModernBertModel(base).save_pretrained(tmp_path / "base")  # without the dense layer and the norm of its `head`
    config = load_config(str(tmp_path / "base"), LABELS)
    tokenizer = load_tokenizer(str(strandbert), load_config(str(strandbert), LABELS))
    classifier, again = (load_classifier(config, tokenizer, str(tmp_path / "base")) for _ in range(2))
    add_lora(classifier, rank=2, alpha=4, dropout=0.0, targets=["Wqkv"])
    trained = {key for key, parameter in classifier.model.named_parameters() if parameter.requires_grad}
    for layer in ("head.dense", "head.norm", "classifier"):
        assert any(f"{layer}.modules_to_save" in key for key in trained)
    classifier.model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(again.model, tmp_path / "adapter").state_dict()
    saved = classifier.model.state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in trained)


# -- parameters ----------------------------------------------------------------------------------------------------


def test_depth_counts_layers_from_the_head(strandbert):
    depths = layer_depths(load(strandbert).model)
    assert depths["classifier.weight"] == 0 and depths["bert.pooler.dense.bias"] == 0
    assert depths["bert.encoder.layer.1.mlp.wo.weight"] == 1 and depths["bert.encoder.layer.0.mlp.wo.weight"] == 2
    assert depths["bert.embeddings.word_embeddings.weight"] == 3


def test_outputs_are_scaled_in_the_last_layer(strandbert):
    classifier = load(strandbert, Labels(REGRESSION, ("a", "b")))
    before = logits(classifier)
    scale_outputs(classifier.model, np.array([100.0, -3.0]), np.array([20.0, 0.5]))
    wanted = before * torch.tensor([20.0, 0.5]) + torch.tensor([100.0, -3.0])
    torch.testing.assert_close(logits(classifier), wanted, atol=1e-4, rtol=1e-5)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_models_that_do_not_fit_are_named(strandbert, dnabert, tmp_path, tokenizer_folder):
    with pytest.raises(ModelError, match="no model configuration at"):
        load_config(str(tmp_path / "absent"), LABELS)
    with pytest.raises(ModelError, match="--classifier_head work with StrandBERT models only"):
        load_config(str(dnabert), LABELS, classifier_head="mlp")
    with pytest.raises(ModelError, match="--pooling and --dropout work with"):
        load_config(str(dnabert), LABELS, classifier_pooling="mean", hidden_dropout_prob=0.1)
    config = load_config(str(strandbert), LABELS)
    with pytest.raises(ModelError, match="no tokenizer at .*--tokenizer_name"):
        load_tokenizer(str(tmp_path), config)
    with pytest.raises(ModelError, match="69 tokens, more than vocab_size 17"):
        load_classifier(config, load_tokenizer(str(dnabert), load_config(str(dnabert), LABELS)), None)
    with pytest.raises(ModelError, match="no model configuration at"):
        load_finetuned(tmp_path)


def test_an_original_dnabert2_folder_is_sent_to_the_converter(tmp_path):
    content = {"model_type": "bert", "auto_map": {"AutoModel": "bert_layers.BertModel"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="python -m hub_configs.convert"):
        load_config(str(tmp_path), LABELS)


def without(weight, source, folder):
    """A copy of a model folder whose weights lack one."""
    shutil.copytree(source, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights[weight]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_another_model_without_a_weight_is_refused(dnabert, tmp_path):
    folder = without("bert.encoder.layer.0.output.dense.weight", dnabert, tmp_path / "damaged")
    with pytest.raises(ModelError, match="lacks 1 weights of the encoder.* bert.encoder.layer.0.output.dense.weight"):
        load(folder)


def test_another_model_with_more_weights_in_its_layers_is_refused(dnabert, tmp_path):
    folder = shutil.copytree(dnabert, tmp_path / "more")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.norm.weight"] = torch.ones(16)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="holds 1 weights of the encoder that Bert.* bert.encoder.layer.0.norm.weight"):
        load(folder)


def test_a_pretrained_model_without_a_weight_is_refused(strandbert, tmp_path):
    folder = without("bert.encoder.layer.0.mlp.wo.weight", strandbert, tmp_path / "damaged")
    with pytest.raises(ModelError, match="missing from the checkpoint"):
        load(folder)
