#!/usr/bin/env python
"""
Pre-train a StrandBERT model on DNA with masked-language modelling, or go on pre-training one.

  # from scratch, on one machine
  accelerate launch run_mlm.py --config_name hub_configs/strandbert-tiny --tokenizer_name my_tokenizer \\
      --train_file genome.fa.gz --output_dir runs/first --max_steps 2000 --global_batch_size 64

  # by a recipe: dnabert2, dnagrinder, further-gue, tiny-cpu, tiny-gpu ...; flags override it
  accelerate launch run_mlm.py --recipe tiny-cpu --train_file genome.fa.gz --output_dir runs/tiny

  # go on from a published or own model, with files of several kinds
  accelerate launch run_mlm.py --model_name_or_path runs/first --train_file a.fa b.csv --output_dir runs/second

  # all settings from a file
  accelerate launch run_mlm.py settings.yaml

  # on eight GPUs, or on several machines (see training/accelerate_configs)
  accelerate launch --config_file training/accelerate_configs/ddp.yaml run_mlm.py --recipe dnabert2 ...

Input: FASTA, text (one sequence per line), CSV or TSV, each also as .gz, or Parquet (see --sequence_column). Ambiguous
bases are dropped. Without --validation_file a part is held out for evaluation. Run the same command again to resume
after an interruption; SIGTERM saves a checkpoint first, where it reaches the training: accelerate launch of one
process does not pass it on, python run_mlm.py takes it, torchrun passes it on and kills after 30 seconds. The output
folder loads with AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True); report.md in it says how
training went.
"""

import logging
import math
import os
import shutil
import sys
from pathlib import Path

import torch
from transformers import TrainerState, set_seed

from corpus.fasta import FastaError
from training.allocator import keep_freed_memory
from training.arguments import PretrainingArguments
from training.batches import LengthSchedule
from training.checkpoints import (
    WEIGHTS,
    CheckpointError,
    changed_model_settings,
    check_same_model,
    checkpoints_in,
    find_checkpoint,
    move_files,
    what_is_wrong,
)
from training.command_line import set_up_logging
from training.data import MlmDataset
from training.loading import load_config, load_datasets, load_model, load_tokenizer, log_data_report, make_plan
from training.markov import baselines
from training.report import EVAL_RESULTS, TRAIN_RESULTS, write_results
from training.settings import (
    DATA_FOLDER,
    DataArguments,
    ModelArguments,
    SettingsError,
    check_changed_settings,
    check_settings,
    parse_arguments,
    run_settings,
)
from training.sources import SequenceFileError
from training.stopping import BATCH_FOLDER, LossError, Terminated, stopping_on_sigterm
from training.storage import StorageError, alone_in
from training.trainer import MissedEvaluation, MlmTrainer

logger = logging.getLogger("run_mlm")

FINAL_FOLDER = ".final"
LOG_FOLDERS = ("runs", "trackio")  # of --report_to
TERMINATED_EXIT_CODE = 128 + 15  # what a shell reports of a process that SIGTERM ended


def check_free(args: PretrainingArguments):
    """Raise CheckpointError when the output folder has contents that training would overwrite."""
    output_dir = Path(args.output_dir)
    own = {DATA_FOLDER, FINAL_FOLDER, *LOG_FOLDERS, *(path.name for path in checkpoints_in(output_dir))}
    names = (path.name for path in output_dir.glob("*"))
    foreign = sorted(name for name in names if name not in own and not name.startswith(BATCH_FOLDER))
    if foreign:
        raise CheckpointError(
            f"{output_dir} is not empty ({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}) and holds no "
            "complete checkpoint that this run goes on from; choose another --output_dir, or start over with "
            "--overwrite_output_dir"
        )


