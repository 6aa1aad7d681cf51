#!/usr/bin/env python
"""
Fine-tune a DNA encoder on labelled sequences: a task of the GUE benchmark, or any CSV.

  # your own table with the columns sequence and label
  python run_classification.py --model my_model --train_file train.csv --test_file test.csv --output_dir runs/mine

  # a task of the benchmark with the settings of the DNABERT-2 paper, on one machine or several GPUs
  accelerate launch run_classification.py --model my_model --task_name tf/0 --data_dir GUE --output_dir runs/tf0

  # LoRA; the baseline of k-mer counts; all settings from a file
  python run_classification.py --model my_model --use_lora --train_file train.csv --output_dir runs/lora
  python run_classification.py --model kmer-logistic --train_file train.csv --test_file test.csv --output_dir runs/kmer
  python run_classification.py settings.yaml

The step with the lowest validation loss, or the highest MCC, is kept and tested. The output folder holds the model with
its label names (pipeline("text-classification", model=folder, trust_remote_code=True); with --use_lora the adapter,
unless --merge_lora makes a whole model of it), all_results.json, test_predictions.csv, and pictures of the confusion
matrix and the curves. Run the same command again to resume after an interruption; python -m inference.predict labels
other sequences. docs/finetuning.md says what the settings do.
"""

import copy
import json
import logging
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainerState, set_seed

from gue.tasks import SPLITS, Task, UnknownTaskError, find_task
from inference.reading import SequenceInputError
from training.allocator import keep_freed_memory
from training.checkpoints import (
    CheckpointError,
    checkpoints_in,
    find_checkpoint,
    move_files,
    what_is_wrong,
    write_json,
)
from training.classification_arguments import (
    AUTO,
    LEARNING_RATE,
    LORA_LEARNING_RATE,
    PASS_BASE_PAIRS,
    RECIPES,
    STRAND_SETTINGS,
    DataArguments,
    FineTuningArguments,
    ModelArguments,
)
from training.classification_batches import Augmentation, SequenceDataset, TooLongError, views_of
from training.classification_data import (
    REGRESSION,
    SINGLE_LABEL,
    Columns,
    pair_columns,
    read_labelled,
    shared_rows,
    split_off_validation,
)
from training.classification_model import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Classifier,
    ModelError,
    add_lora,
    last_linear,
    load_classifier,
    load_config,
    load_tokenizer,
    scale_outputs,
)
from training.classification_results import (
    REPORTS,
    RESULTS_FILE,
    Data,
    count_parameters,
    show_results,
    write_results,
)
from training.classification_trainer import (
    ClassificationTrainer,
    CollapseError,
    balanced_weights,
)
from training.command_line import SettingsError, check_processes, parse_settings, set_up_logging
from training.kmer_logistic import CONFIG_FILE as KMER_CONFIG
from training.kmer_logistic import NAME as KMER_LOGISTIC
from training.kmer_logistic import KmerLogistic
from training.metric_plots import draw_training
from training.metrics import compute_metrics, label_scale
from training.storage import SETTINGS_FILE, StorageError, alone_in, check_writable, weights_digest, writing_into

logger = logging.getLogger("run_classification")

FINAL_FOLDER = ".final"
WRITTEN = ("config.json", "model.safetensors", ADAPTER_CONFIG, ADAPTER_WEIGHTS, KMER_CONFIG, *REPORTS)
FREE_TO_CHANGE = ("recipe", "trust_remote_code", "attn_implementation")  # between the sessions of one run
FIXED_TRAINING_SETTINGS = (
    "seed",
    "learning_rate",
    "optim_args",
    "lr_scheduler_kwargs",
    "neftune_noise_alpha",
    "collapse_patience",
    "global_batch_size",
    "max_steps",
    "num_train_epochs",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "label_smoothing_factor",
    "class_weights",
    "layer_decay",
    "ema_decay",
    "metric_for_best_model",
    "augment_reverse_complement",
    "augment_tokens",
    "augment_crop",
    "average_strands",
    "average_tokens",
    "eval_strategy",
    "eval_steps",
    "early_stopping",
    "bf16",
    "fp16",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
)
# Settings of a network that would change the k-mer baseline's answer if it could follow them.
NOT_OF_KMER_LOGISTIC = ("use_lora", "merge_lora", "max_seq_length", "truncate", "class_weights", "learning_rate_sweep",
                        "augment_tokens", "augment_crop", "average_tokens", *STRAND_SETTINGS)  # fmt: skip


