"""The learning-rate schedules that the two papers print, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Peak learning rate, share of the steps spent on the linear warm-up, and transformers' name of the decay."""

    learning_rate: float
    warmup_ratio: float
    lr_scheduler_type: str


# Both papers count warm-up in steps; as a share of theirs it fits runs of any length.
SCHEDULES = {
    # DNABERT-2, section 3.3: linear to 5e-4 in 30,000 of 500,000 steps, then linear to 0.
    "dnabert2": Schedule(5e-4, 30_000 / 500_000, "linear"),
    # dnaGrinder, section 6.2: linear to 4e-4 in 16,000 of 119,000 steps, then cosine.
    "dnagrinder": Schedule(4e-4, 16_000 / 119_000, "cosine"),
}

# AdamW of both papers.
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, WEIGHT_DECAY = 0.9, 0.98, 1e-6, 1e-5
