"""How long a forward pass takes, dense and slim, measured in turn so that a drift of the machine falls on both."""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pml_extensions._statistics import device_of, evaluating

__all__ = ["Latency", "Spread", "check_latency", "measure"]


class Spread(NamedTuple):
    """Median, lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return median and quartiles of two or more values."""
        low, median, high = statistics.quantiles(values, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of an eager forward pass in evaluation mode, dense and slim, and the ratio of passes that alternate.

    ``passes`` of each were counted, after some that were not; ``of`` says of what input and where.
    """

    dense: Spread
    slim: Spread
    ratio: Spread
    passes: int
    of: str

    def __str__(self) -> str:
        return (
            f"latency     dense {self.dense} ms  slim {self.slim} ms  slim / dense {self.ratio}: median (quartiles) of "
            f"{self.passes} passes in turn, {self.of}"
        )


def check_latency(latency: Any, example_input: Any) -> tuple[Tensor, ...] | None:
    """Return the input to measure with: none for False, the split's example for True, or what was given."""
    if latency is False:
        return None
    given = example_input if latency is True else latency
    inputs = given if isinstance(given, tuple) else (given,)
    if not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise TypeError(
            "latency must be an input of the model (a tensor or a tuple of tensors), or True for the example_input of "
            f"the split, got {'True, but the split has none' if latency is True else type(latency).__name__}"
        )
    return inputs


def measure(
    dense: nn.Module, slim: nn.Module, inputs: tuple[Tensor, ...], passes: int = 20, warm_up: int = 3
) -> Latency:
    """Return the latency of two networks, whose modes come back afterwards.

    Args:
        dense: the network.
        slim: the slim one, on the same device.
        inputs: what both take; moved to their device.
        passes: number of counted passes of each.
        warm_up: number of passes of each before these.
    """
    device = device_of(dense)
    inputs = tuple(tensor.to(device) for tensor in inputs)
    with ExitStack() as stack:
        for network in (dense, slim):
            stack.enter_context(evaluating(network))
        rounds = [
            [_milliseconds(network, inputs, device) for network in (dense, slim)] for _ in range(warm_up + passes)
        ]
    counted = rounds[warm_up:]
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in inputs)
    threads = f" with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    dense_times, slim_times = zip(*counted, strict=True)
    ratio = Spread.of([slim_time / dense_time for dense_time, slim_time in counted])
    return Latency(Spread.of(dense_times), Spread.of(slim_times), ratio, passes, f"input {shapes} on {device}{threads}")


def _milliseconds(network: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> float:
    """Return the wall time of a pass, up to the end of what it started on an accelerator."""
    _wait(device)
    start = time.perf_counter()
    network(*inputs)
    _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
