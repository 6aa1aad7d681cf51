"""transformers' Trainer for classification and regression: exact evaluation over all rows, collapse detector, LoRA."""

import contextlib
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from training.arguments import RunArguments
from training.checkpoints import make_self_contained
from training.classification_batches import (
    ClassificationCollator,
    LengthBucketSampler,
    SequenceDataset,
    View,
    evaluation_batches,
)
from training.classification_data import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Labels
from training.classification_model import STRANDBERT, Classifier, layer_depths
from training.exact_trainer import ExactTrainer
from training.metrics import compute_metrics, constant_loss, label_scale
from training.weight_average import WeightAverage

logger = logging.getLogger(__name__)

EVALUATION_BASE_PAIRS = {"cpu": 1 << 14, "cuda": 1 << 18}  # of a batch, padding counted
NEAR_CONSTANT = 1e-3  # share of the loss of a constant answer; having learnt less is having learnt nothing
RANKS = 0.6  # area under the ROC curve of scores that tell rows apart, even where the same class is always likelier


class ClassificationTrainer(ExactTrainer):
    """
    Fine-tunes a classifier or regressor.

    What differs from ExactTrainer:
    - the loss is computed here, for any model that returns logits: cross-entropy, binary cross-entropy, squared error
      of standardised labels; a batch counts the same however many processes share it;
    - evaluation takes every row once, in batches of similar length without padding where the model allows it;
    - layers nearer to the input may learn more slowly.

    Args:
        class_weights: float32 (classes,) or (label columns,), None for equal ones.
        views: ways of reading a sequence whose outputs `predict_logits` averages; evaluations during training take the
            first one only.
        layer_decay: factor of the learning rate from one layer to the one below.
        ema_decay: of the moving average of the weights that is evaluated and saved in their place; 0: none.
    """

    def __init__(
        self,
        classifier: Classifier,
        args: RunArguments,
        train_dataset: SequenceDataset,
        eval_dataset: SequenceDataset,
        labels: Labels,
        settings: dict,
        class_weights: np.ndarray | None = None,
        views: tuple[View, ...] = (View(),),
        layer_decay: float = 1.0,
        collapse_patience: int = 3,
        ema_decay: float = 0.0,
    ):
        super().__init__(
            classifier.model,
            args,
            LengthBucketSampler(train_dataset.examples.lengths(), args.global_batch_size, args.seed),
            classifier.tokenizer,
            settings,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=ClassificationCollator(classifier.tokenizer, classifier.packed, classifier.reads_mask),
        )
        self.model_accepts_loss_kwargs = False  # every batch counts the same
        self.lap_start = time.perf_counter()
        self.labels = labels
        self.views = views
        self.layer_decay = layer_decay
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).to(args.device)
        mean, deviation = label_scale(train_dataset.examples.labels, labels)
        self.label_mean, self.label_deviation = (
            torch.from_numpy(values).to(args.device) for values in (mean, deviation)
        )
        self.collapse = CollapseDetector(self, collapse_patience)
        self.add_callback(self.collapse)
        self.add_callback(_EvaluateAtTheEnd())
        self.average = WeightAverage(classifier.model, ema_decay) if ema_decay else None
        if self.average:
            self.add_callback(self.average)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(FineTuningProgress)

    # -- training --------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args, **kwargs):
        """As Trainer's, with a learning rate that falls by `layer_decay` from layer to layer."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.layer_decay != 1 and len(optimizer.param_groups) <= 2:
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            depths = layer_depths(self.model)
            groups = list(optimizer.param_groups)
            optimizer.param_groups.clear()
            for group in groups:
                by_depth: dict[int, list] = {}
                for parameter in group["params"]:
                    by_depth.setdefault(depths[names[parameter]], []).append(parameter)
                for depth, parameters in sorted(by_depth.items()):
                    scaled = {"params": parameters, "lr": group["lr"] * self.layer_decay**depth}
                    optimizer.add_param_group(group | scaled)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean loss of a batch; with class weights a mean of weighted losses, so that every row keeps its share."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self._loss(outputs.logits.float(), labels)
        return (loss, outputs) if return_outputs else loss

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.labels.problem_type == SINGLE_LABEL:
            options = {"weight": self.class_weights, "label_smoothing": self.args.label_smoothing_factor}
            return F.cross_entropy(logits, labels, reduction="none", **options).mean()
        if self.labels.problem_type == MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.class_weights)
        return F.mse_loss(logits, (labels - self.label_mean) / self.label_deviation)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        mean = self.accelerator.reduce(loss.detach(), reduction="mean")  # so that all processes stop together
        if not torch.isfinite(mean):
            raise CollapseError(
                f"step {self.state.global_step + 1:,}: the loss is {float(mean)}. Lower --learning_rate (it is "
                f"{self.args.learning_rate:g}), or train in float32 without --bf16 and --fp16"
            )
        return loss

    def lap(self) -> float:
        """Seconds since the last call, or since the trainer was made; kept in the log, they outlive interruptions."""
        before, self.lap_start = self.lap_start, time.perf_counter()
        return self.lap_start - before

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float | None]:
        """Metrics of `training.metrics` on the validation rows in the first view, logged and seen by callbacks."""
        dataset = eval_dataset or self.eval_dataset
        start = time.perf_counter()
        with self._averaged():
            logits = self.predict_logits(dataset, self.views[:1])
        metrics = self.metrics(logits, dataset.examples.labels)
        metrics["runtime"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.state.log_history[-1]["seconds"] = self.lap()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
        """Those of `training.metrics`, the loss weighted as in training, and how many different answers there are."""
        deviation = self.label_deviation.cpu().numpy()
        weights = None if self.class_weights is None else self.class_weights.cpu().numpy()
        found = compute_metrics(logits, labels, self.labels.problem_type, deviation, weights)
        return found | {"distinct_predictions": distinct_predictions(logits, self.labels, deviation)}

    @torch.no_grad()
    def predict_logits(self, dataset: SequenceDataset, views: tuple[View, ...] | None = None) -> np.ndarray:
        """
        float32 (rows, outputs), the mean over the views (None: all of them); regression in the units of the labels.

        Raises:
            CollapseError: outputs that are not finite.
        """
        views = views or self.views
        model, device = self.model, self.args.device
        training = model.training
        model.eval()
        lengths = dataset.examples.lengths()
        budget = EVALUATION_BASE_PAIRS.get(device.type, EVALUATION_BASE_PAIRS["cuda"])
        batches = evaluation_batches(lengths, budget)[self.args.process_index :: self.args.world_size]
        logits = torch.zeros(len(lengths), len(self.labels.names), device=device)
        hidden = self.args.disable_tqdm or not self.is_local_process_zero() or lengths.sum() < 100 * budget
        for rows in tqdm(batches, desc="evaluating", leave=False, disable=hidden):
            for view in views:
                inputs = self._prepare_inputs(self.data_collator([dataset.sample(row, view) for row in rows]))
                inputs.pop("labels")
                with self.compute_loss_context_manager():
                    outputs = model(**inputs).logits
                logits[rows] += outputs.float() / len(views)
        model.train(training)
        logits = self.accelerator.reduce(logits, reduction="sum")
        if self.labels.problem_type == REGRESSION:
            logits = logits * self.label_deviation + self.label_mean
        if not torch.isfinite(logits).all():
            raise CollapseError(
                f"step {self.state.global_step:,}: the model's outputs are not finite. Lower --learning_rate (it is "
                f"{self.args.learning_rate:g})"
            )
        return logits.cpu().numpy()

    def _averaged(self):
        return self.average.swapped() if self.average else contextlib.nullcontext()

    # -- saving ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        with self._averaged():
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average and self.args.should_save:
            self.average.save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average:
            self.average.checkpoint = resume_from_checkpoint

    def complete_folder(self, folder: Path):
        """Configuration with label names beside an adapter; code and portable tokenizer files for StrandBERT."""
        config = self.accelerator.unwrap_model(self.model).config
        if not (folder / "config.json").is_file():
            config.architectures = [type(self.accelerator.unwrap_model(self.model).base_model.model).__name__]
            config.save_pretrained(folder)
        if config.model_type == STRANDBERT:
            make_self_contained(folder, self.tokenizer)
        else:
            self.tokenizer.save_pretrained(folder)


class CollapseError(RuntimeError):
    """Training that left the finite numbers; the message says what to change."""


class CollapseDetector(TrainerCallback):
    """
    Stops a training that learns nothing: the same answer for every validation row, and a loss that is no better than
    that of answering with the frequencies of the labels, in `patience` evaluations in a row.

    `reason` then says what happened and what to try. patience 0 never stops.
    """

    def __init__(self, trainer: ClassificationTrainer, patience: int):
        self.patience = patience
        self.labels = trainer.labels
        examples = trainer.eval_dataset.examples
        deviation = trainer.label_deviation.cpu().numpy()
        weights = None if trainer.class_weights is None else trainer.class_weights.cpu().numpy()
        outputs = len(trainer.labels.names)
        self.constant_loss = constant_loss(examples.labels, trainer.labels.problem_type, outputs, deviation, weights)
        self.largest_share = 0.0  # of a class, where --class_weights balanced would help
        if trainer.labels.problem_type == SINGLE_LABEL and weights is None:
            self.largest_share = np.bincount(examples.labels).max() / len(examples)
        self.reason: str | None = None

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.look(args, state):
            control.should_training_stop = True

    def look(self, args, state) -> bool:
        """Whether the training has collapsed at its last evaluation."""
        warm_up = args.get_warmup_steps(state.max_steps)
        seen = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] > warm_up]
        last = seen[-self.patience :]
        if self.patience and len(last) == self.patience and all(self.is_constant(entry) for entry in last):
            self.reason = self.explain(last[-1], args.learning_rate, f"in {self.patience} evaluations in a row")
        return self.reason is not None

    def is_constant(self, metrics: dict) -> bool:
        """Whether the metrics of an evaluation (eval_*) are those of a constant answer."""
        if self.constant_loss < NEAR_CONSTANT:  # validation rows of one class: the same answer for all is right
            return False
        worthless = metrics["eval_loss"] > self.constant_loss * (1 - NEAR_CONSTANT)
        ranks = (metrics.get("eval_auroc") or 0) >= RANKS
        return metrics["eval_distinct_predictions"] <= 1 and worthless and not ranks

    def explain(self, metrics: dict, learning_rate: float, when: str) -> str:
        """What happened, and what to try."""
        if learning_rate >= 1e-3:
            advice = (
                f"--learning_rate {learning_rate:g} is high: try {learning_rate / 100:g}, or 3e-5 as both papers do"
            )
        elif self.largest_share > 0.8:
            advice = f"{self.largest_share:.0%} of the validation rows are of one class: try --class_weights balanced"
        else:
            advice = (
                f"try a lower --learning_rate (it is {learning_rate:g}), a longer warm-up (--warmup_steps), another "
                "--seed; from random weights a higher --learning_rate such as 3e-4, and more steps"
            )
        return (
            f"the model has collapsed, or learnt nothing: the same answer for every sequence {when} (validation loss "
            f"{metrics['eval_loss']:.4f}; a constant answer reaches {self.constant_loss:.4f}). {advice}"
        )


class _EvaluateAtTheEnd(TrainerCallback):
    """transformers 4 does not evaluate after the last step when that is no multiple of eval_steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.save_strategy == SaveStrategy.STEPS:
            control.should_evaluate = control.should_save = True


