"""Models from a folder, a Hub name or a LoRA adapter, and the fast encoding of sequences to token ids."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from modeling import StrandBertForMaskedLM, StrandBertModel
from tokenization.encoder import Encoder


class ModelError(ValueError):
    """A model that cannot be used; the message names it and says what to do."""


def load_encoder(source: str, dtype: torch.dtype) -> torch.nn.Module:
    """
    What has `.embed`: the encoder of a StrandBERT folder or Hub name, or the model of a LoRA adapter.

    Raises:
        ModelError: no model there, or not a StrandBERT.
    """
    if (Path(source) / "adapter_config.json").is_file():
        return load_classifier(source, dtype).eval()
    _check_strandbert(source)
    return StrandBertModel.from_pretrained(source, dtype=dtype).eval()


def load_masked_lm(source: str, dtype: torch.dtype = torch.float32) -> StrandBertForMaskedLM:
    """
    A StrandBERT with its language-model head.

    Raises:
        ModelError: no model there, not a StrandBERT, or one without that head (a classifier, an adapter).
    """
    _check_strandbert(source)
    model, info = StrandBertForMaskedLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    lost = sorted(name for name in info["missing_keys"] if name.startswith("cls."))
    if lost:
        raise ModelError(
            f"{source} has no language-model head ({lost[0]} is missing), as fine-tuned classifiers; give the "
            "pre-trained model that it was made from"
        )
    return model.eval()


def _check_strandbert(source: str):
    if (model_type := _config(source).model_type) != "strandbert":
        raise ModelError(
            f"{source} is a {model_type!r} model, not a StrandBERT; a released DNABERT-2 becomes one "
            "by python -m hub_configs.convert"
        )


def load_classifier(source: str, dtype: torch.dtype, trust_remote_code: bool = False) -> torch.nn.Module:
    """
    A fine-tuned sequence classifier: a saved folder or Hub name of any architecture, or a LoRA adapter on one.

    Raises:
        ModelError: no model there, no classifier, or an adapter without its head.
    """
    if (Path(source) / "adapter_config.json").is_file():
        return _load_adapter(Path(source), dtype, trust_remote_code)
    config = _config(source, trust_remote_code)
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        raise ModelError(
            f"{source} is no classifier (it is {', '.join(config.architectures or ['unnamed'])}); fine-tune it with "
            "run_classification.py"
        )
    return _from_pretrained(source, config, dtype, trust_remote_code).eval()


def _from_pretrained(source: str, config, dtype: torch.dtype, trust_remote_code: bool) -> torch.nn.Module:
    # For model_type "strandbert" the classes of this checkout are registered: no code of the folder runs.
    return AutoModelForSequenceClassification.from_pretrained(
        source, config=config, dtype=dtype, trust_remote_code=trust_remote_code
    )


def _config(source: str, trust_remote_code: bool = False):
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} is no model folder: it has neither config.json nor adapter_config.json")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no model that can be loaded ({str(error).splitlines()[0]})") from None


def _load_adapter(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> torch.nn.Module:
    from peft import PeftModel

    adapter = json.loads((folder / "adapter_config.json").read_text())
    base = adapter["base_model_name_or_path"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        heads = {name: file.get_slice(name).get_shape() for name in file.keys() if _is_last_head(name)}
    if not heads:
        raise ModelError(
            f"{folder} holds no classifier: its predictions would be random. Train with "
            'modules_to_save=["classifier", "pooler"]'
        )
    config = _config(str(folder) if (folder / "config.json").is_file() else base, trust_remote_code)
    if config.num_labels != (labels := next(iter(heads.values()))[0]):
        config.num_labels = labels
    if not Path(base).exists() and base.startswith(("/", ".")):
        raise ModelError(f"{folder} is an adapter of {base}, which is not there; correct adapter_config.json")
    model = _from_pretrained(base, config, dtype, trust_remote_code)
    return PeftModel.from_pretrained(model, folder).eval()


def _is_last_head(name: str) -> bool:
    """Whether a weight of an adapter is the last linear layer of a classifier, (labels, hidden)."""
    parts = name.split(".")
    return parts[-1] == "weight" and ("classifier" in parts or "score" in parts) and "lora" not in name


def fingerprint(model: torch.nn.Module) -> str:
    """Hexadecimal digest of all weights: two models of one fingerprint compute the same."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class SequenceEncoder:
    """
    Sequences (bytes, letters ACGTN) to token ids with special tokens; fast where the tokenizer allows it.

    Args:
        source: model folder, or Hub name.
        config: of the model; the ids of the special tokens must agree.
    """

    def __init__(self, source: str, config):
        self.tokenizer = _tokenizer(source)
        self._encoder = Encoder(Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str()))
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


def _tokenizer(source: str) -> PreTrainedTokenizerFast:
    folder = Path(source)
    if (folder / "adapter_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        source = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    try:
        return PreTrainedTokenizerFast.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no tokenizer that can be loaded ({str(error).splitlines()[0]})") from None