def main(argv: list[str] | None = None):
    """Run the script and end it with one line when something is wrong; see the top of the file."""
    try:
        settings = parse_settings(
            sys.argv[1:] if argv is None else argv,
            (ModelArguments, DataArguments, FineTuningArguments),
            "run_classification.py",
            __doc__,
            RECIPES,
        )
        run(*settings)
    except (
        SettingsError,
        CheckpointError,
        SequenceInputError,
        UnknownTaskError,
        ModelError,
        TooLongError,
        CollapseError,
        StorageError,
    ) as error:
        sys.exit(f"run_classification.py: error: {error}")


def run(model_args: ModelArguments, data_args: DataArguments, args: FineTuningArguments):
    """
    Check the settings, read the data, train (once, or once for each learning rate of a sweep), test, save.

    Raises:
        the errors that `main` turns into one line.
    """
    set_up_logging(args)
    check_settings(model_args, data_args, args)
    data = read_data(data_args)
    log_data(data)
    with alone_in(args.output_dir, args.process_index):
        if model_args.model_name_or_path == KMER_LOGISTIC:
            if args.process_index == 0:
                train_kmer_logistic(data, args)
            return
        settle_settings(model_args, data, args)
        train_all = sweep if args.learning_rate_sweep else fine_tune
        train_all(model_args, data_args, args, data)


# -- settings and data ---------------------------------------------------------------------------------------------


def check_settings(model_args: ModelArguments, data_args: DataArguments, args: FineTuningArguments):
    """
    Find what would stop the run later.

    Raises:
        SettingsError: settings that contradict each other. StorageError: an output folder that cannot be written to.
    """
    check_processes(args)
    for name in ("FSDP", "DEEPSPEED"):
        if getattr(args, name.lower()) or os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise SettingsError(
                f"fine-tuning needs whole weights in every process, which {name} shares out; leave it out, and start "
                "several GPUs with accelerate launch --multi_gpu"
            )
    if not (model_args.model_name_or_path or model_args.config_name):
        raise SettingsError("name a model (--model), or a configuration to train from random weights (--config_name)")
    if bool(data_args.task_name) == bool(data_args.train_file):
        raise SettingsError("give either --task_name with --data_dir, or --train_file")
    if data_args.task_name and not data_args.data_dir:
        raise SettingsError(
            f"--task_name {data_args.task_name} needs --data_dir, the folder with the benchmark's files"
        )
    if model_args.merge_lora and not model_args.use_lora:
        raise SettingsError("--merge_lora merges adapters; add --use_lora")
    if model_args.model_name_or_path and (Path(model_args.model_name_or_path) / ADAPTER_CONFIG).is_file():
        raise SettingsError(
            f"--model {model_args.model_name_or_path} is an adapter, and a training starts from a whole model: make "
            "one with --use_lora --merge_lora, or start from the model that the adapter was made from"
        )
    if model_args.use_lora and not model_args.model_name_or_path:
        raise SettingsError("--use_lora adapts a pre-trained model; name one with --model")
    for source in (model_args.model_name_or_path, model_args.config_name):
        if source not in (None, KMER_LOGISTIC) and Path(source).resolve() == Path(args.output_dir).resolve():
            raise SettingsError(f"--output_dir {args.output_dir} is the model's own folder; choose another")
    if args.n_gpu > 1:
        raise SettingsError("several GPUs need one process each; start with accelerate launch or torchrun")
    if not 0 < data_args.validation_split_percentage < 100:
        raise SettingsError(
            f"--validation_split_percentage {data_args.validation_split_percentage:g} must lie between 0 and 100: "
            "without validation rows the best step cannot be chosen"
        )
    if data_args.max_train_samples is not None and data_args.max_train_samples < 1:
        raise SettingsError(f"--max_train_samples {data_args.max_train_samples} leaves nothing to train on")
    if model_args.model_name_or_path == KMER_LOGISTIC:
        default = {field.name: field.default for group in (model_args, data_args, args) for field in fields(group)}
        given = {name: value for group in (model_args, data_args, args) for name, value in vars(group).items()}
        ignored = [name for name in NOT_OF_KMER_LOGISTIC if given[name] and given[name] != default[name]]
        if ignored:
            raise SettingsError(f"--{ignored[0]} is of no use to {KMER_LOGISTIC}; leave it out")
    for rate in (args.learning_rate, *args.learning_rate_sweep):
        if rate is not None and not 0 < rate < math.inf:
            raise SettingsError(f"a learning rate of {rate:g} trains nothing; 3e-5 is what both papers use")
    if args.learning_rate_sweep and args.learning_rate:
        raise SettingsError("give either --learning_rate or --learning_rate_sweep")
    for name in STRAND_SETTINGS:
        if getattr(args, name) == AUTO and not data_args.task_name:
            raise SettingsError(
                f"--{name} auto follows the task of the benchmark; without --task_name say true or false: whether a "
                "label holds for either strand"
            )
    check_writable(args.output_dir, "--output_dir")


