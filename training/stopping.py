"""What ends training early: a loss that is no number or jumps (the batch is saved), and SIGTERM (a checkpoint is)."""

import math
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from transformers import TrainerCallback

from training.checkpoints import how_to_run_again, write_json

WINDOW = 100  # steps whose mean loss a jump is measured against
FEWEST = 20  # steps before jumps are looked for
BATCH_FOLDER = "stopped_at_step_"


class LossError(RuntimeError):
    """Training was stopped because of its loss; the message names step, loss, where the batch is, and what to try."""


class Terminated(RuntimeError):
    """Training was stopped by SIGTERM after saving a checkpoint."""


class StepGuard(TrainerCallback):
    """
    Looks at every optimiser step just before it changes the weights.

    Gradients are left out in fp16, whose scaler skips bad ones, and under DeepSpeed, which keeps them to itself.

    Args:
        trainer: whose `reduce` over processes and output folder are used.
        max_loss_jump: nats above the mean of the last steps at which training stops; 0 for no limit.
    """

    def __init__(self, trainer, max_loss_jump: float):
        self.trainer = trainer
        self.max_loss_jump = max_loss_jump
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.loss = torch.zeros((), device=trainer.args.device)
        self.batches: list[dict] = []
        self.signalled = False  # this process got SIGTERM
        self.terminated = False  # all processes know

    def add(self, inputs: dict, loss: torch.Tensor):
        """Remember one forward and backward pass of the current step."""
        self.batches.append(inputs)
        self.loss += loss.detach()

    def on_step_begin(self, args, state, control, **kwargs):
        self.batches.clear()
        self.loss.zero_()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        hidden = args.fp16 or self.trainer.is_deepspeed_enabled
        gradient = torch.zeros_like(self.loss) if hidden else _sum_of_gradients(model).to(self.loss)
        numbers = torch.stack([self.loss, gradient, torch.full_like(self.loss, float(self.signalled))])
        loss, gradient, signalled = self.trainer.accelerator.reduce(numbers, reduction="mean").tolist()
        self.terminated = self.terminated or signalled > 0
        mean = sum(self.recent) / len(self.recent) if len(self.recent) >= FEWEST else math.inf
        if not math.isfinite(loss) or not math.isfinite(gradient):
            self._stop(f"the {'gradient' if math.isfinite(loss) else 'loss'} is no finite number", loss, mean)
        if self.max_loss_jump and loss > mean + self.max_loss_jump:
            jump = f"the loss rose to {loss:.3f} from a mean of {mean:.3f} over the last {len(self.recent)} steps"
            self._stop(jump, loss, mean)
        self.recent.append(loss)

    def on_step_end(self, args, state, control, **kwargs):
        if self.terminated:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # made up for by `MlmTrainer.make_up_for_evaluation`

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.terminated:  # maybe in the middle of it
            control.should_evaluate = False

    def _stop(self, reason: str, loss: float, mean: float):
        step = self.trainer.state.global_step
        folder = Path(self.trainer.args.output_dir) / f"{BATCH_FOLDER}{step + 1}"
        process = self.trainer.args.process_index
        with self.trainer.writing():
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {
                f"pass{number}.{name}": value.cpu().contiguous()
                for number, inputs in enumerate(self.batches)
                for name, value in inputs.items()
                if torch.is_tensor(value)
            }
            safetensors.torch.save_file(tensors, folder / f"batch_of_process_{process}.safetensors")
            if process == 0:
                content = {"step": step + 1, "reason": reason, "loss": str(loss), "mean_loss": str(mean)}
                epoch, step_of_epoch = divmod(step, self.trainer.plan.steps_per_epoch)
                content |= {"epoch": epoch, "sequences": self.trainer.plan.step(epoch, step_of_epoch).tolist()}
                write_json(folder / "stopped.json", content)
        self.trainer.accelerator.wait_for_everyone()
        raise LossError(
            f"stopped before step {step + 1:,}: {reason}. Its batch is in {folder}; the weights of the last checkpoint "
            "are of an earlier step. Try a lower --learning_rate, a longer warm-up, or a smaller --max_grad_norm; "
            f"--max_loss_jump sets how far the loss may rise (now {self.max_loss_jump:g} nats, 0 for any)"
        )


def _sum_of_gradients(model) -> torch.Tensor:
    """NaN or infinite when any gradient of this process is. Gradients have been clipped, so the sum cannot overflow."""
    gradients = (weight.grad for weight in model.parameters() if weight.grad is not None)
    local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
    return torch.stack([gradient.sum().float() for gradient in local]).sum()


@contextmanager
def stopping_on_sigterm(guard: StepGuard) -> Iterator[None]:
    """Inside, SIGTERM lets the current step finish and a checkpoint be saved; then Terminated is raised."""

    def remember(*_):
        guard.signalled = True

    previous = signal.signal(signal.SIGTERM, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
    if guard.terminated:
        raise Terminated(
            f"stopped by SIGTERM after step {guard.trainer.state.global_step:,}; a checkpoint is saved, "
            f"{how_to_run_again(guard.trainer.args)} to go on"
        )
