"""
The model to fine-tune: StrandBERT, or any encoder of transformers, with a new classifier, in full or with LoRA.

What differs between architectures is small and stands here: how sequences become text, whether batches may be packed,
how many tokens fit, which matrices LoRA adapts.
"""

import contextlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from modeling import StrandBertConfig, StrandBertForSequenceClassification
from training.classification_batches import SequenceTokenizer, StrandBertTokenizer
from training.classification_data import REGRESSION, SINGLE_LABEL, Labels
from training.storage import SETTINGS_FILE, weights_digest

STRANDBERT = StrandBertConfig.model_type
LORA_TARGETS = ("Wqkv", "dense", "gated_layers", "wo")
QUERIES_AND_VALUES = ("query", "value", "q_proj", "v_proj", "in_proj")
HEADS = ("classifier", "score", "pooler")
LAYER_NUMBER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")
FLAGS = {"classifier_pooling": "pooling", "hidden_dropout_prob": "dropout"}  # where they are not named as the setting
CLASSIFIER_CLASS = "AutoModelForSequenceClassification"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class ModelError(ValueError):
    """A model that cannot be fine-tuned or loaded as asked; the message says what to do."""


@dataclass
class Classifier:
    """
    A model with what it needs to read sequences.

    Attributes:
        packed: whether batches are laid end to end instead of padded.
        reads_mask: whether the model takes an attention_mask.
        random: weights that were not in the files: of the head, or all.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sequences: SequenceTokenizer
    packed: bool
    reads_mask: bool
    random: tuple[str, ...] = ()


def load_config(source: str, labels: Labels, trust_remote_code: bool = False, **options):
    """
    The configuration of `source` (folder, config.json or Hub name) for a classifier with these labels.

    Args:
        options: settings of StrandBertConfig that are to change; None leaves one as it is.

    Raises:
        ModelError: nothing there, a DNABERT-2 that was not converted, or options for another kind of model.
    """
    options = {name: value for name, value in options.items() if value is not None}
    names = dict(enumerate(labels.names))
    head = {
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "problem_type": labels.problem_type,
    }
    try:
        content, _ = PretrainedConfig.get_config_dict(source)
        if not content:
            raise ModelError(f"no model configuration at {source}")
        if content.get("model_type") == STRANDBERT:
            return StrandBertConfig.from_pretrained(source, **head, **options)
        if "bert_layers" in json.dumps(content.get("auto_map", {})):
            raise ModelError(
                f"{source} is a DNABERT-2 with its original code, which today's transformers cannot run; convert it "
                f"first: python -m hub_configs.convert {source} FOLDER"
            )
        if options:
            flags = " and ".join(f"--{FLAGS.get(name, name)}" for name in options)
            raise ModelError(f"{flags} work with StrandBERT models only; {source} is a {content.get('model_type')!r}")
        own_code = trust_remote_code and CLASSIFIER_CLASS in (content.get("auto_map") or {})
        if content.get("model_type") == "bert" and not own_code:  # DNABERT's own code is BERT's, for old transformers
            config = BertConfig.from_pretrained(source, **head)
            vars(config).pop("auto_map", None)
            return config
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **head)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"no model configuration at {source}: {error}") from None


def load_tokenizer(source: str, config, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model.

    Raises:
        ModelError: there is none, or it has no token for padding.
    """
    try:
        if config.model_type == STRANDBERT:
            cached_file(source, "tokenizer.json")
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library has no kind of its own for a damaged file
        raise ModelError(f"no tokenizer at {source} ({error}); name one with --tokenizer_name") from None
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {source} has no padding token; batches need one")
    return tokenizer


