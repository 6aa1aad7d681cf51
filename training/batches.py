"""
Which sequences make up each optimiser step and each forward pass: a function of (seed, epoch, step), nothing else.

A step takes the same sequences on any number of processes and with any accumulation, so that runs can be compared,
interrupted and moved to another machine. Only how a step is shared out over forward passes depends on the machine.
"""

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

SEQUENCE_ORDERS = ("random", "length", "file")


class SampleKey(NamedTuple):
    """What a dataset is asked for: the epoch selects the mask, max_length (tokens) cuts; None leaves whole."""

    epoch: int
    index: int
    max_length: int | None = None


class PassKey(NamedTuple):
    """One forward pass of one process; step counts from the start of the epoch."""

    epoch: int
    step: int
    accumulation: int
    process: int


def random_order(num_samples: int, seed: int) -> Callable[[int], np.ndarray]:
    """Another permutation every epoch, drawn from (seed, epoch)."""
    return partial(_permutation, num_samples, seed)


def length_order(lengths: np.ndarray, genomes: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """
    Sequence-length warm-up (dnaGrinder section 2.1.2): genomes in the given order, inside each by number of tokens.

    Sequences of one genome that are equally long come in an order drawn from (seed, epoch).

    Args:
        lengths, genomes: (num_samples,) tokens of each sequence, and the number of its genome.
    """
    return partial(_by_length, lengths, genomes, seed)


def file_order(num_samples: int) -> Callable[[int], np.ndarray]:
    """As the files hold them."""
    return partial(_as_it_is, num_samples)


def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_samples)


