"""Model, tokenizer, data and batches from the settings of run_mlm.py; what does not fit is named."""

import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from modeling import StrandBertConfig, StrandBertForMaskedLM
from tokenization.tokenizer_files import check_special_ids
from training.arguments import PretrainingArguments
from training.batches import BatchPlan, SequenceBatches, TokenBatches, file_order, length_order, random_order
from training.data import DataSettings, MlmDataset, prepare_data
from training.layers import compile_feed_forward, use_low_precision_layernorm
from training.masking import TokenMasker
from training.settings import DATA_FOLDER, DataArguments, ModelArguments, SettingsError
from training.streaming import ParquetStore, lanes_of, streaming_order

logger = logging.getLogger("run_mlm")

EVALUATION_MASK_SEED = 0  # the same masks in every evaluation of every run


def load_config(model_args: ModelArguments, max_seq_length: int) -> StrandBertConfig:
    """
    The configuration of the model to train.

    Raises:
        SettingsError: none is named, it cannot be read, or it is not of a StrandBERT model.
    """
    source = model_args.model_name_or_path or model_args.config_name
    if not source:
        raise SettingsError("name a model to go on from (--model_name_or_path) or a configuration (--config_name)")
    try:
        content, _ = StrandBertConfig.get_config_dict(source)
    except OSError as error:
        raise SettingsError(f"no configuration at {source}: {error}") from None
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != StrandBertConfig.model_type:
        raise SettingsError(
            f"{source} describes a model of type {model_type!r}, not {StrandBertConfig.model_type!r}; "
            "a DNABERT-2 checkpoint has to be converted first (see hub_configs)"
        )
    try:
        config = StrandBertConfig.from_pretrained(source)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"configuration {source}: {error}") from None
    from_scratch = not model_args.model_name_or_path
    # No limit of the model, but what tools ask for: the length that its weights have seen.
    config.max_position_embeddings = (
        max_seq_length if from_scratch else max(max_seq_length, config.max_position_embeddings)
    )
    return config


def load_tokenizer(model_args: ModelArguments, config: StrandBertConfig) -> PreTrainedTokenizerFast:
    """
    The tokenizer, checked against the configuration.

    Raises:
        SettingsError: it is missing, is larger than the model's vocabulary, or its special tokens have other ids.
    """
    source = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    try:
        cached_file(source, "tokenizer.json")
    except OSError as error:
        reason = "it has no tokenizer.json" if Path(source).exists() else str(error)
        raise SettingsError(
            f"no tokenizer at {source}: {reason}; name one with --tokenizer_name, or train one: "
            "python -m tokenization.train FASTA --output FOLDER"
        ) from None
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    except Exception as error:  # the library has no kind of its own for a damaged file
        raise SettingsError(f"tokenizer {source} cannot be read: {error}") from None
    for name in ("unk", "cls", "sep", "pad", "mask"):
        in_tokenizer, in_config = getattr(tokenizer, f"{name}_token_id"), getattr(config, f"{name}_token_id")
        if in_tokenizer != in_config:
            raise SettingsError(
                f"special token [{name.upper()}] has id {in_tokenizer} in the tokenizer {source} but id {in_config} in "
                f"the configuration ({name}_token_id); they must agree"
            )
    if len(tokenizer) > config.vocab_size:
        raise SettingsError(
            f"the tokenizer {source} has {len(tokenizer):,} tokens, more than vocab_size {config.vocab_size:,} of the "
            "configuration; raise vocab_size or train a smaller tokenizer"
        )
    try:
        check_special_ids(json.loads(tokenizer.backend_tokenizer.to_str()))
    except ValueError as error:
        raise SettingsError(f"tokenizer {source}: {error}") from None
    return tokenizer


def load_model(
    model_args: ModelArguments, config: StrandBertConfig, args: PretrainingArguments
) -> StrandBertForMaskedLM:
    """
    The model in float32: the weights of --model_name_or_path, else random ones that depend on --seed.

    Raises:
        SettingsError: weights that are missing, damaged, of another model, or without a head for masked tokens.
    """
    options = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    source = model_args.model_name_or_path
    if source:
        try:
            model, info = StrandBertForMaskedLM.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SettingsError(f"--model_name_or_path {source} cannot be loaded: {error}") from None
        if {name for name in info["missing_keys"] if name.startswith("cls.")} - set(model._tied_weights_keys):
            raise SettingsError(
                f"--model_name_or_path {source} has no masked-language-modelling head (a fine-tuned model has "
                "another); name the model that it was fine-tuned from"
            )
    else:
        model = StrandBertForMaskedLM._from_config(config, dtype=torch.float32, **options)
    if model_args.low_precision_layernorm:
        use_low_precision_layernorm(model, torch.bfloat16 if args.bf16 else torch.float16)
    if args.compiles_layers:
        compile_feed_forward(model)
    return model