def load_classifier(
    config,
    tokenizer: PreTrainedTokenizerBase,
    weights: str | None,
    max_length: int | None = None,
    truncate: bool = False,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> Classifier:
    """
    The model in float32, its head random unless `weights` holds one of this shape.

    Args:
        weights: folder or Hub name; None for random weights.
        max_length, truncate: as in SequenceTokenizer; positions that the model has set a further limit.

    Raises:
        ModelError: an architecture without classifier, or weights or tokens that do not fit.
    """
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer):,} tokens, more than vocab_size {config.vocab_size:,} of the model; "
            "they do not belong together"
        )
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    missing, unused = (), ()
    if config.model_type == STRANDBERT:
        model_class = StrandBertForSequenceClassification
    elif config.model_type == "bert" and not getattr(config, "auto_map", None):
        model_class = BertForSequenceClassification
    else:
        model_class = AutoModelForSequenceClassification
        options |= {"trust_remote_code": trust_remote_code}
    try:
        if weights:
            options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
            model, info = model_class.from_pretrained(weights, ignore_mismatched_sizes=True, **options)
            # transformers 4 lists names, transformers 5 tuples of name and both shapes
            reshaped = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
            missing = {*info["missing_keys"], *reshaped}
            layers = (key for key in info["unexpected_keys"] if LAYER_NUMBER.search(key))
            unused = sorted(key for key in layers if key.endswith(".weight"))  # not the buffers of other versions
        elif model_class is AutoModelForSequenceClassification:
            model = model_class.from_config(config, **options)
        else:
            model = model_class._from_config(config, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"cannot load {weights or config.model_type} as a classifier: {error}") from None
    depths = layer_depths(model)
    random = sorted(key for key in missing if depths.get(key, 0))
    for keys, what in (
        (random, f"lacks {len(random)} weights of the encoder, which would be random"),
        (unused, f"holds {len(unused)} weights of the encoder that {model_class.__name__} would leave out"),
    ):
        if keys:
            raise ModelError(
                f"{weights} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}. Check that its "
                "config.json belongs to the weights; a model with code of its own needs --trust_remote_code"
            )
    strandbert = config.model_type == STRANDBERT
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    limits = [limit for limit in (max_length, None if strandbert else position_limit(config)) if limit]
    limit = min(limits) if limits else None
    if strandbert:
        sequences = StrandBertTokenizer(tokenizer, limit, truncate)
    else:
        k = kmer_length(tokenizer) if config.model_type == "bert" else None
        sequences = SequenceTokenizer(tokenizer, str if k is None else partial(kmers, k=k), limit, truncate)
    reads_mask = "attention_mask" in inspect.signature(model.forward).parameters
    new = tuple(sorted(key for key in missing if key in depths)) if weights else tuple(depths)
    return Classifier(model, tokenizer, sequences, packed=strandbert, reads_mask=reads_mask, random=new)


def kmer_length(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """k, when all tokens of bases are k letters long with k at least 3 (DNABERT's vocabularies); None otherwise."""
    lengths = {len(token) for token in tokenizer.get_vocab() if set(token) <= set("ACGT")}
    return lengths.pop() if len(lengths) == 1 and min(lengths) >= 3 else None


def kmers(letters: str, k: int) -> str:
    """Overlapping k-mers with blanks between them, as DNABERT reads a sequence."""
    return " ".join(letters[start : start + k] for start in range(max(len(letters) - k + 1, 1)))


def position_limit(config) -> int | None:
    """Tokens that a model with learned positions can read; None where positions set no limit."""
    rotary = getattr(config, "position_embedding_type", "absolute") in ("rotary", "alibi")
    positions = getattr(config, "max_position_embeddings", None)
    if rotary or positions is None:
        return None
    offset = (
        config.pad_token_id + 1 if config.model_type in ("esm", "roberta") else 0
    )  # those count from the padding id
    return positions - offset


# -- LoRA ----------------------------------------------------------------------------------------------------------


def add_lora(classifier: Classifier, rank: int, alpha: int, dropout: float, targets: Sequence[str] | None = None):
    """
    Freeze the encoder and add low-rank adapters; the head (classifier, pooler, whatever else starts random) is trained
    and saved in full.

    Args:
        targets: names of the linear layers to adapt; by default Wqkv, dense, gated_layers and wo of StrandBERT, and
            queries and values of other models, as the DNABERT-2 paper did for the Nucleotide Transformer.

    Raises:
        ModelError: no layer has these names; lists the names there are.
    """
    from peft import LoraConfig, get_peft_model

    model = classifier.model
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = LORA_TARGETS if "Wqkv" in names else QUERIES_AND_VALUES
    wanted = list(targets or [name for name in known if name in names])
    if not wanted or not set(wanted) <= names:
        raise ModelError(
            f"--lora_target_modules {' '.join(wanted) or '(none known)'}: the linear layers of this model are "
            f"{', '.join(sorted(names))}"
        )
    head = [name for name in HEADS if any(part.split(".")[-1] == name for part, _ in model.named_modules())]
    for name in sorted({key.rpartition(".")[0] for key in classifier.random} - {""}):  # parents before their parts
        if not set(head) & set(name.split(".")) and not any(name.startswith(f"{parent}.") for parent in head):
            head.append(name)
    settings = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=wanted,
        exclude_modules=rf"(.*\.)?({'|'.join(map(re.escape, head))})(\..*)?",
        modules_to_save=head,
    )
    classifier.model = get_peft_model(model, settings)
    if Path(model.name_or_path).is_dir():  # so that the adapter loads from any working directory
        settings.base_model_name_or_path = str(Path(model.name_or_path).resolve())


