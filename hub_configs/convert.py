"""
Turn the published DNABERT-2 checkpoint, or any fine-tune of it, into a self-contained folder that loads with
`trust_remote_code=True` on today's transformers.

    python -m hub_configs.convert zhihan1996/DNABERT-2-117M dnabert2      downloads data files, never code
    python -m hub_configs.convert SOURCE OUTPUT                           SOURCE: a folder, or a Hub name

SOURCE is as published or as saved by a fine-tuning script: config.json, tokenizer.json and the weights as
pytorch_model.bin or model.safetensors, in one file or in shards; with the masked-LM head, a classifier, or none. A LoRA
adapter (adapter_config.json) is merged into the model it was trained on, which --base names if it has moved; one of
run_classification.py --use_lora, too.

OUTPUT receives the model's code, config.json, tokenizer, model.safetensors, reference_outputs.safetensors and
conversion.json (what came from where). Weights keep their names and values. Every weight must find its place: one that
is missing, left over or of another shape ends the conversion, and OUTPUT is not made. Before OUTPUT appears the folder
is loaded in a fresh interpreter and compared with outputs computed from the weights by plain arithmetic.
"""

import argparse
import inspect
import json
import logging
import shlex
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling import (
    StrandBertConfig,
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
)
from modeling.configuration_strandbert import AUTO_MAP

from .adapter import base_name, is_adapter, merged_weights, number_of_labels
from .card import CardError, read_models
from .checkpoint import ConversionError, read_json, read_weights, weight_files
from .download import local_folder
from .folder import SOURCE_ONLY, check_output, new_folder, sha256_of, write_model_folder
from .reference import write_reference
from .verify import VerificationError, verify

