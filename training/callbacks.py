"""Training speed and the progress bar."""

import time

from transformers import ProgressCallback, TrainerCallback


class Stopwatch(TrainerCallback):
    """Seconds spent on training steps, data loading included, evaluation and saving left out."""

    def __init__(self):
        self.seconds = 0.0
        self._since = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._since = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def on_evaluate(self, args, state, control, **kwargs):
        self._since = time.perf_counter()

    on_save = on_evaluate


class TrainingProgress(ProgressCallback):
    """One bar with loss, tokens/s and time left; evaluations stay on screen as lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}, {logs['tokens_per_second']:,.0f} tokens/s")
        elif "eval_loss" in logs:
            self.training_bar.write(
                f"step {state.global_step:,}: held-out loss {logs['eval_loss']:.4f}, "
                f"masked-token accuracy {logs['eval_accuracy']:.4f}"
            )