def read_data(data_args: DataArguments) -> Data:
    """
    All splits; without a validation split a part of the training rows is held out.

    Raises:
        LabelledDataError, UnknownTaskError, SettingsError: naming what is wrong where.
    """
    task = find_task(data_args.task_name) if data_args.task_name else None
    files = _files_of_task(task, data_args.data_dir) if task else _files_of_flags(data_args)
    names = None
    if task and task.num_labels:
        names = task.labels or tuple(map(str, range(task.num_labels)))
    columns = Columns(data_args.sequence_column, data_args.pair_column, tuple(data_args.label_column))
    if task and task.pair and not data_args.pair_column:
        columns = pair_columns(files["train"][0], columns.labels)
    splits, labels = read_labelled(files, columns, data_args.problem_type, names)
    held_out = "validation" not in splits
    if held_out:
        train, validation = split_off_validation(splits["train"], data_args.validation_split_percentage)
        splits = {"train": train, "validation": validation} | {name: splits[name] for name in splits if name == "test"}
    if data_args.max_train_samples is not None:
        splits["train"] = splits["train"].take(range(min(data_args.max_train_samples, len(splits["train"]))))
    report = {
        "rows": {name: len(examples) for name, examples in splits.items()},
        "validation_held_out": held_out,
        "shared_rows": shared_rows(splits),
        "labels": list(labels.names),
        "problem_type": labels.problem_type,
    }
    return Data(splits, labels, task, report)


def _files_of_flags(data_args: DataArguments) -> dict[str, list[str]]:
    given = {"train": data_args.train_file, "validation": data_args.validation_file, "test": data_args.test_file}
    return {split: paths for split, paths in given.items() if paths}


def _files_of_task(task: Task, data_dir: str) -> dict[str, list[Path]]:
    files = {}
    for split, name in zip(SPLITS, ("train", "validation", "test"), strict=True):
        path = task.file(data_dir, split)
        if path:
            files[name] = [path]
        elif split != "dev" or any(known.split == "dev" for known in task.splits):
            raise SettingsError(
                f"{split}.csv of task {task.name} is not under --data_dir {data_dir} (looked for "
                f"{task.name}/{split}.csv and .csv.gz); python -m gue.check {data_dir} lists what is missing"
            )
    return files