def _by_length(lengths: np.ndarray, genomes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    return np.lexsort((_permutation(len(lengths), seed, epoch), lengths, genomes))


def _as_it_is(num_samples: int, epoch: int) -> np.ndarray:
    return np.arange(num_samples)


class BatchPlan:
    """
    Shares an epoch out over steps and forward passes.

    Args:
        order: epoch -> indices of all sequences, each once; only that of the current epoch is kept.
        processes, accumulation: forward passes of a step are processes x accumulation.
    """

    steps_per_epoch: int

    def __init__(self, order: Callable[[int], np.ndarray], processes: int, accumulation: int):
        self.processes = processes
        self.accumulation = accumulation
        self._order = order
        self._cached: tuple[int, np.ndarray | None] = (-1, None)

    def __getstate__(self):  # for data workers that are spawned
        return vars(self) | {"_cached": (-1, None)}

    def order(self, epoch: int) -> np.ndarray:
        if self._cached[0] != epoch:
            self._cached = (epoch, None)  # free the old one first
            self._cached = (epoch, self._order(epoch))
        return self._cached[1]

    def samples(self, key: PassKey) -> np.ndarray:
        """Indices of the sequences of one forward pass."""
        raise NotImplementedError

    def step(self, epoch: int, step: int) -> np.ndarray:
        """Indices of the sequences of a whole step, over all passes and processes."""
        passes = [(a, p) for p in range(self.processes) for a in range(self.accumulation)]
        return np.concatenate([self.samples(PassKey(epoch, step, *place)) for place in passes])


class SequenceBatches(BatchPlan):
    """
    A fixed number of sequences per step. The last step of an epoch is filled up with the epoch's own first sequences.

    Args:
        num_samples: sequences of an epoch.
        global_batch_size: sequences of a step.
        lanes: how many places of the epoch are read at once: lane i of a step takes its sequences from the i-th part
            of the epoch. With a multiple of the processes, each process reads its own part of the files only.
    """

    def __init__(self, order, processes, accumulation, num_samples: int, global_batch_size: int, lanes: int = 1):
        super().__init__(order, processes, accumulation)
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.per_pass = global_batch_size // (processes * accumulation)
        self.lanes = lanes
        self.steps_per_epoch = -(-num_samples // global_batch_size)

    def samples(self, key: PassKey) -> np.ndarray:
        first = (key.process * self.accumulation + key.accumulation) * self.per_pass
        place = np.arange(first, first + self.per_pass)
        per_lane = self.global_batch_size // self.lanes
        lane, offset = np.divmod(place, per_lane)
        start = lane * self.num_samples // self.lanes
        length = np.maximum((lane + 1) * self.num_samples // self.lanes - start, 1)
        position = start + (key.step * per_lane + offset) % length
        return self.order(key.epoch)[position % self.num_samples]


class TokenBatches(BatchPlan):
    """
    A fixed number of tokens per step, as near as whole sequences allow, and no forward pass above a token budget.

    An epoch is cut into steps of equal size; the sequences of a step are shared out over its passes, the longest first,
    each to the pass that has the fewest tokens (all processes then wait little for each other). A pass exceeds its
    share by less than the longest sequence, which is how the accumulation is derived from the budget.

    Args:
        lengths: (num_samples,) tokens of each sequence, [CLS] and [SEP] included.
        global_batch_tokens: tokens of a step.
        tokens_per_pass: upper bound for one forward pass of one process.

    Raises:
        ValueError: a budget that does not hold two of the longest sequences, or steps too small to give every pass one.
    """

    def __init__(self, order, processes: int, lengths: np.ndarray, global_batch_tokens: int, tokens_per_pass: int):
        longest, total = int(lengths.max()), int(lengths.sum())
        accumulation = token_accumulation(global_batch_tokens, tokens_per_pass, longest, processes)
        super().__init__(order, processes, accumulation)
        self.lengths = lengths
        self.steps_per_epoch = max(1, -(-total // global_batch_tokens))
        self._bounds: tuple[int, np.ndarray | None] = (-1, None)
        self._step: tuple[tuple[int, int], list[np.ndarray]] = ((-1, -1), [])
        passes = processes * accumulation
        if total / self.steps_per_epoch < (passes + 1) * longest:  # else every pass gets a sequence
            raise ValueError(
                f"steps of {total // self.steps_per_epoch:,} tokens are too small for {processes} processes x "
                f"{accumulation} passes and sequences of up to {longest:,} tokens; set --global_batch_tokens to "
                f"{(passes + 1) * longest:,} or more, and train on at least as many tokens"
            )

    def samples(self, key: PassKey) -> np.ndarray:
        if self._step[0] != (key.epoch, key.step):
            self._step = (key.epoch, key.step), self._share_out(key.epoch, key.step)
        return self._step[1][key.accumulation * self.processes + key.process]

    def _share_out(self, epoch: int, step: int) -> list[np.ndarray]:
        if self._bounds[0] != epoch:
            ends = np.cumsum(self.lengths[self.order(epoch)])
            targets = np.arange(self.steps_per_epoch + 1) * (ends[-1] / self.steps_per_epoch)
            self._bounds = epoch, np.searchsorted(ends, targets[1:-1], side="right")
        starts = np.concatenate(([0], self._bounds[1], [len(self.lengths)]))
        indices = self.order(epoch)[starts[step] : starts[step + 1]]
        lengths = self.lengths[indices]
        passes = [(0, number, []) for number in range(self.processes * self.accumulation)]
        for place in np.argsort(-lengths, kind="stable").tolist():
            tokens, number, places = passes[0]
            places.append(place)
            heapq.heapreplace(passes, (tokens + int(lengths[place]), number, places))
        return [indices[sorted(places)] for _, _, places in sorted(passes, key=lambda entry: entry[1])]


def token_accumulation(global_batch_tokens: int, tokens_per_pass: int, longest: int, processes: int) -> int:
    """
    Passes per process, so that none holds more than `tokens_per_pass`.

    Raises:
        ValueError: two sequences of `longest` tokens do not fit into a pass.
    """
    if tokens_per_pass < 2 * longest:
        raise ValueError(
            f"a forward pass of {tokens_per_pass:,} tokens does not hold two sequences of {longest:,} tokens; raise "
            f"--per_device_train_batch_tokens to {2 * longest:,} at least, or lower --max_seq_length"
        )
    return -(-(global_batch_tokens + longest) // (processes * (tokens_per_pass - longest)))


class LengthSchedule:
    """
    Longest sequence by step: (0, 64), (5000, 128) cuts to 64 tokens until step 5,000 and to 128 from then on.

    After Li et al. 2022 (reference 21 of dnaGrinder): sequences are cut, a step keeps its sequences.

    Raises:
        ValueError: text that is not STEP:TOKENS with rising steps, the first 0.
    """

    def __init__(self, stages: list[str]):
        try:
            pairs = [tuple(int(part) for part in stage.split(":")) for stage in stages]
            self.steps = [step for step, _ in pairs]
            self.lengths = [length for _, length in pairs]
        except ValueError:
            raise ValueError(
                f"sequence_length_schedule {' '.join(stages)}: write STEP:TOKENS, as in 0:64 5000:128"
            ) from None
        if self.steps and (self.steps[0] != 0 or sorted(set(self.steps)) != self.steps or min(self.lengths) < 3):
            raise ValueError(
                f"sequence_length_schedule {' '.join(stages)}: steps must rise from 0, lengths be 3 tokens or more"
            )

    def __call__(self, step: int) -> int | None:
        if not self.steps:
            return None
        return self.lengths[np.searchsorted(self.steps, step, side="right") - 1]


class PassSampler(torch.utils.data.Sampler):
    """Yields the PassKey of every forward pass of an epoch, one process after the other: accelerate deals them out."""

    def __init__(self, plan: BatchPlan):
        self.plan = plan
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation * self.plan.processes

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __iter__(self) -> Iterator[PassKey]:
        epoch = self.epoch
        for step in range(self.plan.steps_per_epoch):
            for accumulation in range(self.plan.accumulation):
                for process in range(self.plan.processes):
                    yield PassKey(epoch, step, accumulation, process)


class Passes(torch.utils.data.Dataset):
    """Collated batches by PassKey."""

    def __init__(self, dataset, plan: BatchPlan, schedule: LengthSchedule, collator):
        self.dataset = dataset
        self.plan = plan
        self.schedule = schedule
        self.collator = collator

    def __len__(self) -> int:
        return len(self.dataset)

    def keys(self, key: PassKey) -> list[SampleKey]:
        """What a forward pass consists of."""
        max_length = self.schedule(key.epoch * self.plan.steps_per_epoch + key.step)
        return [SampleKey(key.epoch, index, max_length) for index in self.plan.samples(key).tolist()]

    def __getitem__(self, key: PassKey) -> dict[str, torch.Tensor | int]:
        return self.collator([self.dataset[sample] for sample in self.keys(key)])
