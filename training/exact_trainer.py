"""transformers' Trainer with exact resume and whole, portable checkpoints: what pre-training and fine-tuning share."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from training.arguments import RunArguments
from training.checkpoints import (
    COMPLETE,
    gathered_weights,
    how_to_go_on,
    load_optimizer,
    load_scaler,
    load_sharded_weights,
    make_self_contained,
    mark_complete,
    remove_old_checkpoints,
    save_optimizer,
    save_scaler,
    write_json,
)
from training.data import EpochSampler
from training.storage import SETTINGS_FILE, writing_into


class ExactTrainer(Trainer):
    """
    A Trainer whose interrupted runs continue bit for bit (on a CPU).

    - order and dropout are functions of (seed, epoch or step, process): nothing random is stored;
    - every saved folder is self-contained, free of pickle, and marked when it is complete.

    Args:
        sampler: order of the training samples.
        tokenizer, settings: saved with every checkpoint, settings as run_settings.json.
    """

    args: RunArguments

    def __init__(
        self,
        model,
        args: RunArguments,
        sampler: EpochSampler,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict,
        **kwargs,
    ):
        self.keep_checkpoints = max(0, args.save_total_limit or 0)  # below 0 transformers keeps all, too
        args.save_total_limit = None  # Trainer deletes the old checkpoint before the new one is known to be whole
        super().__init__(model=model, args=args, **kwargs)
        self.tokenizer = tokenizer
        self.settings = settings
        self.sampler = sampler
        self._micro_step = (-1, 0)
        self.add_callback(_SetEpoch(sampler))

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        return self.sampler

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """One forward and backward pass, with dropout drawn from (seed, step, pass, process)."""
        step, micro_step = self._micro_step
        micro_step = micro_step + 1 if step == self.state.global_step else 0
        self._micro_step = (self.state.global_step, micro_step)
        entropy = (self.args.seed, self.state.global_step, micro_step, self.args.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
        return super().training_step(model, inputs, num_items_in_batch)

    def writing(self):
        """Context in which an error of writing to the output folder becomes a StorageError that says how to go on."""
        return writing_into(self.args.output_dir, lambda: how_to_go_on(self.args))

    def complete_folder(self, folder: Path):
        """Add to a saved folder what loading it needs besides weights and config.json."""
        make_self_contained(folder, self.tokenizer)

    def save_model(self, output_dir=None, _internal_call=False):
        if self.is_fsdp_enabled:
            weights = gathered_weights(self.model)
            if self.args.should_save:
                self._save(output_dir, weights)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle
            write_json(folder / SETTINGS_FILE, self.settings)
            self.complete_folder(folder)

    def _save_checkpoint(self, model, trial):
        folder, step = Path(self.args.output_dir), self.state.global_step
        checkpoint = folder / f"checkpoint-{step}"
        with self.writing():
            if self.args.should_save:
                (checkpoint / COMPLETE).unlink(missing_ok=True)  # of a damaged one that is written again
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with self.writing():
                mark_complete(checkpoint)
            if self.keep_checkpoints:
                remove_old_checkpoints(folder, self.keep_checkpoints, self.state.best_model_checkpoint, step)

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.is_deepspeed_enabled:  # its own format, sharded
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            save_optimizer(output_dir, self.optimizer, self.lr_scheduler, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            load_optimizer(checkpoint, self.optimizer, self.lr_scheduler)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled:
            load_sharded_weights(resume_from_checkpoint, self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result):
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())  # saved once
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self):
        if self.is_fsdp_enabled:
            load_sharded_weights(self.state.best_model_checkpoint, self.model)
        else:
            super()._load_best_model()

    def _save_scaler(self, output_dir):
        if self.accelerator.scaler is not None and self.args.should_save:
            save_scaler(output_dir, self.accelerator.scaler)

    def _load_scaler(self, checkpoint):
        if self.accelerator.scaler is not None and checkpoint is not None:
            load_scaler(checkpoint, self.accelerator.scaler)

    def _save_rng_state(self, output_dir):
        """Nothing to save: every random number is a function of seed, step and sample."""

    def _load_rng_state(self, checkpoint):
        """Nothing to load, see `_save_rng_state`."""


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch. accelerate does so as well, but not in every case of resuming with processes."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(state.global_step // self.sampler.steps_per_epoch)