def log_data(data: Data):
    """Say what was read, and warn of sequences that stand in two splits."""
    for split, examples in data.splits.items():
        lengths = examples.lengths()
        counts = ""
        if data.labels.problem_type == SINGLE_LABEL:
            found = np.bincount(examples.labels, minlength=len(data.labels.names))
            shown = [f"{name}: {count:,}" for name, count in zip(data.labels.names, found, strict=True)]
            counts = f"; {', '.join(shown[:10])}{', ...' if len(shown) > 10 else ''}"
            absent = [name for name, count in zip(data.labels.names, found, strict=True) if not count]
            if absent:
                logger.warning("no row of %s is of class %s", split, ", ".join(absent[:10]))
        logger.info("%s: %s rows of %s to %s bp%s", split, f"{len(examples):,}", lengths.min(), lengths.max(), counts)
    for entry in data.report["shared_rows"]:
        logger.warning(
            "%s rows of %s are also in %s (%s more as reverse complements), e.g. %s = %s: scores will be too good",
            f"{entry['identical']:,}",
            entry["splits"][1],
            entry["splits"][0],
            f"{entry['reverse_complement']:,}",
            *entry["example"],
        )


def settle_settings(model_args: ModelArguments, data: Data, args: FineTuningArguments):
    """Fill in what depends on task, model and data: rows of a pass, learning rate, strands, length of the run."""
    if not args.rows_given:
        args.limit_rows(PASS_BASE_PAIRS // int(data.splits["train"].lengths().max()))
    if args.learning_rate is None:
        args.learning_rate = LORA_LEARNING_RATE if model_args.use_lora else LEARNING_RATE
    for name in STRAND_SETTINGS:
        if getattr(args, name) == AUTO:
            setattr(args, name, not data.task.stranded)
    if data.task is None or args.epochs_given or args.max_steps > 0:
        return
    if args.duration == "dnagrinder":
        args.num_train_epochs = data.task.dnagrinder_epochs or args.num_train_epochs
    elif data.task.dnabert2_steps:
        args.max_steps = data.task.dnabert2_steps
    else:
        args.num_train_epochs = data.task.dnabert2_epochs or args.num_train_epochs


# -- training ------------------------------------------------------------------------------------------------------


def build_classifier(model_args: ModelArguments, data_args: DataArguments, data: Data) -> Classifier:
    """
    Model and tokenizer, with adapters where they are asked for. Raises ModelError.

    What predictions must know is in the config: whether a row is a pair, and the tokens that longer rows were cut to.
    """
    source = model_args.model_name_or_path or model_args.config_name
    trust = model_args.trust_remote_code
    config = load_config(
        source,
        data.labels,
        trust,
        classifier_head=model_args.classifier_head,
        classifier_pooling=model_args.pooling,
        hidden_dropout_prob=model_args.dropout,
        classifier_dropout=model_args.classifier_dropout,
    )
    tokenizer = load_tokenizer(model_args.tokenizer_name or source, config, trust)
    classifier = load_classifier(
        config,
        tokenizer,
        model_args.model_name_or_path,
        data_args.max_seq_length,
        data_args.truncate,
        trust,
        model_args.attn_implementation,
    )
    if model_args.model_name_or_path:
        head = f"new: {', '.join(classifier.random)}" if classifier.random else f"that of {source}, trained further"
        logger.info("head: %s", head)
    if data.labels.problem_type == REGRESSION:
        name, _ = last_linear(classifier.model, len(data.labels.names))
        if f"{name}.weight" not in classifier.random:  # in units of the labels, where training standardises them
            mean, deviation = label_scale(data.splits["train"].labels, data.labels)
            scale_outputs(classifier.model, -mean / deviation, 1 / deviation)
    classifier.model.config.reads_pairs = data.splits["train"].pairs is not None
    classifier.model.config.max_sequence_tokens = data_args.max_seq_length
    if model_args.use_lora:
        add_lora(
            classifier,
            model_args.lora_r,
            model_args.lora_alpha,
            model_args.lora_dropout,
            model_args.lora_target_modules,
        )
    return classifier


def build_trainer(
    classifier: Classifier, data: Data, args: FineTuningArguments, settings: dict
) -> ClassificationTrainer:
    """The trainer with its data sets, augmentation, views, weights and callbacks."""
    augmentation = None
    if args.augment_reverse_complement or args.augment_tokens or args.augment_crop:
        augmentation = Augmentation(args.augment_reverse_complement, args.augment_tokens, args.augment_crop)
    if args.augment_tokens and not classifier.packed:
        raise SettingsError("--augment_tokens works with StrandBERT models only")
    if args.label_smoothing_factor and data.labels.problem_type != SINGLE_LABEL:
        raise SettingsError(f"--label_smoothing_factor is for classes; this is {data.labels.problem_type}")
    balanced = args.class_weights == "balanced"
    if data.labels.problem_type == REGRESSION:
        if args.metric_for_best_model == "eval_mcc":
            raise SettingsError("--metric_for_best_model eval_mcc is for classes; of a regression eval_loss chooses")
        if balanced:
            raise SettingsError("--class_weights balanced is for classes; leave it out of a regression")
    views = views_of(args.average_strands, args.average_tokens, args.augment_tokens)
    train, validation = data.splits["train"], data.splits["validation"]
    if not classifier.packed:
        args.ddp_find_unused_parameters = True  # poolers and heads of other models may take no part in the loss
    trainer = ClassificationTrainer(
        classifier,
        args,
        SequenceDataset(train, classifier.sequences, augmentation, args.seed),
        SequenceDataset(validation, classifier.sequences),
        data.labels,
        settings,
        balanced_weights(train.labels, data.labels) if balanced else None,
        views,
        args.layer_decay,
        args.collapse_patience,
        args.ema_decay,
    )
    if args.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping))
    return trainer