def load_datasets(
    data_args: DataArguments, args: PretrainingArguments, tokenizer: PreTrainedTokenizerFast
) -> tuple[MlmDataset, MlmDataset | None, dict]:
    """Training and evaluation windows, and the report on where they come from."""
    try:
        settings = DataSettings(
            data_args.max_seq_length,
            data_args.min_run_length,
            data_args.validation_split_percentage,
            data_args.sequence_column,
        )
        maskers = [
            TokenMasker(
                len(tokenizer),
                tokenizer.mask_token_id,
                tokenizer.all_special_ids,
                seed,
                data_args.mlm_probability,
                data_args.mask_replace_prob,
                data_args.random_replace_prob,
            )
            for seed in (args.seed, EVALUATION_MASK_SEED)
        ]
    except ValueError as error:
        raise SettingsError(str(error)) from None
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    cache = data_args.data_cache_dir or Path(args.output_dir) / DATA_FOLDER
    files = [] if data_args.streaming else data_args.train_file, data_args.validation_file
    train, validation, report = None, None, {"splits": {}, "files": [], "sha256": {}}
    if any(files):
        train, validation, report = prepare_data(*files, tokenizer, settings, cache, args.local_process_index == 0)
    longest = None
    if data_args.streaming:
        lanes = -(-lanes_of(args.global_batch_size) // args.world_size)
        train = ParquetStore(data_args.train_file, data_args.sequence_column, tokenizer, kept=lanes + 1)
        report["splits"] = {"train": train.report()} | report["splits"]
        report["sha256"]["train"] = train.sha256()
        longest = data_args.max_seq_length
    train_dataset = MlmDataset(train, maskers[0], *special, data_args.max_train_samples or None, longest)
    if validation is None:
        return train_dataset, None, report
    return train_dataset, MlmDataset(validation, maskers[1], *special, data_args.max_eval_samples or None), report


def make_plan(data_args: DataArguments, args: PretrainingArguments, dataset: MlmDataset) -> BatchPlan:
    """
    Which sequences make up each step and each forward pass; sets args.gradient_accumulation_steps.

    Raises:
        SettingsError: batch sizes that do not go together.
    """
    if data_args.streaming:
        order = streaming_order(dataset.store, args.seed, shuffle=data_args.sequence_order == "random")
    elif data_args.sequence_order == "length":
        order = length_order(dataset.lengths, dataset.genomes, args.seed)
    elif data_args.sequence_order == "file":
        order = file_order(len(dataset))
    else:
        order = random_order(len(dataset), args.seed)
    if args.global_batch_tokens:
        sizes = args.global_batch_tokens, args.per_device_train_batch_tokens
        try:
            plan = TokenBatches(order, args.world_size, dataset.lengths, *sizes)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        args.gradient_accumulation_steps = plan.accumulation
        return plan
    lanes = lanes_of(args.global_batch_size) if data_args.streaming and data_args.sequence_order == "random" else 1
    accumulation = args.gradient_accumulation_steps
    return SequenceBatches(order, args.world_size, accumulation, len(dataset), args.global_batch_size, lanes)


def log_data_report(report: dict):
    """Say what was read, dropped, used and held out."""
    for entry in report["files"]:
        held_out = "" if entry["validation_file"] else f"; held out: {entry['held_out']}"
        logger.info(
            "%s: %s bp in %s sequences; dropped %s ambiguous bp and %s bp in short runs%s",
            entry["file"],
            f"{entry['base_pairs_read']:,}",
            f"{entry['sequences']:,}",
            f"{entry['base_pairs_ambiguous']:,}",
            f"{entry['base_pairs_in_short_runs']:,}",
            held_out,
        )
    shared = report.get("held_out_sequences", {"also_in_training": 0})
    if shared["also_in_training"]:
        logger.warning(
            "%s of %s held-out sequences also stand in the training part, as they are or as reverse complements: the "
            "held-out loss will be too good",
            f"{shared['also_in_training']:,}",
            f"{shared['total']:,}",
        )
    for split, entry in report["splits"].items():
        names = {"windows": "windows", "files": "files", "tokens": "tokens", "base_pairs": "bp"}
        logger.info("%s: %s", split, ", ".join(f"{entry[key]:,} {name}" for key, name in names.items() if key in entry))
