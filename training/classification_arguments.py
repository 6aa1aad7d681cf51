"""Arguments of fine-tuning, with the papers' values as defaults."""

import argparse
import math
import os
from dataclasses import dataclass, field

from transformers.hf_argparser import string_to_bool

from modeling.configuration_strandbert import CLASSIFIER_HEADS, CLASSIFIER_POOLINGS
from training.arguments import RunArguments
from training.classification_data import PROBLEM_TYPES
from training.command_line import RECIPES as PRETRAINING_RECIPES
from training.command_line import recipe_names

RECIPES = PRETRAINING_RECIPES / "classification"
LEARNING_RATE, LORA_LEARNING_RATE = 3e-5, 1e-4  # DNABERT-2 paper, appendix A.2
PASS_BASE_PAIRS = 1 << 17  # of one pass, unless the user gives its rows
BEST_METRICS = {"eval_loss": False, "eval_mcc": True}  # what may choose the best step: whether greater is better
AUTO = "auto"
SMALLEST = {"average_tokens": 1, "augment_crop": 0, "early_stopping": 0, "collapse_patience": 0}
STRAND_SETTINGS = ("augment_reverse_complement", "average_strands")  # True, False, or AUTO until the task is known


@dataclass
class ModelArguments:
    """Which model, which head, which weights are trained."""

    recipe: str | None = field(
        default=None,
        metadata={"help": f"settings to start from: {recipe_names(RECIPES)}, or a .yaml file; flags override them"},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "pre-trained model: StrandBERT (folder or Hub name), any encoder of transformers with a "
            "classifier, or kmer-logistic, the baseline of k-mer counts, which takes seconds to minutes",
            "aliases": ["--model"],
        },
    )
    config_name: str | None = field(
        default=None, metadata={"help": "folder or config.json of a model to train from random weights instead"}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "tokenizer; default: that of the model"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run code that comes with a model (StrandBERT needs none)"}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "how attention is computed; default: the fastest one for device and length"}
    )
    classifier_head: str | None = field(
        default=None,
        metadata={
            "help": "pooler (dense, tanh, dropout, linear; DNABERT-2) or mlp (linear, LayerNorm, GELU, dropout, "
            "linear; dnaGrinder); default: the model's",
            "choices": list(CLASSIFIER_HEADS),
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "what the head reads: the first token ([CLS]), the mean over all, or the largest value of each "
            "feature (max); default: the model's",
            "choices": list(CLASSIFIER_POOLINGS),
        },
    )
    dropout: float | None = field(default=None, metadata={"help": "dropout in the encoder; default: the model's"})
    classifier_dropout: float | None = field(
        default=None, metadata={"help": "dropout in the head; default: the model's"}
    )
    use_lora: bool = field(default=False, metadata={"help": "train low-rank adapters and the head only"})
    lora_r: int = field(default=8, metadata={"help": "rank of the adapters"})
    lora_alpha: int = field(default=16, metadata={"help": "scale of the adapters"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before the adapters"})
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "names of the linear layers to adapt; default: Wqkv dense gated_layers wo of StrandBERT, queries "
            "and values of other models"
        },
    )
    merge_lora: bool = field(
        default=False, metadata={"help": "add the adapters to the weights at the end and save a whole model"}
    )

    def __post_init__(self):
        if self.lora_r < 1 or self.lora_alpha <= 0:
            raise ValueError(f"lora_r is {self.lora_r} and lora_alpha {self.lora_alpha}; both must be more than 0")
        for name in ("lora_dropout", "dropout", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie from 0 to below 1")


@dataclass
class DataArguments:
    """Which sequences and labels."""

    task_name: str | None = field(
        default=None,
        metadata={"help": "task of the benchmark: tf/0, mouse/2, prom_core_tata, EMP/H3, ... (needs --data_dir)"},
    )
    data_dir: str | None = field(default=None, metadata={"help": "folder that the benchmark was unpacked to"})
    train_file: list[str] = field(
        default_factory=list, metadata={"help": "CSV or TSV (also .gz) or Parquet, one or several"}
    )
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "rows that choose the best step; default: a part of the training rows"}
    )
    test_file: list[str] = field(default_factory=list, metadata={"help": "rows that are only evaluated, at the end"})
    validation_split_percentage: float = field(
        default=10.0, metadata={"help": "percent of the training rows held out where there is no validation file"}
    )
    sequence_column: str = field(default="sequence", metadata={"help": "column of the sequences"})
    pair_column: str | None = field(default=None, metadata={"help": "column of the second sequences, for pairs"})
    label_column: list[str] = field(
        default_factory=lambda: ["label"],
        metadata={"help": "column of the labels; several for multi-label and regression"},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "default: single-label with one label column, multi-label (columns of 0 and 1) with several",
            "choices": list(PROBLEM_TYPES),
        },
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "most tokens of a row, special ones included; default: what the model can read"}
    )
    truncate: bool = field(default=False, metadata={"help": "cut longer rows at the end instead of stopping"})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "use only the first training rows (for trials)"}
    )

    def __post_init__(self):
        for name in ("train_file", "validation_file", "test_file", "label_column"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else value)
        if len(set(self.label_column)) < len(self.label_column):
            raise ValueError(f"label_column names a column twice: {' '.join(self.label_column)}")
        if self.max_seq_length is not None and self.max_seq_length < 3:
            raise ValueError(f"max_seq_length is {self.max_seq_length}; two special tokens and one of the row are 3")