def fine_tune(model_args: ModelArguments, data_args: DataArguments, args: FineTuningArguments, data: Data) -> dict:
    """One training: resume or start, keep the best step, test it, save everything. Returns the results."""
    checkpoint = find_checkpoint(args, lambda: check_free(args))
    settings = run_settings(model_args, data_args, args, data)
    if checkpoint:
        check_same_run(checkpoint, settings)
    set_seed(args.seed)
    classifier = build_classifier(model_args, data_args, data)
    trainer = build_trainer(classifier, data, args, settings)
    datasets = {split: SequenceDataset(examples, classifier.sequences) for split, examples in data.splits.items()}
    for split, dataset in datasets.items():  # now, not when the training is over
        dataset.check_lengths(trainer.views[: 1 if split == "train" else None])
    if args.overwrite_output_dir and args.should_save:
        for old in checkpoints_in(args.output_dir):
            shutil.rmtree(old)
    results = train(trainer, checkpoint)
    results |= count_parameters(classifier.model)
    logits = {split: trainer.predict_logits(dataset) for split, dataset in datasets.items() if split != "train"}
    if data.labels.problem_type == REGRESSION:
        scale_outputs(classifier.model, *label_scale(data.splits["train"].labels, data.labels))
    if model_args.merge_lora:
        trainer.model = classifier.model = classifier.model.merge_and_unload()
    with trainer.writing():
        save_model(trainer)
    folder = Path(args.output_dir)
    if args.should_save:
        with trainer.writing():
            results = write_results(
                logits, data, folder, args.learning_rate, results, trainer.metrics, trainer.collapse
            )
            history, baseline = trainer.state.log_history, trainer.collapse.constant_loss
            draw_training(history, baseline, results["best_step"], folder)
            write_json(folder / "training_log.json", history)
            for path in checkpoints_in(args.output_dir):
                shutil.rmtree(path)
        show_results(results, folder)
    trainer.accelerator.wait_for_everyone()
    return json.loads((folder / RESULTS_FILE).read_text())


