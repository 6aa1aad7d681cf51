#!/usr/bin/env python
"""
Pre-train a StrandBERT model on DNA with masked-language modelling, or go on pre-training one.

  # from scratch, on one machine
  accelerate launch run_mlm.py --config_name hub_configs/strandbert-tiny --tokenizer_name my_tokenizer \\
      --train_file genome.fa.gz --output_dir runs/first --max_steps 2000 --global_batch_size 64

  # go on from a published or own model, with files of several kinds
  accelerate launch run_mlm.py --model_name_or_path runs/first --train_file a.fa b.csv --output_dir runs/second

  # all settings from a file
  accelerate launch run_mlm.py settings.yaml

Input: FASTA, text (one sequence per line), CSV or TSV or Parquet (see --sequence_column), each also as .gz. Ambiguous
bases are dropped. Without --validation_file a part is held out for evaluation. Run the same command again to resume
after an interruption. The output folder loads with
AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).
"""

import argparse
import json
import logging
import math
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, PreTrainedTokenizerFast, TrainerState, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from corpus.fasta import FastaError
from modeling import StrandBertConfig, StrandBertForMaskedLM
from modeling.alibi_attention import check_backend
from tokenization.tokenizer_files import check_special_ids
from training.arguments import LAST_CHECKPOINT, PretrainingArguments
from training.checkpoints import (
    SETTINGS_FILE,
    CheckpointError,
    check_same_model,
    checkpoints_in,
    last_whole_checkpoint,
    move_files,
    what_is_wrong,
    write_json,
)
from training.data import DataSettings, MlmDataset, prepare_data
from training.entropy import frequency_baselines
from training.loss_curve import write_loss_curve
from training.masking import TokenMasker
from training.sources import SequenceFileError
from training.storage import StorageError, check_writable
from training.trainer import MlmTrainer

logger = logging.getLogger("run_mlm")

DATA_FOLDER = "data"
FINAL_FOLDER = ".final"
BASELINES = ("unigram_entropy", "bigram_entropy")
RESULTS_SHOWN = (
    "train_loss",
    "train_tokens_per_second",
    "train_base_pairs_per_second",
    "eval_loss",
    "eval_unigram_entropy",
    "eval_bigram_entropy",
    "eval_accuracy",
    "eval_perplexity",
    "eval_bits_per_base",
)
# Settings on which the trained weights depend.
RESULT_SETTINGS = set(
    "train_file validation_file validation_split_percentage sequence_column max_seq_length min_run_length "
    "mlm_probability max_train_samples seed global_batch_size learning_rate lr_scheduler_type warmup_ratio "
    "warmup_steps max_steps num_train_epochs optim adam_beta1 adam_beta2 adam_epsilon weight_decay max_grad_norm "
    "bf16 fp16".split()
)
GPU_BACKENDS = ("flash_attention_2", "alibi_triton")
EVALUATION_MASK_SEED = 0  # the same masks in every evaluation of every run


class SettingsError(ValueError):
    """Settings that contradict each other or name something that is not there; the message says what to change."""