class FineTuningProgress(ProgressCallback):
    """One bar with loss and time left; evaluations stay on screen as lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}")
        elif "eval_loss" in logs:
            shown = (("mcc", "MCC"), ("auroc", "AUROC"), ("accuracy", "accuracy"), ("spearman", "Spearman"))
            found = ((title, logs.get(f"eval_{name}")) for name, title in shown)
            numbers = "".join(f", {title} {value:.4f}" for title, value in found if value is not None)
            self.training_bar.write(f"step {state.global_step:,}: validation loss {logs['eval_loss']:.4f}{numbers}")


def distinct_predictions(logits: np.ndarray, labels: Labels, deviation: np.ndarray) -> int:
    """
    How many different answers there are: classes, sets of labels, or (regression) numbers to a thousandth of the
    standard deviation of the labels.
    """
    if labels.problem_type == SINGLE_LABEL:
        return len(np.unique(logits.argmax(axis=1)))
    if labels.problem_type == MULTI_LABEL:
        return len(np.unique(logits > 0, axis=0))
    return len(np.unique(np.round(logits / deviation, 3), axis=0))


def balanced_weights(values: np.ndarray, labels: Labels) -> np.ndarray | None:
    """
    float32 weights that give every class the same share of the loss: rows / (classes x rows of the class); for
    multi-label the weight of a 1 in each column, 1 where all rows are alike. None for regression.
    """
    if labels.problem_type == REGRESSION:
        return None
    if labels.problem_type == MULTI_LABEL:
        ones = values.sum(axis=0)
        weights = (len(values) - ones) / np.maximum(ones, 1)
        return np.where((ones == 0) | (ones == len(values)), 1, weights).astype(np.float32)
    counts = np.bincount(values, minlength=len(labels.names))
    return (len(values) / (len(labels.names) * np.maximum(counts, 1))).astype(np.float32)