def run_settings(model_args: ModelArguments, data_args: DataArguments, args: FineTuningArguments, data: Data) -> dict:
    """What a training was asked for, digests of its rows and of the weights it started from; saved with its model."""
    return {
        "model": asdict(model_args),
        "data": asdict(data_args),
        "training": json.loads(args.to_json_string()),
        "rows": {split: examples.digest() for split, examples in data.splits.items()},
        "weights": {"model": weights_digest(model_args.model_name_or_path)},
    }


def check_same_settings(folder: str | Path, settings: dict):
    """
    Make sure that a checkpoint or a finished model is of the run that was asked for.

    Raises:
        CheckpointError: naming the setting that differs, with both values.
    """
    path = Path(folder) / SETTINGS_FILE
    before = json.loads(path.read_text()) if path.is_file() else {}
    for group, values in settings.items():
        names = FIXED_TRAINING_SETTINGS if group == "training" else values.keys() - set(FREE_TO_CHANGE)
        for name in sorted(names):
            old = before.get(group, {}).get(name, values[name])
            if old != values[name]:
                what = f"--{name} {old}, now it is {values[name]}; give the same settings to go on"
                if group == "rows":
                    what = f"other {name} rows: the content of the data has changed; give the same data to go on"
                if group == "weights":
                    what = "other weights to start from: those of --model have changed; put them back to go on"
                raise CheckpointError(
                    f"{folder} was saved with {what}, choose another --output_dir, or start over with "
                    "--overwrite_output_dir"
                )


def check_same_run(checkpoint: str, settings: dict):
    """
    Make sure that a checkpoint is of the run that was asked for, and that the best step so far is still there.

    Raises:
        CheckpointError: naming the setting that differs, with both values, or the step that is missing.
    """
    check_same_settings(checkpoint, settings)
    best = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).best_model_checkpoint
    problem = best and what_is_wrong(best)
    if problem:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: its best step is {best}: {problem}. Start in the folder in which the "
            "run was begun, move the run back if it was moved, or start over with --overwrite_output_dir"
        )


def check_free(args: FineTuningArguments):
    """Raise CheckpointError when the output folder holds a model or results that would be overwritten."""
    found = [name for name in WRITTEN if (Path(args.output_dir) / name).exists()]
    if found and not args.overwrite_output_dir:
        what = "a finished run" if RESULTS_FILE in found else found[0]
        raise CheckpointError(
            f"{args.output_dir} holds {what}; choose another --output_dir, or start over with --overwrite_output_dir"
        )


def train(trainer: ClassificationTrainer, checkpoint: str | None) -> dict:
    """Train to the end and load the best weights; returns what the results say about the training."""
    if checkpoint:
        logger.info("Resuming from %s", checkpoint)
    if checkpoint and is_finished(checkpoint, trainer):
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        trainer.collapse.look(trainer.args, trainer.state)
        trainer._load_best_model()
    else:
        if checkpoint:
            resume_early_stopping(checkpoint, trainer)
        trainer.lap()
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.state.log_history.append({"step": trainer.state.global_step, "seconds": trainer.lap()})
    history = trainer.state.log_history
    best = trainer.state.best_model_checkpoint
    evaluations = [entry for entry in history if "eval_loss" in entry]
    return {
        "seed": trainer.args.seed,
        "learning_rate": trainer.args.learning_rate,
        "global_batch_size": trainer.args.global_batch_size,
        "global_step": trainer.state.global_step,
        "best_step": int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "evaluations": len(evaluations),
        "train_runtime": sum(entry.get("seconds", 0.0) for entry in history),
    }


def is_finished(checkpoint: str, trainer: ClassificationTrainer) -> bool:
    """Whether a checkpoint is the last one of its run: the last step, or the one at which it was stopped."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    args = trainer.args
    last = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * trainer.sampler.steps_per_epoch)
    early = bool(args.early_stopping and evaluations_waited(state) >= args.early_stopping)
    return state.global_step >= last or early or trainer.collapse.look(args, state)


def evaluations_waited(state: TrainerState) -> int:
    """Evaluations since the best one, as a run with --early_stopping counted them; 0 of one without."""
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback") or {}
    return (stopping.get("attributes") or {}).get("early_stopping_patience_counter", 0)


def resume_early_stopping(checkpoint: str, trainer: ClassificationTrainer):
    """Let --early_stopping count on from the checkpoint; transformers would begin at 0."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = evaluations_waited(state)


