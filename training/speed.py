"""Training speed beside what the machine can do: tokens, base pairs, padding, share of the matmul peak (MFU)."""

import functools
import time

import torch
from transformers import TrainerCallback

PEAK_MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns of the product that is timed
PEAK_REPEATS = 8


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


class TokenCounter:
    """
    Counts on the device, without waiting for it: tokens, places of the batch (padding included), masked tokens.

    `totals` are those of all processes since the start of this session, after `collect`.
    """

    def __init__(self, device):
        self._pending = torch.zeros(3, dtype=torch.int64, device=device)
        self.totals = torch.zeros(3, dtype=torch.int64)

    def add(self, inputs: dict[str, torch.Tensor]):
        """Count one batch of this process."""
        mask = inputs.get("attention_mask")
        places = inputs["input_ids"].numel()
        self._pending[0] += places if mask is None else mask.sum().to(self._pending.device)
        self._pending[1] += places
        self._pending[2] += (inputs["labels"] != -100).sum().to(self._pending.device)

    def collect(self, accelerator) -> int:
        """Add what all processes counted since the last call, and return its tokens. Every process must call it."""
        new = accelerator.reduce(self._pending.clone(), reduction="sum").cpu()
        self._pending.zero_()
        self.totals = self.totals + new
        return int(new[0])


class Speedometer:
    """
    Turns counted tokens and seconds into what is logged.

    Args:
        base_pairs_per_token: mean bp of a token.
        flops: of a token and of a masked token, see `training_flops`.
        peak: FLOP/s of all processes together, see `matmul_peak`.
    """

    def __init__(self, base_pairs_per_token: float, flops: tuple[int, int], peak: float):
        self.base_pairs_per_token = base_pairs_per_token
        self.flops = flops
        self.peak = peak
        self._counts, self._seconds = torch.zeros(3, dtype=torch.int64), 0.0

    def since_last(self, counts: torch.Tensor, seconds: float) -> dict[str, float]:
        """tokens/s, base pairs/s, MFU and padding share since the last call."""
        rates = self.rates(counts - self._counts, seconds - self._seconds)
        self._counts, self._seconds = counts, seconds
        return rates

    def rates(self, counts: torch.Tensor, seconds: float) -> dict[str, float]:
        """The same for given counts (tokens, places, masked tokens) and seconds."""
        tokens, places, targets = counts.tolist()
        seconds = max(seconds, 1e-9)
        flops = tokens * self.flops[0] + targets * self.flops[1]
        return {
            "tokens_per_second": tokens / seconds,
            "base_pairs_per_second": tokens / seconds * self.base_pairs_per_token,
            "mfu": flops / seconds / self.peak,
            "padding_share": 1 - tokens / places if places else 0.0,
        }


def training_flops(model) -> tuple[int, int]:
    """
    FLOPs of a training step (forward and backward: 6 per weight) in linear layers: per token, and per masked token.

    The layers of the encoder see every token, the LM head masked tokens only. Attention itself is left out: how much of
    it is computed depends on length and weights (`docs/attention.md`), so the MFU is a lower bound.
    """
    encoder = sum(weight.numel() for weight in model.bert.encoder.parameters() if weight.dim() == 2)
    head = sum(weight.numel() for weight in model.cls.parameters() if weight.dim() == 2)
    return 6 * encoder, 6 * head


@functools.cache
def matmul_peak(device_type: str, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few matrix products on this machine, in the dtype of training: the 100 % of MFU."""
    size = PEAK_MATRIX.get(device_type, 2048)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        a, b = (torch.randn(size, size, device=device_type).to(dtype) for _ in range(2))
        products = [lambda: a @ b]
        with_onednn = device_type == "cpu" and dtype in (torch.float32, torch.bfloat16)
        if with_onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
        return 2 * size**3 / min(_fastest(product, device_type) for product in products)


def _fastest(product, device_type: str) -> float:
    seconds = []
    for _ in range(PEAK_REPEATS):
        start = time.perf_counter()
        product()
        if device_type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