def check_evaluation(args: PretrainingArguments):
    """Raise when an evaluation without training asks for a checkpoint, or would overwrite the results of a run."""
    if args.resume_from_checkpoint:
        raise SettingsError(
            "--do_train false resumes nothing; to evaluate a checkpoint give its folder as --model_name_or_path"
        )
    output_dir = Path(args.output_dir)
    if checkpoints_in(output_dir) or (output_dir / WEIGHTS).exists():
        raise CheckpointError(
            f"{output_dir} holds a training run, whose results --do_train false would overwrite; to evaluate its "
            f"model give --model_name_or_path {output_dir} and another --output_dir"
        )


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
    """
    Train to the last step and return the metrics; of a finished run the weights are only loaded, which has no metrics.

    Raises:
        CheckpointError: the best weights of a finished run are no longer there.
    """
    if is_finished(checkpoint, trainer):
        logger.info("%s is complete: nothing is left to train. Raise --max_steps to go on.", checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        trainer._load_from_checkpoint(checkpoint)
        if not trainer.args.load_best_model_at_end:
            return {}
        trainer.make_up_for_evaluation(checkpoint)
        best = trainer.state.best_model_checkpoint
        if not best:
            return {}
        problem = what_is_wrong(best)
        if problem:
            raise CheckpointError(
                f"cannot load the best weights, {best}: {problem}. Start in the folder in which the run was begun, "
                "move the run back if it was moved, or leave out --load_best_model_at_end to take the last weights"
            )
        trainer._load_best_model()
        return {}
    if checkpoint:
        trainer.args.eval_on_start = False  # this is no start
        trainer.add_callback(MissedEvaluation(trainer, checkpoint))
    with stopping_on_sigterm(trainer.guard):
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


def evaluate(trainer: MlmTrainer, train_dataset: MlmDataset, trained: bool) -> dict[str, float]:
    """
    Held-out metrics of the final weights, with what token and base frequencies alone reach beside them.

    Args:
        trained: whether the last step was taken by this session: an evaluation of it is not repeated then.
    """
    at_last_step = [
        entry
        for entry in trainer.state.log_history
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step
    ]
    if trained and at_last_step and not trainer.args.load_best_model_at_end:
        metrics = at_last_step[-1]
    else:
        metrics = trainer.evaluate()
    metrics = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    if trainer.is_world_process_zero() and hasattr(train_dataset.store, "tokens"):  # not while streaming
        found = baselines(train_dataset.store, trainer.eval_dataset, trainer.tokenizer)
        metrics |= {f"eval_{name}": value for name, value in found.items()}
    return metrics


def main(argv: list[str] | None = None):
    """Run the script and end it with one line when something is wrong; see the top of the file."""
    try:
        model_args, data_args, args = parse_arguments(sys.argv[1:] if argv is None else argv, __doc__)
        set_up_logging(args)
        check_settings(model_args, data_args, args)
        with alone_in(args.output_dir, args.process_index):
            pretrain(model_args, data_args, args)
    except (SettingsError, CheckpointError, SequenceFileError, FastaError, StorageError, LossError) as error:
        sys.exit(f"run_mlm.py: error: {error}")
    except Terminated as error:
        logger.warning("%s", error)
        sys.exit(TERMINATED_EXIT_CODE)


def pretrain(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments):
    """
    Prepare the data, train, save, evaluate.

    Raises:
        SettingsError, CheckpointError, SequenceFileError, FastaError: before training.
        LossError, Terminated: training was stopped, see `training.stopping`.
        StorageError: whenever a folder cannot be written to.
    """
    checkpoint = None
    if args.do_train:
        checkpoint = find_checkpoint(args, lambda: check_free(args))
    else:
        check_evaluation(args)
    config = load_config(model_args, data_args.max_seq_length)
    tokenizer = load_tokenizer(model_args, config)
    if checkpoint:
        check_same_model(checkpoint, config, tokenizer)
    train_dataset, eval_dataset, report = load_datasets(data_args, args, tokenizer)
    if args.process_index == 0:
        log_data_report(report)
    plan = make_plan(data_args, args, train_dataset)
    schedule = LengthSchedule(data_args.sequence_length_schedule)
    set_seed(args.seed)
    model = load_model(model_args, config, args)
    settings = run_settings(model_args, data_args, args, report["sha256"])
    trainer = MlmTrainer(
        model, args, train_dataset, eval_dataset, tokenizer, settings, plan, schedule, packing=data_args.packing
    )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not trainer.is_fsdp_enabled:
        raise SettingsError("accelerate shards models (FSDP) over GPUs only, and this run has none; launch it without")
    if args.overwrite_output_dir and args.should_save:
        for old in checkpoints_in(args.output_dir):
            shutil.rmtree(old)
        for name in (TRAIN_RESULTS, EVAL_RESULTS):
            (Path(args.output_dir) / name).unlink(missing_ok=True)
    if checkpoint:
        logger.info("Resuming from %s", checkpoint)
        check_changed_settings(checkpoint, settings)
        for name, (old, new) in changed_model_settings(checkpoint, config).items():
            logger.warning("Resuming with %s %s, but %s was saved with %s", name, new, checkpoint, old)
    train_metrics = train(trainer, checkpoint) if args.do_train else {}
    if args.do_train:
        with trainer.writing():
            save_model(trainer)
    eval_metrics = evaluate(trainer, train_dataset, bool(train_metrics)) if eval_dataset is not None else {}
    if trainer.is_world_process_zero():
        with trainer.writing():
            write_results(trainer, train_metrics, eval_metrics, report)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
