"""Whether a sequence fits into memory, and if not, the length that would."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

ADVICE = "read it in windows (window=...), or load the model with dtype=torch.bfloat16"


def bytes_per_token(config, dtype: torch.dtype) -> int:
    """
    Peak memory of a forward pass without gradients, beyond the weights, for each token of a long sequence.

    Measured on a CPU: 35 to 40 bytes per hidden unit in fp32, 23 to 28 in bf16, whose attention adds up in fp32.
    """
    return (16 + 6 * dtype.itemsize) * config.hidden_size


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new tensor could take on a device; None where the system does not tell."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    free = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    return min([*free, *_left_in_control_groups()], default=None)


def _left_in_control_groups(own: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[int]:
    """
    Bytes that the limit of each control group leaves in which this process is (a container, a job of a cluster, a
    service), those above it included; of version 1 and 2. In a container, `root` may itself be the innermost group.
    """
    left = []
    with contextlib.suppress(OSError):
        for line in Path(own).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mounted, limit, usage, cache = Path(root), "memory.max", "memory.current", "inactive_file"
            if controllers:  # version 1
                mounted = mounted / "memory"
                limit, usage, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                if "memory" not in controllers.split(","):
                    continue
            names = Path(path).parts[1:]
            for group in [mounted.joinpath(*names[:depth]) for depth in range(len(names) + 1)]:
                with contextlib.suppress(OSError, ValueError):  # no such group here; "max" is no number
                    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    used = int((group / usage).read_text()) - int(statistics.get(cache, 0))
                    left.append(int((group / limit).read_text()) - used)
    return left


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of torch says that an allocation failed; on a CPU that is a plain RuntimeError."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
    known = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    return known or isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextlib.contextmanager
def must_fit(
    model, longest: int, tokens: int, bases_per_token: float, batch_option: str = "batch_tokens", advice: str = ADVICE
) -> Iterator[None]:
    """
    Around a forward pass over `tokens` tokens, of which the longest sequence has `longest`.

    batch_option: what the caller's user lowers to make batches smaller. advice: what to do about a single sequence.

    Raises:
        MemoryError: before the pass where a CPU's memory is not enough (Linux would end the process), or when an
            allocation failed; states the length that would have fitted.
    """
    advice = advice if tokens == longest else f"lower {batch_option}"
    each = bytes_per_token(model.config, model.dtype)
    free = free_memory(model.device)
    if model.device.type == "cpu" and free is not None and tokens * each > free:
        raise MemoryError(_advice(model, longest, tokens, each, free, bases_per_token, advice))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = error
    else:
        return
    raise MemoryError(_advice(model, longest, tokens, each, free, bases_per_token, advice)) from problem


def _advice(model, longest: int, tokens: int, each: int, free: int | None, bases_per_token: float, advice: str) -> str:
    what = f"a sequence of {tokens:,} tokens" if tokens == longest else f"a batch of {tokens:,} tokens"
    message = f"{what} does not fit into the memory of {model.device}: "
    fits = tokens // 2  # where an allocation failed although the estimate says that there is room
    if free is not None and tokens * each > free:
        fits = max(0, free // each)
        message += f"it needs about {tokens * each / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
    message += f"{fits:,} tokens, about {fits * bases_per_token:,.0f} bp, would fit"
    return f"{message}; {advice}"
