"""transformers' Trainer for masked-language modelling, with exact evaluation and counts of tokens."""

import logging
import math
import time

import torch
from transformers import PreTrainedTokenizerBase, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from training.arguments import PretrainingArguments
from training.callbacks import Stopwatch, TrainingProgress
from training.collator import MlmCollator
from training.data import EpochSampler, MlmDataset
from training.exact_trainer import ExactTrainer
from training.masking import IGNORED

logger = logging.getLogger(__name__)


class MlmTrainer(ExactTrainer):
    """
    Pre-trains a masked-language model.

    What differs from ExactTrainer:
    - masks are functions of (seed, epoch, sample): they too are the same after an interruption;
    - the evaluation loss is the mean over all masked tokens, not over batches, with the same masks every time;
    - tokens/s and base pairs/s are counted without padding.

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
        super().__init__(
            model=model,
            args=args,
            sampler=EpochSampler(len(train_dataset), args.global_batch_size, args.seed),
            tokenizer=tokenizer,
            settings=settings,
            data_collator=MlmCollator(tokenizer.pad_token_id, packing=packing),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )
        self.base_pairs_per_token = train_dataset.store.base_pairs_per_token
        self.stopwatch = Stopwatch()
        self.session_tokens = 0  # counted in this process group since start
        self._logged_tokens, self._logged_seconds = 0, 0.0
        self._uncounted_tokens = torch.zeros((), dtype=torch.int64, device=args.device)
        self.add_callback(self.stopwatch)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TrainingProgress)

    # -- data ------------------------------------------------------------------------------------------------------

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
        """As ExactTrainer's; counts the tokens."""
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

    def _save_checkpoint(self, model, trial):
        self.count_tokens()
        super()._save_checkpoint(model, trial)


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