def sweep(model_args: ModelArguments, data_args: DataArguments, args: FineTuningArguments, data: Data):
    """
    One training for each learning rate, in a folder of its own; the best on the validation rows wins.

    Raises:
        CheckpointError: a finished training of other settings. CollapseError: no learning rate trained to the end.
    """
    folder, rates, found = Path(args.output_dir), args.learning_rate_sweep, {}
    if (folder / RESULTS_FILE).exists() or not any(folder.glob("lr-*")):  # else a sweep that was interrupted
        check_free(args)
    for rate in rates:
        one = copy.deepcopy(args)
        one.learning_rate, one.output_dir = rate, str(folder / f"lr-{rate:g}")
        results = Path(one.output_dir) / RESULTS_FILE
        logger.info("learning rate %g", rate)
        if results.is_file() and not args.overwrite_output_dir:
            check_same_settings(one.output_dir, run_settings(model_args, data_args, one, data))
            found[rate] = json.loads(results.read_text())
            continue
        try:
            found[rate] = fine_tune(model_args, data_args, one, data)
        except CollapseError as error:
            logger.warning("learning rate %g is left out: %s", rate, error)
            reason = str(error)  # the error itself would keep the model in memory
    if not found:
        raise CollapseError(f"none of the learning rates trains to the end. The last one, {rates[-1]:g}: {reason}")
    metric = args.metric_for_best_model
    best = (max if args.greater_is_better else min)(found, key=lambda rate: found[rate][metric])
    logger.info("learning rate %g has the best %s", best, metric)
    if args.should_save:
        remove_earlier(folder)
        for path in sorted((folder / f"lr-{best:g}").iterdir()):
            if path.is_file() and path.name != RESULTS_FILE:
                shutil.copy2(path, folder / f".{path.name}")
                os.replace(folder / f".{path.name}", folder / path.name)
        validation = {f"{rate:g}": found[rate][metric] if rate in found else None for rate in rates}
        write_json(folder / RESULTS_FILE, found[best] | {f"sweep_{metric}": validation})


def train_kmer_logistic(data: Data, args: FineTuningArguments):
    """The baseline, with the same results files."""
    check_free(args)
    start = time.perf_counter()
    model = KmerLogistic(data.labels, pairs=data.splits["train"].pairs is not None)
    model.fit(data.splits["train"], data.splits["validation"])
    results = {
        "seed": args.seed,
        "C": model.strength,
        "train_runtime": time.perf_counter() - start,
        "parameters": model.parameters(),
    }
    with writing_into(args.output_dir, lambda: "make room and run the same command again"):
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        remove_earlier(folder)
        model.save(folder)
        logits = {split: model.logits(data.splits[split]) for split in data.splits if split != "train"}
        _, deviation = label_scale(data.splits["train"].labels, data.labels)
        metrics = partial(compute_metrics, problem_type=data.labels.problem_type, deviation=deviation)
        show_results(write_results(logits, data, folder, None, {"model": KMER_LOGISTIC} | results, metrics), folder)


# -- saving --------------------------------------------------------------------------------------------------------


def save_model(trainer: ClassificationTrainer):
    """Save model, tokenizer and code to the output folder: written aside, then renamed file by file."""
    aside = Path(trainer.args.output_dir) / FINAL_FOLDER
    if trainer.args.should_save:
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(aside))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        remove_earlier(Path(trainer.args.output_dir))
        move_files(aside, Path(trainer.args.output_dir))


def remove_earlier(folder: Path):
    """Delete what an earlier run left: loading would prefer its adapter to a new whole model."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