@dataclass
class ModelArguments:
    """Which model and tokenizer."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "StrandBERT model (folder or Hub name) to go on from; default: from scratch"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "folder or config.json that describes the new model, when there is no model"}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "tokenizer (folder or Hub name); default: that of the model or config"}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "how attention is computed: auto, eager, sdpa, alibi_banded, flash_attention_2 or alibi_triton, "
            "with the same result. Default: auto, which takes flash_attention_2 where it is installed and the run is "
            "on a GPU in bf16 or fp16; else sdpa for sequences shorter than 1,024 tokens and alibi_banded above"
        },
    )


@dataclass
class DataArguments:
    """Which sequences, and how they are cut and masked."""

    train_file: list[str] = field(metadata={"help": "one or several files of sequences to train on"})
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "files to evaluate on; default: a part of the training files"}
    )
    validation_split_percentage: float = field(
        default=5.0, metadata={"help": "percent of each training file held out without --validation_file; 0 for none"}
    )
    sequence_column: str = field(default="sequence", metadata={"help": "column of CSV, TSV and Parquet files"})
    max_seq_length: int = field(
        default=128, metadata={"help": "tokens per window, [CLS] and [SEP] included; any length (ALiBi has no limit)"}
    )
    min_run_length: int = field(
        default=50,
        metadata={
            "help": "shortest run in bp to use. A run is a stretch of A, C, G and T without a break; N, any other "
            "ambiguous base, and the end of a sequence end it. Shorter runs are dropped"
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "share of the tokens to predict"})
    packing: bool = field(default=False, metadata={"help": "lay sequences end to end instead of padding them"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use at most this many training windows"})
    max_eval_samples: int | None = field(
        default=2048, metadata={"help": "use at most this many evaluation windows, spread evenly; 0 for all"}
    )
    data_cache_dir: str | None = field(
        default=None, metadata={"help": f"where tokenised data are kept; default: OUTPUT_DIR/{DATA_FOLDER}"}
    )

    def __post_init__(self):
        self.train_file = [self.train_file] if isinstance(self.train_file, str) else self.train_file
        self.validation_file = [self.validation_file] if isinstance(self.validation_file, str) else self.validation_file


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PretrainingArguments]:
    """
    Read flags, or one .json or .yaml file that holds all of them.

    Raises:
        SettingsError: naming the file and the wrong key or value.
    """
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, PretrainingArguments),
        usage="run_mlm.py [--flag value ...] | settings.json | settings.yaml    (--help lists the flags)",
        description=__doc__,
        formatter_class=_HelpFormatter,
    )
    try:
        if len(argv) == 1 and argv[0].endswith(".json"):
            return parser.parse_json_file(argv[0])
        if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
            return parser.parse_yaml_file(argv[0])
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, TypeError, OSError) as error:
        raise SettingsError(f"{argv[0]}: {error}" if len(argv) == 1 else str(error)) from None


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and shows defaults; of flags without one the text says what happens."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def find_checkpoint(args: PretrainingArguments) -> str | None:
    """
    The checkpoint to resume from: the one named, else the last whole one in the output folder.

    Raises:
        CheckpointError: a named checkpoint that is broken, or an output folder with contents that would be lost.
    """
    if args.resume_from_checkpoint == LAST_CHECKPOINT:
        checkpoint = last_whole_checkpoint(args.output_dir)
        if checkpoint is None:
            raise CheckpointError(
                f"{args.output_dir} holds no complete checkpoint to resume from; leave out --resume_from_checkpoint to "
                "start a new run"
            )
        args.resume_from_checkpoint = str(checkpoint)
    if args.resume_from_checkpoint:
        if args.overwrite_output_dir and Path(args.resume_from_checkpoint).resolve() in [
            path.resolve() for path in checkpoints_in(args.output_dir)
        ]:
            raise CheckpointError(
                f"--overwrite_output_dir would delete {args.resume_from_checkpoint}, which --resume_from_checkpoint "
                "asks for; give one of the two"
            )
        problem = what_is_wrong(args.resume_from_checkpoint)
        if problem:
            raise CheckpointError(f"cannot resume from {args.resume_from_checkpoint}: {problem}")
        return args.resume_from_checkpoint
    output_dir = Path(args.output_dir)
    if args.overwrite_output_dir:
        return None
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint:
        return str(checkpoint)
    own = {DATA_FOLDER, FINAL_FOLDER, *(path.name for path in checkpoints_in(output_dir))}
    foreign = sorted(path.name for path in output_dir.glob("*") if path.name not in own)
    if foreign and args.do_train:
        raise CheckpointError(
            f"{output_dir} is not empty ({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}) and holds no "
            "complete checkpoint to resume from; choose another --output_dir, or start over with --overwrite_output_dir"
        )
    return None


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
    if content.get("model_type") != StrandBertConfig.model_type:
        raise SettingsError(
            f"{source} describes a model of type {content.get('model_type')!r}, not {StrandBertConfig.model_type!r}; "
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


def check_settings(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments):
    """
    Find what would stop the run later; without data to evaluate on, turn evaluation off.

    Raises:
        SettingsError: settings that contradict each other, or ask for what this machine does not have.
        StorageError: an output folder that cannot be written to.
    """
    check_writable(args.output_dir, "--output_dir")
    backend = model_args.attn_implementation
    try:
        check_backend(backend)
    except (ValueError, ImportError) as error:
        raise SettingsError(str(error)) from None
    if backend in GPU_BACKENDS and args.device.type != "cuda":
        raise SettingsError(f"--attn_implementation {backend} runs on CUDA only, this run is on {args.device.type}")
    if backend == "flash_attention_2" and not (args.bf16 or args.fp16):
        raise SettingsError(f"--attn_implementation {backend} computes in half precision; add --bf16 or --fp16")
    if data_args.packing and args.n_gpu > 1:
        raise SettingsError("--packing needs one process per GPU; start with accelerate launch or torchrun")
    if data_args.validation_file or data_args.validation_split_percentage:
        return
    if args.load_best_model_at_end or args.save_strategy == "best":
        raise SettingsError(
            "the best model is found by evaluating, and nothing is held out for that: leave out "
            "--load_best_model_at_end and --save_strategy best, or give --validation_file or a "
            "--validation_split_percentage above 0"
        )
    args.eval_strategy, args.do_eval, args.eval_on_start = IntervalStrategy.NO, False, False


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
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
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


def load_model(model_args: ModelArguments, config: StrandBertConfig) -> StrandBertForMaskedLM:
    """The model in float32: the weights of --model_name_or_path, else random ones that depend on --seed."""
    options = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    if model_args.model_name_or_path:
        return StrandBertForMaskedLM.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32, **options
        )
    return StrandBertForMaskedLM._from_config(config, **options)


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
                len(tokenizer), tokenizer.mask_token_id, tokenizer.all_special_ids, seed, data_args.mlm_probability
            )
            for seed in (args.seed, EVALUATION_MASK_SEED)
        ]
    except ValueError as error:
        raise SettingsError(str(error)) from None
    train, validation, report = prepare_data(
        data_args.train_file,
        data_args.validation_file,
        tokenizer,
        settings,
        data_args.data_cache_dir or Path(args.output_dir) / DATA_FOLDER,
        build=args.local_process_index == 0,
    )
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    train_dataset = MlmDataset(train, maskers[0], *special, limit=data_args.max_train_samples or None)
    if validation is None:
        return train_dataset, None, report
    return train_dataset, MlmDataset(validation, maskers[1], *special, limit=data_args.max_eval_samples or None), report


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
    for split, entry in report["splits"].items():
        counts = (f"{entry[name]:,}" for name in ("windows", "tokens", "base_pairs"))
        logger.info("%s: %s windows, %s tokens, %s bp", split, *counts)


def run_settings(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments) -> dict:
    """Everything that the run was asked for, saved with every checkpoint."""
    return {"model": asdict(model_args), "data": asdict(data_args), "training": json.loads(args.to_json_string())}


def warn_of_changed_settings(checkpoint: str, settings: dict):
    """Log each setting that differs from the checkpoint's and makes the continuation differ from one long run."""
    path = Path(checkpoint) / SETTINGS_FILE
    before = json.loads(path.read_text()) if path.is_file() else {}
    for group, values in settings.items():
        for name in RESULT_SETTINGS & values.keys():
            old = before.get(group, {}).get(name, values[name])
            if old != values[name]:
                logger.warning("Resuming with --%s %s, but %s was saved with %s", name, values[name], checkpoint, old)