@dataclass
class FineTuningArguments(RunArguments):
    """The arguments of every run, and what fine-tuning adds to them."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate; default: 3e-5, with LoRA 1e-4 (DNABERT-2 paper)"}
    )
    learning_rate_sweep: list[float] = field(
        default_factory=list,
        metadata={
            "help": "train once with each of these learning rates and keep the run with the lowest validation loss, or "
            "the highest --metric_for_best_model eval_mcc (dnaGrinder paper: 20 values from 1e-5 to 7e-5)"
        },
    )
    num_train_epochs: float | None = field(
        default=None,
        metadata={"help": "default: as long as a paper trained on the task (--duration); 5 for other data"},
    )
    duration: str = field(
        default="dnabert2",
        metadata={"help": "the paper whose length of training a task gets", "choices": ["dnabert2", "dnagrinder"]},
    )
    warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": "steps of linear warm-up (below 1: share of the run); default: 50, at most a tenth of the run, or "
            "--warmup_ratio"
        },
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay"})
    global_batch_size: int | None = field(
        default=32, metadata={"help": "rows per optimiser step over all processes and accumulated passes"}
    )
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "rows of one pass; default: the global batch shared out, at most 32, fewer of long rows"},
    )
    eval_strategy: str = field(default="steps", metadata={"help": "steps or epoch"})
    eval_steps: float | None = field(default=200, metadata={"help": "steps between evaluations and checkpoints"})
    metric_for_best_model: str | None = field(
        default="eval_loss",
        metadata={"help": "what chooses the best step, on the validation rows: eval_loss (both papers) or eval_mcc"},
    )
    save_total_limit: int | None = field(
        default=1, metadata={"help": "checkpoints to keep while training, besides the best"}
    )
    logging_steps: float = field(default=20, metadata={"help": "steps between log entries"})
    early_stopping: int = field(
        default=0, metadata={"help": "stop after this many evaluations that are not the best so far; 0: never"}
    )
    collapse_patience: int = field(
        default=5, metadata={"help": "stop after this many evaluations with one and the same answer; 0: never"}
    )
    class_weights: str = field(
        default="none", metadata={"help": "balanced: rare classes weigh more", "choices": ["none", "balanced"]}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "factor of the learning rate from one layer to the one below it"}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "evaluate and keep a moving average of the weights, of which a step leaves this share, such as "
            "0.999; 0: the weights themselves"
        },
    )
    augment_reverse_complement: str = field(
        default="false",
        metadata={
            "help": "read a random strand of every training row; auto: where the task of the benchmark has no strand",
            "nargs": "?",
            "const": "true",
        },
    )
    augment_tokens: float = field(
        default=0.0,
        metadata={"help": "chance that a boundary between two bases ends a token, in training: varies the tokens"},
    )
    augment_crop: int = field(default=0, metadata={"help": "most bp left off at each end of a training row"})
    average_strands: str = field(
        default="false",
        metadata={
            "help": "read validation and test rows on both strands at the end and average (only for tasks without a "
            "strand); auto: where the task of the benchmark has none",
            "nargs": "?",
            "const": "true",
        },
    )
    average_tokens: int = field(
        default=1,
        metadata={
            "help": "read validation and test rows in this many tokenisations at the end and average (see "
            "--augment_tokens)"
        },
    )

    def __post_init__(self):
        self.rows_given = self.per_device_train_batch_size is not None
        if not self.rows_given:
            share = max(1, (self.global_batch_size or 32) // int(os.environ.get("WORLD_SIZE", 1)))
            self.per_device_train_batch_size = max(rows for rows in range(1, 33) if share % rows == 0)
        if self.eval_strategy not in ("steps", "epoch"):
            raise ValueError(f"eval_strategy is {self.eval_strategy!r}; the best step is found by steps or epoch")
        self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps
        self.load_best_model_at_end = True
        chosen = f"eval_{str(self.metric_for_best_model or 'loss').removeprefix('eval_')}"
        if chosen not in BEST_METRICS:
            raise ValueError(
                f"metric_for_best_model is {self.metric_for_best_model!r}; it must be one of {', '.join(BEST_METRICS)}"
            )
        greater = BEST_METRICS[chosen]
        if self.greater_is_better not in (None, greater):
            raise ValueError(f"greater_is_better is {self.greater_is_better}; of {chosen} it is {greater}")
        self.metric_for_best_model, self.greater_is_better = chosen, greater
        self.warmup_given = not (self.warmup_steps is None and self.warmup_ratio is None)
        if not self.warmup_given:
            self.warmup_steps = 50
        for name in ("augment_tokens", "layer_decay", "label_smoothing_factor", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie from 0 to 1")
        for name, least in SMALLEST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}; it must be more than 0")
        if not self.do_train:
            raise ValueError("do_train is False; a saved model is evaluated by python -m inference.predict")
        for name in STRAND_SETTINGS:
            setattr(self, name, _true_false_or_auto(name, getattr(self, name)))
        self.epochs_given = self.num_train_epochs is not None
        self.num_train_epochs = 5 if self.num_train_epochs is None else self.num_train_epochs
        if self.average_tokens > 1 and not self.augment_tokens:
            raise ValueError("average_tokens varies tokens by --augment_tokens, which is 0")
        super().__post_init__()

    def limit_rows(self, most: int):
        """Take at most so many rows through one pass; accumulation keeps the global batch."""
        share, rows = self.global_batch_size // self.world_size, self.per_device_train_batch_size
        fitting = [number for number in range(1, rows + 1) if share % number == 0 and number <= max(most, 1)]
        self.per_device_train_batch_size = fitting[-1]
        self.gradient_accumulation_steps = self._accumulation()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        steps = super().get_warmup_steps(num_training_steps)
        return steps if self.warmup_given else min(steps, max(num_training_steps // 10, 1))


def _true_false_or_auto(name: str, value: str | bool) -> bool | str:
    if str(value).lower() == AUTO:
        return AUTO
    try:
        return string_to_bool(str(value))
    except argparse.ArgumentTypeError:
        raise ValueError(f"{name} is {value!r}; it must be true, false or auto") from None
