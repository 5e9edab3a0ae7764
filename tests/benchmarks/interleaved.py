"""Time rivals in turn within one run, so that a drift of the machine's speed falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of one call, up to the end of what it started on a GPU."""
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def interleaved(
    rivals: Mapping[str, Callable[[], object]], rounds: int = 15, warmup: int = 3
) -> dict[str, list[float]]:
    """Return the seconds of ``rounds`` calls of each rival, taken A B C A B C ... after ``warmup`` uncounted rounds."""
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    for counted in [False] * warmup + [True] * rounds:
        for name, function in rivals.items():
            took = seconds(function)
            if counted:
                samples[name].append(took)
    return samples


def ratio(samples: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over the rounds of the time of ``name`` divided by that of ``base``."""
    return statistics.median(a / b for a, b in zip(samples[name], samples[base], strict=True))


def machine() -> str:
    """Return one line about where the figures come from."""
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{device}; torch {torch.__version__}"