def is_finished(checkpoint: str | None, trainer: MlmTrainer) -> bool:
    """Whether a checkpoint already stands at the last step that was asked for."""
    if checkpoint is None:
        return False
    args = trainer.args
    last_step = args.max_steps
    if last_step <= 0:
        last_step = math.ceil(args.num_train_epochs * trainer.sampler.steps_per_epoch)
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step >= last_step


def train(trainer: MlmTrainer, checkpoint: str | None) -> dict[str, float]:
    """Train to the last step and return the metrics; a finished checkpoint is only loaded, which has no metrics."""
    if is_finished(checkpoint, trainer):
        logger.info("%s is complete: nothing is left to train. Raise --max_steps to go on.", checkpoint)
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        return {}
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    wanted = {name: metrics[name] for name in ("train_runtime", "train_steps_per_second")}
    return wanted | {"train_loss": logged[-1] if logged else metrics["train_loss"]} | trainer.throughput()


def save_model(trainer: MlmTrainer):
    """Save model, tokenizer and code to the output folder: written aside, then renamed file by file."""
    aside = Path(trainer.args.output_dir) / FINAL_FOLDER
    if trainer.args.should_save:
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(aside))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        move_files(aside, Path(trainer.args.output_dir))


def evaluate(trainer: MlmTrainer, train_dataset: MlmDataset) -> dict[str, float]:
    """Held-out metrics of the final weights, with the losses that token frequencies alone reach beside them."""
    at_last_step = [
        entry
        for entry in trainer.state.log_history
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step
    ]
    if at_last_step and not trainer.args.load_best_model_at_end:
        metrics = {name: value for name, value in at_last_step[-1].items() if name.startswith("eval_")}
    else:
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        baselines = frequency_baselines(train_dataset.store, trainer.eval_dataset, len(trainer.tokenizer))
        metrics |= {f"eval_{name}": value for name, value in baselines.items()}
    return metrics