def load_adapter(model: PreTrainedModel, folder: str | Path):
    """
    The model with the adapter and the head that a folder holds.

    Raises:
        ModelError: weights are missing, which would be random.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
        found = set(file.keys())
    try:
        adapted = PeftModel.from_pretrained(model, folder)
        missing = sorted(get_peft_model_state_dict(adapted).keys() - found)
    except KeyError as error:  # peft misses a weight of the head
        missing = [error.args[0]]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(f"{folder} lacks weights of the adapter or its head, which would be random: {shown}")
    return adapted


def base_of_adapter(folder: str | Path) -> str:
    """
    The model that an adapter was made from, as its adapter_config.json names it.

    Raises:
        ModelError: it names a folder that is not there.
    """
    base = json.loads((Path(folder) / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    if not Path(base).exists() and (Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1):
        raise ModelError(
            f"{folder} is an adapter of the model in {base}, which is not there; put that folder back, or correct "
            f"base_model_name_or_path in {Path(folder) / ADAPTER_CONFIG}. --merge_lora saves a whole model"
        )
    return base


def check_base_weights(folder: str | Path, base: str):
    """Raise ModelError when the weights of an adapter's base model are not those that it was trained on."""
    path = Path(folder) / SETTINGS_FILE
    before = json.loads(path.read_text()).get("weights", {}).get("model") if path.is_file() else None
    if before and before != weights_digest(base):
        raise ModelError(
            f"{folder} is an adapter of the model in {base}, whose weights have changed since; put those back, or "
            "train the adapter again. --merge_lora saves a whole model"
        )


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Context in which transformers reports errors only."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def load_finetuned(folder: str | Path, trust_remote_code: bool = False) -> Classifier:
    """
    What run_classification.py saved: a whole model, or an adapter on the model that its adapter_config.json names.

    Raises:
        ModelError: nothing there, or weights that are missing.
    """
    folder = Path(folder)
    source, adapted = str(folder), (folder / ADAPTER_CONFIG).is_file()
    if adapted:
        source = base_of_adapter(folder)
        check_base_weights(folder, source)
    try:
        content, _ = PretrainedConfig.get_config_dict(str(folder))
        id2label = content.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # transformers does not write its default
        names = tuple(name for _, name in sorted((int(index), name) for index, name in id2label.items()))
    except OSError as error:
        raise ModelError(f"{folder} holds no fine-tuned model: {error}") from None
    labels = Labels(content.get("problem_type") or (REGRESSION if len(names) == 1 else SINGLE_LABEL), names)
    config = load_config(str(folder), labels, trust_remote_code)
    tokenizer = load_tokenizer(str(folder), config, trust_remote_code)
    with without_warnings() if adapted else contextlib.nullcontext():  # of the head, which the adapter brings
        classifier = load_classifier(
            config, tokenizer, source, content.get("max_sequence_tokens"), trust_remote_code=trust_remote_code
        )
    if adapted:
        classifier.model = load_adapter(classifier.model, folder)
    elif classifier.random:
        shown = ", ".join(classifier.random[:3]) + (", ..." if len(classifier.random) > 3 else "")
        raise ModelError(f"{folder} lacks weights of its head, so its predictions would be random: {shown}")
    classifier.model.eval()
    return classifier


# -- parameters ----------------------------------------------------------------------------------------------------


def layer_depths(model: nn.Module) -> dict[str, int]:
    """
    Distance of every parameter from the head, by name: 0 for the head, 1 for the last layer, ..., layers + 1 for the
    embeddings.
    """
    found = {name: LAYER_NUMBER.search(name) for name, _ in model.named_parameters()}
    layers = 1 + max((int(match[1]) for match in found.values() if match), default=-1)
    depths = {}
    for name, match in found.items():
        if match:
            depths[name] = layers - int(match[1])
        else:
            depths[name] = layers + 1 if "embed" in name else 0
    return depths


def last_linear(model: nn.Module, outputs: int) -> tuple[str, nn.Linear]:
    """
    The layer that gives the logits, and its name.

    Raises:
        ModelError: no linear layer with this many outputs.
    """
    found = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == outputs and "original_module" not in name:
            found = name, module
    if found is None or found[1].bias is None:
        raise ModelError(
            f"{type(model).__name__} has no last linear layer with a bias, which regression needs; StrandBERT, BERT "
            "and ESM models have one"
        )
    return found


@torch.no_grad()
def scale_outputs(model: nn.Module, mean: np.ndarray, deviation: np.ndarray):
    """Change the last layer so that outputs x become x * deviation + mean; both (outputs,)."""
    _, layer = last_linear(model, len(mean))
    mean, deviation = (torch.from_numpy(values).to(layer.weight) for values in (mean, deviation))
    layer.weight *= deviation[:, None]
    layer.bias.copy_(layer.bias * deviation + mean)