logger = logging.getLogger(__name__)

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OPTIONS = {  # carried over when the source has them; otherwise the values of the DNABERT-2 release
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "classifier_dropout": None,
    "max_position_embeddings": 512,
}
# The source's pad_token_id is not carried over: it is absent or 0, which is [UNK]; the tokenizer's [PAD] is 3.
SPECIAL_IDS = {"unk_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 3, "mask_token_id": 4}
TIED = "cls.predictions.decoder.weight"
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def convert(
    source: str | Path,
    output: str | Path,
    overwrite: bool = False,
    base: str | Path | None = None,
    revision: str | None = None,
) -> list[str]:
    """
    Convert a checkpoint into a model folder; returns the lines of the verification report.

    source: folder or Hub name. base: the same, of the model that an adapter was trained on. revision: of `source`.

    Raises:
        ConversionError: the checkpoint cannot be converted without guessing; FileExistsError: OUTPUT exists;
        VerificationError: the new folder does not give the outputs of the source's weights. Nothing is left behind.
    """
    output = Path(output).resolve()
    check_output(output, overwrite)
    source = local_folder(source, revision)
    adapter = source if is_adapter(source) else None
    if adapter:
        source = local_folder(base or base_name(adapter))
    elif base:
        raise ConversionError(f"--base is for adapters; {source} holds no adapter_config.json")
    for folder in (source, adapter or source):
        if output == folder or output in folder.parents:
            raise ConversionError(f"the output {output} would replace the source {folder}; choose another folder")
    if not adapter:
        refuse_own_folder(source)
    weights, model_class, config = adapted(adapter, source) if adapter else whole(source)
    weights = checked_weights(weights, config, model_class)
    tokenizer_file = (settings_folder(adapter, source) if adapter else source) / "tokenizer.json"
    tokenizer = checked_tokenizer(tokenizer_file, config)
    logger.info("writing %s weights of a %s", len(weights), model_class.__name__)
    with new_folder(output, overwrite) as folder:
        try:
            # The original's model_max_length, 512, is left out: ALiBi has no limit, and tools would warn or cut there.
            write_model_folder(folder, config, weights, tokenizer)
        except ValueError as error:
            raise ConversionError(f"{tokenizer_file}: {error}") from None
        write_provenance(folder, source, tokenizer_file, adapter, model_class, weights)
        check_written_weights(folder / "model.safetensors", weights)
        logger.info("computing reference outputs from the weights")
        write_reference(folder)
        logger.info("loading the folder in a fresh interpreter and comparing")
        report = verify(folder, trust_code=True)  # it was written a moment ago
    return [line.replace(str(folder), str(output)) for line in report]


def whole(source: Path) -> tuple[dict[str, Tensor], type, dict]:
    """Weights, class and config of a checkpoint that is a whole model."""
    logger.info("reading %s", ", ".join(path.name for path in weight_files(source)))
    weights = read_weights(source)
    model_class = model_class_of(weights)
    return weights, model_class, converted_config(source / "config.json", model_class)


def adapted(adapter: Path, base: Path) -> tuple[dict[str, Tensor], type, dict]:
    """Weights, class and config of a base model with a LoRA adapter merged into it."""
    logger.info("merging %s into %s", adapter.name, base.name)
    path = settings_folder(adapter, base) / "config.json"
    config = own_config(path) if is_own(path.parent) else converted_config(path, StrandBertModel)
    of_labels = ("id2label", "label2id", "num_labels", "problem_type")
    config = {key: value for key, value in config.items() if key not in of_labels}
    weights = merged_weights(adapter, base, config)
    model_class = model_class_of(weights)
    names = {str(index): f"LABEL_{index}" for index in range(number_of_labels(weights))}
    labels = {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
    if path.parent == adapter:
        labels |= labels_of(path, read_json(path))
    return weights, model_class, {**config, "architectures": [model_class.__name__], **labels}


def settings_folder(adapter: Path, base: Path) -> Path:
    """Where config.json and tokenizer.json come from: beside our own adapters, else the base model's."""
    return adapter if is_own(base) and is_own(adapter) and (adapter / "tokenizer.json").is_file() else base


def is_own(folder: Path) -> bool:
    """Whether a folder holds the config.json of a StrandBERT."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == StrandBertConfig.model_type


def own_config(path: Path) -> dict:
    """config.json of a StrandBERT with every setting and without private ones. Raises ConversionError naming one."""
    settings = {key: value for key, value in read_json(path).items() if not SOURCE_ONLY.fullmatch(key)}
    settings = {**default_settings(), **settings, "auto_map": dict(AUTO_MAP)}
    try:
        StrandBertConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{path}: {error}") from None
    return settings


def default_settings() -> dict:
    """Every setting of a config.json that has a default, with it."""
    settings = inspect.signature(StrandBertConfig.__init__).parameters.values()
    return {setting.name: setting.default for setting in settings if setting.default is not inspect.Parameter.empty}


def refuse_own_folder(source: Path) -> None:
    """Raise ConversionError when there is nothing to convert because a folder is one of ours."""
    if read_json(source / "config.json").get("model_type") == StrandBertConfig.model_type:
        raise ConversionError(
            f"{source} already is a StrandBERT folder, so there is nothing to convert; check it with "
            f"`python -m hub_configs.verify {shlex.quote(str(source))}`"
        )


def model_class_of(weights: dict[str, Tensor]) -> type:
    """The class whose head the weights hold. Raises ConversionError when they hold two."""
    masked_lm = any(name.startswith("cls.") for name in weights)
    classifier = any(name.startswith("classifier.") for name in weights)
    if masked_lm and classifier:
        raise ConversionError("the checkpoint holds a masked-LM head (cls.*) and a classifier (classifier.*); keep one")
    if masked_lm:
        return StrandBertForMaskedLM
    if not classifier:
        return StrandBertModel
    sequence = any(name.startswith(("bert.pooler.", "classifier.0.")) for name in weights)
    return StrandBertForSequenceClassification if sequence else StrandBertForTokenClassification


def converted_config(path: Path, model_class: type) -> dict:
    """Our config.json from the source's: sizes, dropout, labels. Raises ConversionError naming the setting."""
    source = read_json(path)
    absent = [key for key in SIZES if key not in source]
    if absent:
        raise ConversionError(f"{path} lacks {', '.join(absent)}")
    wrong = [key for key in SIZES if not isinstance(source[key], int) or source[key] < 1]
    if wrong:
        raise ConversionError(f"{path}: {wrong[0]} is {source[wrong[0]]!r}; a positive whole number is needed")
    if source.get("hidden_act", "gelu") != "gelu":
        raise ConversionError(f"{path}: hidden_act is {source['hidden_act']!r}; DNABERT-2 uses 'gelu'")
    if source.get("model_type") not in (None, "bert", "dnabert2"):
        raise ConversionError(f"{path}: model_type is {source['model_type']!r}; this is not a DNABERT-2 checkpoint")
    config = {
        "architectures": [model_class.__name__],
        "model_type": StrandBertConfig.model_type,
        "auto_map": dict(AUTO_MAP),
        **{key: source[key] for key in SIZES},
        "glu_activation": "gelu",
        **{key: source.get(key, default) for key, default in OPTIONS.items()},
        "classifier_head": "pooler",
        **SPECIAL_IDS,
        "tie_word_embeddings": True,
        **labels_of(path, source),
    }
    try:
        StrandBertConfig(**config)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{path}: {error}") from None
    return config


def labels_of(path: Path, source: dict) -> dict:
    """id2label, label2id and problem_type of a fine-tune; nothing when the source names none."""
    labels = {}
    names = source.get("id2label")
    if names is None and isinstance(source.get("num_labels"), int):
        names = {str(index): f"LABEL_{index}" for index in range(source["num_labels"])}
    if names is not None:
        if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
            raise ConversionError(f"{path}: id2label must name the labels 0, 1, 2, ... in turn; it is {names}")
        labels["id2label"] = names
        labels["label2id"] = {name: int(index) for index, name in names.items()}
    if source.get("problem_type") is not None:
        labels["problem_type"] = source["problem_type"]
    return labels


def checked_weights(weights: dict[str, Tensor], config: dict, model_class: type) -> dict[str, Tensor]:
    """
    The weights under the names of our model, tied ones once.

    Raises:
        ConversionError: naming every weight that is missing, unexpected or of another shape, or a decoder that is not
            tied to the word embeddings.
    """
    weights = dict(weights)
    decoder = weights.pop(TIED, None)
    if decoder is not None and not (WORD_EMBEDDINGS in weights and torch.equal(decoder, weights[WORD_EMBEDDINGS])):
        raise ConversionError(
            f"{TIED} differs from {WORD_EMBEDDINGS}; in DNABERT-2 they are one matrix, so one of the two would be lost"
        )
    if model_class is StrandBertModel:
        weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    expected = expected_shapes(config, model_class, with_pooler="pooler.dense.weight" in weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [
        *(f"missing: {name} {shape}" for name, shape in expected.items() if name not in shapes),
        *(f"unexpected: {name} {shape}" for name, shape in shapes.items() if name not in expected),
        *(
            f"wrong shape: {name} is {shapes[name]} in the checkpoint, {shape} by config.json"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ),
        *(f"not floating point: {name} is {t.dtype}" for name, t in weights.items() if not t.is_floating_point()),
        *(f"not finite: {name}" for name, t in weights.items() if t.is_floating_point() and not t.isfinite().all()),
    ]
    if problems:
        raise ConversionError(
            f"{len(problems)} weights do not fit {model_class.__name__} of this config.json:\n  "
            + "\n  ".join(problems)
        )
    return weights


def expected_shapes(config: dict, model_class: type, with_pooler: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that our model has under a config, tied ones once; allocates nothing."""
    arguments = {"add_pooling_layer": with_pooler} if model_class is StrandBertModel else {}
    with torch.device("meta"):
        model = model_class(StrandBertConfig(**config), **arguments)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != TIED}


def checked_tokenizer(path: Path, config: dict) -> dict:
    """Content of the source's tokenizer.json. Raises ConversionError when it is absent or has more ids than vectors."""
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; copy tokenizer.json of the original model into {path.parent}")
    tokenizer = read_json(path)
    try:
        ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
        highest = max(ids)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ConversionError(f"{path} is not a tokenizer.json with a vocabulary") from None
    if highest >= config["vocab_size"]:
        raise ConversionError(f"{path} has token ids up to {highest}, but vocab_size is {config['vocab_size']}")
    return tokenizer


def write_provenance(
    folder: Path,
    source: Path,
    tokenizer_file: Path,
    adapter: Path | None,
    model_class: type,
    weights: dict[str, Tensor],
) -> None:
    """conversion.json: the source files with their SHA-256, whose they are, and what was made of them."""
    files = [source / "config.json", tokenizer_file, *weight_files(source)]
    hashes = {path.name: sha256_of(path) for path in files}
    content = {
        "source_files": hashes,
        "published_as": published_as(hashes),
        "model_class": model_class.__name__,
        "weights": len(weights),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
    }
    if adapter:
        content["adapter_files"] = {path.name: sha256_of(path) for path in sorted(adapter.glob("adapter_*"))}
    (folder / "conversion.json").write_text(json.dumps(content, indent=2) + "\n")


def published_as(hashes: dict[str, str]) -> str | None:
    """Hub name of the release whose weight files, by SHA-256 in models.toml, these are; None for any other."""
    for row in read_models().values():
        known = row.get("original_sha256")
        if known and all(hashes.get(name) == sha256 for name, sha256 in known.items()):
            logger.info("the weights are those of %s", row["original"])
            return row["original"]
    return None


def check_written_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise ConversionError unless the file holds exactly these weights, bit for bit."""
    written = load_file(path)
    different = [name for name in weights if name not in written or not torch.equal(weights[name], written[name])]
    if different or len(written) != len(weights):
        raise ConversionError(f"{path} was not written correctly: {', '.join(different)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hub_configs.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder with config.json, tokenizer.json and weights, or a Hub name (org/name)")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    parser.add_argument("--base", help="folder or Hub name of the model that a LoRA adapter was trained on")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub name")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = convert(options.source, options.output, options.overwrite, options.base, options.revision)
        print("\n".join(report))
    except (CardError, ConversionError, VerificationError, OSError) as error:
        print(f"not converted: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