def write_results(trainer: MlmTrainer, train_metrics: dict, eval_metrics: dict, report: dict):
    """Write train_results.json, eval_results.json, all_results.json and the loss curve; log the main numbers."""
    folder = Path(trainer.args.output_dir)
    if train_metrics:
        write_json(folder / "train_results.json", train_metrics)
    if eval_metrics:
        write_json(folder / "eval_results.json", eval_metrics)
    results = {}
    for name in ("train_results.json", "eval_results.json"):
        if (folder / name).is_file():
            results |= json.loads((folder / name).read_text())
    results["global_step"] = trainer.state.global_step
    write_json(folder / "all_results.json", results | {"data": report})
    baselines = {name: eval_metrics[f"eval_{name}"] for name in BASELINES if f"eval_{name}" in eval_metrics}
    write_loss_curve(trainer.state.log_history, baselines, folder)
    for name in RESULTS_SHOWN:
        if name in results:
            logger.info("%-32s %s", name, f"{results[name]:,.4f}")
    logger.info("model, results and loss_curve.png are in %s", folder)


def main(argv: list[str] | None = None):
    """Run the script and end it with one line when something is wrong; see the top of the file."""
    try:
        pretrain(*parse_arguments(sys.argv[1:] if argv is None else argv))
    except (SettingsError, CheckpointError, SequenceFileError, FastaError, StorageError) as error:
        sys.exit(f"run_mlm.py: error: {error}")


def pretrain(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments):
    """
    Check the settings, prepare the data, train, save, evaluate.

    Raises:
        SettingsError, CheckpointError, SequenceFileError, FastaError: before training.
        StorageError: whenever a folder cannot be written to.
    """
    set_up_logging(args)
    check_settings(model_args, data_args, args)
    checkpoint = find_checkpoint(args)
    config = load_config(model_args, data_args.max_seq_length)
    tokenizer = load_tokenizer(model_args, config)
    if checkpoint and args.do_train:
        check_same_model(checkpoint, config, tokenizer)
    train_dataset, eval_dataset, report = load_datasets(data_args, args, tokenizer)
    if args.process_index == 0:
        log_data_report(report)
    set_seed(args.seed)
    model = load_model(model_args, config)
    settings = run_settings(model_args, data_args, args)
    trainer = MlmTrainer(model, args, train_dataset, eval_dataset, tokenizer, settings, packing=data_args.packing)
    if args.overwrite_output_dir and args.should_save:
        for old in checkpoints_in(args.output_dir):
            shutil.rmtree(old)
    if checkpoint:
        logger.info("Resuming from %s", checkpoint)
        warn_of_changed_settings(checkpoint, settings)
    train_metrics = train(trainer, checkpoint) if args.do_train else {}
    if args.do_train:
        with trainer.writing():
            save_model(trainer)
    eval_metrics = evaluate(trainer, train_dataset) if eval_dataset is not None else {}
    if trainer.is_world_process_zero():
        with trainer.writing():
            write_results(trainer, train_metrics, eval_metrics, report)


def set_up_logging(args: PretrainingArguments):
    """Messages of the main process on stderr; of the others only what goes wrong."""
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO if args.process_index == 0 else logging.ERROR,
        handlers=[logging.StreamHandler(sys.stderr)],
    )
    for name in ("httpx", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # one bar per saved file


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
