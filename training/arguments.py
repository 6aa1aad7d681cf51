"""Arguments of training runs on both supported majors of transformers, with the papers' values as defaults."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from training.schedules import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, SCHEDULES, WEIGHT_DECAY

LAST_CHECKPOINT = "True"  # as value of resume_from_checkpoint: the last complete one in output_dir


@dataclass
class RunArguments(TrainingArguments):
    """
    transformers' TrainingArguments, and what every run here adds to them.

    transformers 5 dropped `warmup_ratio` and `overwrite_output_dir`; they are kept here under both majors.
    """

    warmup_ratio: float | None = field(default=None, metadata={"help": "share of the steps spent on the warm-up"})
    warmup_steps: float | None = field(
        default=None, metadata={"help": "steps of warm-up, instead of --warmup_ratio (a number below 1 is a ratio)"}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "sequences per optimiser step over all processes; gradient accumulation is derived from it "
            "(default: per_device_train_batch_size x processes x gradient_accumulation_steps)"
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "start over: delete the checkpoints in --output_dir instead of resuming"}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint folder to go on from; True: the last complete one in --output_dir, which must exist; "
            "default: the last complete one in --output_dir, if any"
        },
    )
    do_train: bool = field(default=True, metadata={"help": "train"})
    logging_steps: float = field(default=10, metadata={"help": "steps between log entries"})
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "with several processes: look for parameters without a gradient in every step. The model has none, "
            "so this only costs time"
        },
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "drop columns of the data that the model does not read. There are none, so it changes nothing"
        },
    )
    report_to: str | None = field(default="none", metadata={"help": "none, all, tensorboard, wandb, ..."})

    def __post_init__(self):
        if self.warmup_steps is not None and self.warmup_steps < 1:
            self.warmup_ratio = self.warmup_ratio or self.warmup_steps
        elif self.warmup_ratio is None:
            self.warmup_ratio = 0.0
        self.warmup_steps = int(self.warmup_steps or 0)
        if str(self.resume_from_checkpoint).lower() in ("auto", "false"):
            self.resume_from_checkpoint = None
        elif str(self.resume_from_checkpoint).lower() == "true":  # transformers' scripts take it, YAML gives a bool
            self.resume_from_checkpoint = LAST_CHECKPOINT
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; it must lie from 0 to {(1 << 32) - 1:,}")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio:g}; it must lie from 0 to 1 (0.06 is 6 % of the run)")
        super().__post_init__()
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.global_batch_size is None:
            self.global_batch_size = self.batch_size_per_pass * self.gradient_accumulation_steps
        else:
            self.gradient_accumulation_steps = self._accumulation()

    @property
    def batch_size_per_pass(self) -> int:
        """Sequences that all processes together take through one forward pass."""
        return self.train_batch_size * self.world_size

    def _accumulation(self) -> int:
        steps, remainder = divmod(self.global_batch_size, self.batch_size_per_pass)
        if remainder or not steps:
            per_device = math.gcd(self.global_batch_size // self.world_size, self.per_device_train_batch_size)
            whole = self.batch_size_per_pass * max(1, round(self.global_batch_size / self.batch_size_per_pass))
            advice = (
                f"set --per_device_train_batch_size to {per_device}, say, or --global_batch_size to {whole}"
                if self.global_batch_size % self.world_size == 0
                else f"choose a multiple of the {self.world_size} processes"
            )
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of {self.train_batch_size} sequences per "
                f"process x {self.world_size} processes; {advice}"
            )
        return steps

    def get_warmup_steps(self, num_training_steps: int) -> int:
        return self.warmup_steps or math.ceil(num_training_steps * self.warmup_ratio)


@dataclass
class PretrainingArguments(RunArguments):
    """
    The arguments of every run, and what pre-training adds to them.

    Learning rate, warm-up and decay come from `schedule` unless given.
    """

    schedule: str = field(
        default="dnabert2",
        metadata={
            "help": "learning-rate schedule of a paper, its warm-up scaled to this run: "
            "dnabert2 (peak 5e-4, 6 %% warm-up, linear) or dnagrinder (peak 4e-4, 13.4 %% warm-up, cosine)",
            "choices": list(SCHEDULES),
        },
    )
    learning_rate: float | None = field(default=None, metadata={"help": "peak learning rate; default: the schedule's"})
    lr_scheduler_type: str | None = field(
        default=None, metadata={"help": "decay after the warm-up (linear, cosine, ...); default: the schedule's"}
    )
    adam_beta1: float = field(default=ADAM_BETA1, metadata={"help": "AdamW beta 1"})
    adam_beta2: float = field(default=ADAM_BETA2, metadata={"help": "AdamW beta 2"})
    adam_epsilon: float = field(default=ADAM_EPSILON, metadata={"help": "AdamW epsilon"})
    weight_decay: float = field(default=WEIGHT_DECAY, metadata={"help": "AdamW weight decay"})
    global_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "tokens per optimiser step over all processes, in place of --global_batch_size; with --packing"
        },
    )
    per_device_train_batch_tokens: int = field(
        default=16384,
        metadata={
            "help": "with --global_batch_tokens: the most tokens of one forward pass of a process; the accumulation "
            "follows from it"
        },
    )
    max_loss_jump: float = field(
        default=2.0,
        metadata={
            "help": "stop, with the batch saved, when the loss of a step exceeds the mean of the last 100 steps by "
            "more than this many nats; 0 for never. A loss or gradient that is no finite number always stops"
        },
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "compile the feed-forward blocks with torch.compile; best on a GPU"}
    )
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch"})
    eval_steps: float | None = field(default=500, metadata={"help": "steps between evaluations"})
    save_total_limit: int | None = field(default=3, metadata={"help": "checkpoints to keep; 0 for all"})

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        schedule = SCHEDULES[self.schedule]
        if self.learning_rate is None:
            self.learning_rate = schedule.learning_rate
        if self.lr_scheduler_type is None:
            self.lr_scheduler_type = schedule.lr_scheduler_type
        if self.warmup_ratio is None and self.warmup_steps is None:
            self.warmup_ratio = schedule.warmup_ratio
        if self.global_batch_tokens and self.global_batch_size:
            raise ValueError("give either global_batch_size (sequences) or global_batch_tokens, not both")
        # transformers' own would compile the whole model, and with it padding and logits that nobody asked for
        self.compiles_layers, self.torch_compile = self.torch_compile, False
        super().__post_init__()
        if self.global_batch_tokens:
            self.global_batch_size = None
