"""Models from a folder, a Hub name or a LoRA adapter, and the fast encoding of sequences to token ids."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from modeling import StrandBertForMaskedLM, StrandBertModel
from tokenization.encoder import Encoder
from training.classification_data import REGRESSION, SINGLE_LABEL, Labels
from training.classification_model import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Classifier,
    ModelError,
    base_of_adapter,
    load_adapter,
    load_config,
    load_finetuned,
    load_tokenizer,
    without_warnings,
)
from training.classification_model import load_classifier as load_model


def load_encoder(source: str, dtype: torch.dtype) -> torch.nn.Module:
    """
    What has `.embed`: the encoder of a StrandBERT folder or Hub name, or the model of a LoRA adapter.

    Raises:
        ModelError: no model there, or not a StrandBERT.
    """
    if (Path(source) / ADAPTER_CONFIG).is_file():
        model = load_classifier(source, dtype).get_base_model()  # its layers hold the adapter
        _check_strandbert(source, model.config)
        return model
    _check_strandbert(source, _config(source))
    with _loading(source):
        return StrandBertModel.from_pretrained(source, dtype=dtype).eval()


def load_masked_lm(source: str, dtype: torch.dtype = torch.float32) -> StrandBertForMaskedLM:
    """
    A StrandBERT with its language-model head.

    Raises:
        ModelError: no model there, not a StrandBERT, or one without that head (a classifier, an adapter).
    """
    if (Path(source) / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{source} is an adapter without language-model head; give the model that it was made from")
    _check_strandbert(source, _config(source))
    with _loading(source):
        model, info = StrandBertForMaskedLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    lost = sorted(name for name in info["missing_keys"] if name.startswith("cls."))
    if lost:
        raise ModelError(
            f"{source} has no language-model head ({lost[0]} is missing), as fine-tuned classifiers; give the "
            "pre-trained model that it was made from"
        )
    return model.eval()


def _check_strandbert(source: str, config):
    if config.model_type != "strandbert":
        raise ModelError(
            f"{source} is a {config.model_type!r} model, not a StrandBERT; a released DNABERT-2 becomes one "
            "by python -m hub_configs.convert"
        )


@contextlib.contextmanager
def _loading(source: str) -> Iterator[None]:
    """Weights that are absent, damaged or of another model become a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source}: no weights that can be loaded ({reason})") from None


def load_classifier(source: str, dtype: torch.dtype, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model of `load_predictor`."""
    return load_predictor(source, dtype, trust_remote_code).model


def load_predictor(source: str, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> Classifier:
    """
    A fine-tuned sequence classifier of any architecture with its tokenizer: a saved folder, a Hub name, or a LoRA
    adapter, which may lie alone (its labels then have no names).

    Raises:
        ModelError: no model there, no classifier, or an adapter without its head.
    """
    folder = Path(source)
    adapted = (folder / ADAPTER_CONFIG).is_file()
    if adapted and not (folder / "config.json").is_file():
        with _loading(source):
            classifier = _load_bare_adapter(folder, trust_remote_code)
    else:
        architectures = _config(source, trust_remote_code).architectures or ["a model without a name"]
        if not adapted and not any("SequenceClassification" in name for name in architectures):
            raise ModelError(
                f"{source} is no classifier but {architectures[0]}; fine-tune it with run_classification.py"
            )
        with _loading(source):
            classifier = load_finetuned(source, trust_remote_code)
    classifier.model.to(dtype).eval()
    return classifier


def _load_bare_adapter(folder: Path, trust_remote_code: bool) -> Classifier:
    """An adapter as peft saves it: no configuration, no tokenizer; both are those of the model it was made from."""
    base = base_of_adapter(folder)
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        heads = [file.get_slice(name).get_shape()[0] for name in sorted(file.keys()) if _is_last_head(name)]
    if not heads:
        raise ModelError(
            f"{folder} holds no classifier, so its predictions would be random; train with "
            'modules_to_save=["classifier", "pooler"]'
        )
    names = tuple(f"LABEL_{index}" for index in range(heads[-1]))
    labels = Labels(REGRESSION if len(names) == 1 else SINGLE_LABEL, names)
    config = load_config(base, labels, trust_remote_code)
    tokenizer = load_tokenizer(base, config, trust_remote_code)
    with without_warnings():
        classifier = load_model(config, tokenizer, base, trust_remote_code=trust_remote_code)
    classifier.model = load_adapter(classifier.model, folder)
    return classifier


def _is_last_head(name: str) -> bool:
    """Whether a weight of an adapter belongs to a classifier; the last such is (labels, hidden)."""
    parts = name.split(".")
    return parts[-1] == "weight" and ("classifier" in parts or "score" in parts) and "lora" not in name


def _config(source: str, trust_remote_code: bool = False):
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{source} is no model folder: it has no config.json")
    if not folder.exists() and (folder.is_absolute() or source.startswith(".") or len(folder.parts) > 2):
        raise ModelError(f"{source}: no such folder")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no model that can be loaded ({str(error).splitlines()[0]})") from None


def fingerprint(model: torch.nn.Module, tokenizer) -> str:
    """
    Hexadecimal digest of weights, configuration (of an adapter, too) and tokenizer: two models of one fingerprint
    compute the same.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    content = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    content.pop("transformers_version", None)
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    # transformers leaves the truncation and padding of its last call in the tokenizer.
    parts = [content, adapters, words | {"truncation": None, "padding": None}]
    text = json.dumps(parts, sort_keys=True, default=lambda x: sorted(x) if isinstance(x, set) else str(x))
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class SequenceEncoder:
    """
    Sequences (bytes, letters ACGTN) to token ids with special tokens; fast where the tokenizer allows it.

    Args:
        source: model folder, or Hub name.
        config: of the model; the vocabulary and the ids of the special tokens must agree.
    """

    def __init__(self, source: str, config):
        self.tokenizer = _tokenizer(source)
        self._encoder = _fast_encoder(self.tokenizer.backend_tokenizer.to_str())
        if len(self.tokenizer) > config.vocab_size:
            raise ModelError(
                f"{source}: the tokenizer has {len(self.tokenizer):,} tokens, more than vocab_size "
                f"{config.vocab_size:,} of the model; they do not belong together"
            )
        ends = self.tokenizer("A")["input_ids"]
        if [ends[0], ends[-1]] != [config.cls_token_id, config.sep_token_id] or len(ends) != 3:
            raise ModelError(f"{source}: the tokenizer does not write [CLS] A [SEP]; it does not belong to the model")

    def __call__(self, sequences: list[bytes]) -> list[Tensor]:
        ids, offsets = self._encoder.encode_batch(sequences)
        ids, ends = ids.astype(np.int64), (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        cls, sep = (np.array([end]) for end in ends)
        return [
            torch.from_numpy(np.concatenate([cls, ids[start:end], sep]))
            for start, end in zip(offsets[:-1], offsets[1:], strict=True)
        ]


@functools.lru_cache(maxsize=2)
def _fast_encoder(content: str) -> Encoder:
    """Encoder of a tokenizer.json; making its tables takes a second."""
    return Encoder(Tokenizer.from_str(content))


def _tokenizer(source: str) -> PreTrainedTokenizerFast:
    folder = Path(source)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "tokenizer.json").is_file():
        source = base_of_adapter(folder)
    try:
        return PreTrainedTokenizerFast.from_pretrained(source)
    except Exception as error:  # the library has no kind of its own for a damaged file
        reason, *_ = str(error).split("\n")
        raise ModelError(f"{source}: no tokenizer that can be loaded ({reason})") from None
