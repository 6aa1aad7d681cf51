"""The progress bar of pre-training."""

from transformers import ProgressCallback


class TrainingProgress(ProgressCallback):
    """One bar with loss, speed, MFU, padding and time left; evaluations stay on screen as lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not state.is_world_process_zero:
            return
        if "loss" in logs:
            shown = [
                f"loss {logs['loss']:.3f}",
                f"{_short(logs['tokens_per_second'])} tokens/s",
                f"{_short(logs['base_pairs_per_second'])} bp/s",
                f"MFU {logs['mfu']:.0%}",
                f"padding {logs['padding_share']:.0%}",
            ]
            self.training_bar.set_postfix_str(", ".join(shown))
        elif "eval_loss" in logs:
            self.training_bar.write(
                f"step {state.global_step:,}: held-out loss {logs['eval_loss']:.4f}, "
                f"masked-token accuracy {logs['eval_accuracy']:.4f}, {logs['eval_bits_per_base']:.4f} bits per base"
            )


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
