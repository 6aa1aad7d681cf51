"""transformers' Trainer for masked-language modelling, with exact resume, exact evaluation and whole checkpoints."""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from training.arguments import PretrainingArguments
from training.callbacks import Stopwatch, TrainingProgress
from training.checkpoints import (
    SETTINGS_FILE,
    how_to_go_on,
    load_optimizer,
    make_self_contained,
    mark_complete,
    remove_old_checkpoints,
    save_optimizer,
    write_json,
)
from training.collator import MlmCollator
from training.data import EpochSampler, MlmDataset
from training.masking import IGNORED
from training.storage import writing_into

logger = logging.getLogger(__name__)


class MlmTrainer(Trainer):
    """
    Pre-trains a masked-language model.

    What differs from Trainer:
    - order, masks and dropout are functions of (seed, epoch or step, sample or process): nothing random is stored, and
      an interrupted run continues bit for bit;
    - the evaluation loss is the mean over all masked tokens, not over batches, with the same masks every time;
    - tokens/s and base pairs/s are counted without padding;
    - every saved folder is self-contained, free of pickle, and marked when it is complete.

    Args:
        tokenizer, settings: saved with every checkpoint, settings as run_settings.json.
        packing: train on packed instead of padded batches.
    """

    args: PretrainingArguments

    def __init__(
        self,
        model,
        args: PretrainingArguments,
        train_dataset: MlmDataset,
        eval_dataset: MlmDataset | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict,
        packing: bool = False,
    ):
        self.keep_checkpoints = args.save_total_limit
        args.save_total_limit = None  # Trainer deletes the old checkpoint before the new one is known to be whole
        super().__init__(
            model=model,
            args=args,
            data_collator=MlmCollator(tokenizer.pad_token_id, packing=packing),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )
        self.tokenizer = tokenizer
        self.settings = settings
        self.base_pairs_per_token = train_dataset.store.base_pairs_per_token
        self.sampler = EpochSampler(len(train_dataset), args.global_batch_size, args.seed)
        self.stopwatch = Stopwatch()
        self.session_tokens = 0  # counted in this process group since start
        self._logged_tokens, self._logged_seconds = 0, 0.0
        self._uncounted_tokens = torch.zeros((), dtype=torch.int64, device=args.device)
        self._micro_step = (-1, 0)
        self.add_callback(self.stopwatch)
        self.add_callback(_SetEpoch(self.sampler))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TrainingProgress)

    # -- data ------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        return self.sampler

    def get_eval_dataloader(self, eval_dataset=None):
        """As Trainer's, but always padded: batches of the evaluation are gathered by row."""
        collator = self.data_collator
        self.data_collator = MlmCollator(collator.pad_token_id)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    # -- training --------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """One forward and backward pass, with dropout drawn from (seed, step, pass, process)."""
        step, micro_step = self._micro_step
        micro_step = micro_step + 1 if step == self.state.global_step else 0
        self._micro_step = (self.state.global_step, micro_step)
        entropy = (self.args.seed, self.state.global_step, micro_step, self.args.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
        mask = inputs.get("attention_mask")
        self._uncounted_tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        return super().training_step(model, inputs, num_items_in_batch)

    def count_tokens(self):
        """Add the tokens of all processes to the state. Every process must call it; it waits for the device."""
        tokens = int(self.accelerator.reduce(self._uncounted_tokens, reduction="sum"))
        self._uncounted_tokens.zero_()
        self.state.num_input_tokens_seen += tokens
        self.session_tokens += tokens

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """As Trainer's; adds the tokens seen, and since the last entry tokens/s and base pairs/s."""
        self.count_tokens()
        logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        if "loss" in logs:
            seconds = max(self.stopwatch.seconds - self._logged_seconds, 1e-9)
            logs["tokens_per_second"] = (self.session_tokens - self._logged_tokens) / seconds
            logs["base_pairs_per_second"] = logs["tokens_per_second"] * self.base_pairs_per_token
            self._logged_tokens, self._logged_seconds = self.session_tokens, self.stopwatch.seconds
        super().log(logs)

    def throughput(self) -> dict[str, float]:
        """Mean tokens/s and base pairs/s of the training steps of this session."""
        self.count_tokens()
        rate = self.session_tokens / max(self.stopwatch.seconds, 1e-9)
        return {
            "train_tokens_per_second": rate,
            "train_base_pairs_per_second": rate * self.base_pairs_per_token,
            "train_tokens_seen": self.state.num_input_tokens_seen,
        }

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Loss (nats per masked token), masked-token accuracy, perplexity and bits per base; exact over processes."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:  # evaluation without training
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        totals = torch.zeros(4, dtype=torch.float64)
        start = time.perf_counter()
        for inputs in dataloader:
            with torch.no_grad():
                sums = _masked_token_sums(model, self._prepare_inputs(inputs))
            # Rows that fill up the last batch for an even number per process are taken off again here.
            totals += self.accelerator.gather_for_metrics(sums).cpu().double().sum(0)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        seconds = time.perf_counter() - start
        nats, correct, targets, tokens = totals.tolist()
        loss = nats / targets
        store = dataloader.dataset.store
        metrics = {
            "loss": loss,
            "accuracy": correct / targets,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_base": loss / math.log(2) / store.base_pairs_per_target,
            "masked_tokens": int(targets),
            "tokens_per_second": tokens / seconds,
            "base_pairs_per_second": tokens / seconds * store.base_pairs_per_token,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def writing(self):
        """Context in which an error of writing to the output folder becomes a StorageError that says how to go on."""
        return writing_into(
            self.args.output_dir, lambda: how_to_go_on(self.args.output_dir, self.args.overwrite_output_dir)
        )

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle
            write_json(folder / SETTINGS_FILE, self.settings)
            make_self_contained(folder, self.tokenizer)

    def _save_checkpoint(self, model, trial):
        self.count_tokens()
        with self.writing():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with self.writing():
                mark_complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
            if self.keep_checkpoints:
                remove_old_checkpoints(self.args.output_dir, self.keep_checkpoints, self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # sharded: their own formats
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            save_optimizer(output_dir, self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            load_optimizer(checkpoint, self.optimizer, self.lr_scheduler)

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


def _masked_token_sums(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(batch, 4): per row the summed -log p of the targets, correct predictions, targets, and tokens."""
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns]
    scores = logits[rows, columns].float()
    nats = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    correct = (scores.argmax(-1) == targets).float()
    sums = torch.zeros(len(labels), 4, device=labels.device)
    sums.index_add_(0, rows, torch.stack((nats, correct, torch.ones_like(nats), torch.zeros_like(nats)), dim=1))
    sums[:, 3] = inputs["attention_mask"].sum(1)
    return sums
