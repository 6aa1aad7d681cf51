"""transformers' Trainer for masked-language modelling, with exact evaluation and counts of tokens."""

import logging
import math
import time

import torch
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, TrainerControl
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import EvalLoopOutput

from training.arguments import PretrainingArguments
from training.batches import BatchPlan, LengthSchedule, Passes, PassSampler
from training.callbacks import TrainingProgress
from training.collator import MlmCollator
from training.data import MlmDataset
from training.exact_trainer import ExactTrainer
from training.markov import base_pairs_of_tokens
from training.masking import IGNORED
from training.speed import Speedometer, Stopwatch, TokenCounter, matmul_peak, training_flops
from training.stopping import StepGuard

logger = logging.getLogger(__name__)


class MlmTrainer(ExactTrainer):
    """
    Pre-trains a masked-language model.

    What differs from ExactTrainer:
    - masks are functions of (seed, epoch, sample): they too are the same after an interruption;
    - the evaluation loss is the mean over all masked tokens, not over batches, with the same masks every time;
    - tokens/s, base pairs/s and MFU are counted without padding, whose share is reported;
    - a loss that jumps or is no number stops training before it changes the weights, with the batch saved.

    Args:
        plan: which sequences make up each step and each forward pass.
        schedule: longest sequence by step.
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
        plan: BatchPlan,
        schedule: LengthSchedule,
        packing: bool = False,
    ):
        flops = training_flops(model)  # before it is sharded
        self.plan = plan
        self.schedule = schedule
        super().__init__(
            model=model,
            args=args,
            sampler=PassSampler(plan),
            tokenizer=tokenizer,
            settings=settings,
            data_collator=MlmCollator(tokenizer.pad_token_id, packing=packing),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )
        self.stopwatch = Stopwatch()
        self.counter = TokenCounter(args.device)
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        peak = matmul_peak(args.device.type, dtype) * args.world_size if args.do_train else math.inf
        self.speedometer = Speedometer(train_dataset.store.base_pairs_per_token, flops, peak)
        self.guard = StepGuard(self, args.max_loss_jump)
        self.add_callback(self.stopwatch)
        self.add_callback(self.guard)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TrainingProgress)

    # -- data ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """One item is the batch of one forward pass; accelerate deals the passes out to the processes."""
        args = self.args
        loader = torch.utils.data.DataLoader(
            Passes(self.train_dataset, self.plan, self.schedule, self.data_collator),
            batch_size=1,
            sampler=self.sampler,
            collate_fn=_only,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

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
        """As ExactTrainer's; counts the tokens and lets the guard see the loss."""
        self.counter.add(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.add(inputs, loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """As Trainer's; adds the tokens seen, and since the last entry tokens/s, base pairs/s, MFU, padding share."""
        self.count_tokens()
        logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        if "loss" in logs:
            logs |= self.speedometer.since_last(self.counter.totals, self.stopwatch.seconds)
        super().log(logs)

    def count_tokens(self):
        """Add the tokens of all processes to the state. Every process must call it; it waits for the device."""
        self.state.num_input_tokens_seen += self.counter.collect(self.accelerator)

    def throughput(self) -> dict[str, float]:
        """Means over the training steps of this session: tokens/s, base pairs/s, MFU, padding share."""
        self.count_tokens()
        rates = self.speedometer.rates(self.counter.totals, self.stopwatch.seconds)
        return {f"train_{name}": value for name, value in rates.items()} | {
            "train_tokens_seen": self.state.num_input_tokens_seen
        }

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """
        Loss (nats per masked token), masked-token accuracy, perplexity and bits per base; exact over processes.

        Bits per base: the loss in bits, summed over the masked tokens, over the bases of these tokens.
        """
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:  # evaluation without training
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        base_pairs = torch.from_numpy(base_pairs_of_tokens(self.tokenizer)).to(self.args.device)
        totals = torch.zeros(5, dtype=torch.float64)
        start = time.perf_counter()
        for inputs in dataloader:
            with torch.no_grad():
                sums = _masked_token_sums(model, self._prepare_inputs(inputs), base_pairs)
            # Rows that fill up the last batch for an even number per process are taken off again here.
            totals += self.accelerator.gather_for_metrics(sums).cpu().double().sum(0)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        seconds = time.perf_counter() - start
        nats, correct, targets, tokens, target_base_pairs = totals.tolist()
        loss = nats / targets
        metrics = {
            "loss": loss,
            "accuracy": correct / targets,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_base": nats / math.log(2) / target_base_pairs,
            "masked_tokens": int(targets),
            "masked_base_pairs": int(target_base_pairs),
            "tokens_per_second": tokens / seconds,
            "base_pairs_per_second": tokens / seconds * dataloader.dataset.store.base_pairs_per_token,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    def make_up_for_evaluation(self, checkpoint: str):
        """
        Evaluate where the checkpoint that was loaded stands when SIGTERM left the evaluation out that was due there.

        The log and the best weights so far are then those of a run that was not interrupted.
        """
        state, flow = self.state, DefaultFlowCallback()
        due = flow.on_step_end(self.args, state, TrainerControl()).should_evaluate
        if state.global_step % self.plan.steps_per_epoch == 0:
            due = due or flow.on_epoch_end(self.args, state, TrainerControl()).should_evaluate
        done = any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)
        if due and not done and self._determine_best_metric(self._evaluate(None, None), None):
            state.best_model_checkpoint = checkpoint

    def _save_checkpoint(self, model, trial):
        self.count_tokens()
        super()._save_checkpoint(model, trial)


class MissedEvaluation(TrainerCallback):
    """Before the first step after a checkpoint, what `make_up_for_evaluation` does."""

    def __init__(self, trainer: MlmTrainer, checkpoint: str):
        self.trainer = trainer
        self.checkpoint = checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.make_up_for_evaluation(self.checkpoint)


def _only(batches: list):
    """The one item of a list."""
    return batches[0]


def _masked_token_sums(model, inputs: dict[str, torch.Tensor], base_pairs: torch.Tensor) -> torch.Tensor:
    """(batch, 5): per row the summed -log p of the targets, correct predictions, targets, tokens, bp of the targets."""
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns]
    scores = logits[rows, columns].float()
    nats = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    correct = (scores.argmax(-1) == targets).float()
    none = torch.zeros_like(nats)
    sums = torch.zeros(len(labels), 5, device=labels.device)
    columns = (nats, correct, torch.ones_like(nats), none, base_pairs[targets].to(nats))
    sums.index_add_(0, rows, torch.stack(columns, dim=1))
    sums[:, 3] = inputs["attention_mask"].sum(1)
    return sums
