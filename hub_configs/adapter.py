"""LoRA adapters that PEFT trained on the released DNABERT-2 or on StrandBERT: merged, for the converter."""

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from modeling import StrandBertConfig, StrandBertForSequenceClassification, StrandBertForTokenClassification

from .checkpoint import ConversionError, read_json, read_tensor_file, read_weights

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEADS = {"SEQ_CLS": StrandBertForSequenceClassification, "TOKEN_CLS": StrandBertForTokenClassification}
PREFIX = "base_model.model."
OUTPUT_LAYERS = ("classifier.weight", "classifier.4.weight")  # of the heads "pooler" and "mlp"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in place of a whole model."""
    return (folder / "adapter_config.json").is_file()


def base_name(folder: Path) -> str:
    """Folder or Hub name of the model that an adapter was trained on. Raises ConversionError when it does not say."""
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise ConversionError(f"{folder / 'adapter_config.json'} names no base model; name it with --base")
    return name


def merged_weights(folder: Path, base: Path, config: dict) -> dict[str, Tensor]:
    """
    The weights of the base model with the adapter added, W + scaling * B A, and the modules that it saved whole.

    config: of our model, without labels; the adapter's classifier gives their number.

    Raises:
        ConversionError: not a LoRA classifier, weights that fit nowhere, or a pooler that was never saved.
    """
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise ConversionError(f"merging the adapter {folder} needs peft: pip install peft ({error})") from None
    settings = read_json(folder / "adapter_config.json")
    model_class = HEADS.get(settings.get("task_type"))
    if settings.get("peft_type") != "LORA" or model_class is None:
        raise ConversionError(
            f"{folder / 'adapter_config.json'}: peft_type is {settings.get('peft_type')!r} and task_type "
            f"{settings.get('task_type')!r}; LORA of {' or '.join(HEADS)} can be merged"
        )
    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not files:
        raise ConversionError(f"{folder} holds none of {', '.join(ADAPTER_FILES)}")
    adapter = read_tensor_file(files[0])
    labels = number_of_labels(adapter, PREFIX)
    if labels is None:
        raise ConversionError(f"{files[0]} holds no classifier.weight: the classifier was not saved with the adapter")
    base_weights = {name: t for name, t in read_weights(base).items() if name.startswith("bert.")}
    if model_class is StrandBertForSequenceClassification and config.get("classifier_head", "pooler") == "pooler":
        check_pooler(files[0], adapter, base_weights)
    model = model_class(StrandBertConfig(**config, num_labels=labels))
    load_base(model, base_weights, base)
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    settings = {key: value for key, value in settings.items() if key in known - {"base_model_name_or_path"}}
    try:
        peft_model = get_peft_model(model, LoraConfig(**settings))
        result = set_peft_model_state_dict(peft_model, adapter)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # other modules, another shape
        raise ConversionError(f"the adapter {folder} does not fit the base model {base}: {error}") from None
    lost = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if result.unexpected_keys or lost:
        raise ConversionError(
            f"{files[0]} does not fit {base}: {len(result.unexpected_keys)} weights fit nowhere "
            f"({', '.join(result.unexpected_keys[:3])}), {len(lost)} are missing ({', '.join(lost[:3])})"
        )
    return dict(peft_model.merge_and_unload().state_dict())


def number_of_labels(weights: dict[str, Tensor], prefix: str = "") -> int | None:
    """Rows of the classifier's last layer; None when the weights hold no classifier."""
    return next((len(weights[prefix + name]) for name in OUTPUT_LAYERS if prefix + name in weights), None)


def check_pooler(path: Path, adapter: dict, base: dict) -> None:
    """
    Raise ConversionError when the classifier reads a pooler that nobody saved.

    The released DNABERT-2 holds no pooler, so that of a fine-tune starts random. Unless modules_to_save names it, PEFT
    neither trains nor saves it, and what the fine-tune computes died with its process.
    """
    if PREFIX + "bert.pooler.dense.weight" not in adapter and "bert.pooler.dense.weight" not in base:
        raise ConversionError(
            f"{path} cannot be converted: its classifier reads a pooler that is neither in the adapter nor in the base "
            "model. It was random when the adapter was trained and has not been saved, so the predictions cannot be "
            "repeated, with any code. Train again with modules_to_save=['classifier', 'pooler']"
        )


def load_base(model: nn.Module, weights: dict[str, Tensor], base: Path) -> None:
    """Put the base model's encoder into the model. Raises ConversionError naming weights that do not fit."""
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # another shape
        raise ConversionError(f"the base model {base} does not fit its config.json: {error}") from None
    absent = [name for name in result.missing_keys if name.startswith(("bert.embeddings.", "bert.encoder."))]
    if absent or result.unexpected_keys:
        raise ConversionError(f"the base model {base} lacks {absent[:3]} and has {result.unexpected_keys[:3]} too many")
