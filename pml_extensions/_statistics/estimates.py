"""The statistics of one norm, gathered over forward passes: the plain mean over the norm's calls."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pml_extensions._statistics import processes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Estimate", "estimate_of", "statistics_of"]

_INITIAL = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the statistics that a norm gathers in training, by name; of any other module none.

    A frozen batch norm gathers none and has no momentum: its statistics are constants.
    """
    found = {name: tensor for name, tensor in module.named_buffers(recurse=False) if name in _INITIAL}
    return found if hasattr(module, "momentum") and found.keys() != {"num_batches_tracked"} else {}


def estimate_of(name: str, norm: nn.Module) -> "Estimate":
    """Return the estimate that suits a norm."""
    shared = isinstance(norm, nn.SyncBatchNorm) and processes.initialised()
    return _OverProcesses(name, norm) if shared else _ByItself(name, norm)


class Estimate(ABC):
    """A context in which a norm gathers new statistics; after an error, or without a call, it has the old ones again.

    Attributes:
        batches: how many batches the statistics are the mean of; one that n processes share counts 1/n in each.
    """

    def __init__(self, name: str, norm: Any) -> None:
        self.name = name
        self.norm = norm
        self.batches = 0.0
        self._statistics = statistics_of(norm)
        self._before = {name: tensor.clone() for name, tensor in self._statistics.items()}
        self._momentum = norm.momentum

    def __enter__(self) -> "Self":
        for name, tensor in self._statistics.items():
            tensor.fill_(_INITIAL[name])
        self._hook = self.norm.register_forward_pre_hook(self._gather, with_kwargs=True)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._hook.remove()
        self.norm.momentum = self._momentum
        if error or not self.batches:
            for name, tensor in self._statistics.items():
                tensor.copy_(self._before[name])

    @abstractmethod
    def _gather(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See a call of the norm."""

    @abstractmethod
    def settle(self) -> None:
        """Let the norm hold what was gathered."""

    @property
    def moments(self) -> list[Tensor]:
        """The means and variances that the norm holds."""
        return [tensor for tensor in self._statistics.values() if tensor.is_floating_point()]

    @property
    def sums(self) -> Tensor:
        """The number of batches, and the means and variances times that number."""
        moments = torch.cat(self.moments).double()
        return torch.cat([moments.new_ones(1), moments]) * self.batches

    @sums.setter
    def sums(self, sums: Tensor) -> None:
        self.batches = sums[0].item()
        if self.batches:
            sizes = [len(tensor) for tensor in self.moments]
            for tensor, values in zip(self.moments, torch.split(sums[1:], sizes), strict=True):
                tensor.copy_(values / self.batches)
            if "num_batches_tracked" in self._statistics:
                self._statistics["num_batches_tracked"].fill_(round(self.batches))


class _ByItself(Estimate):
    """Of a norm that gathers statistics itself, in training mode."""

    def __enter__(self) -> "Self":
        super().__enter__()
        self.norm.training = True  # not by train(), which would reach dropout within the norm
        return self

    def _gather(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002 (a hook's form)
        if self.batches == 1:
            self.settle()
        self.batches += 1
        norm.momentum = 1 / self.batches  # the n-th call counts 1/n: the plain mean

    def settle(self) -> None:
        """Raise if a norm that is not torch's did not take the statistics of a call at a momentum of 1."""
        same = all(bool((tensor == _INITIAL[name]).all()) for name, tensor in self._statistics.items())
        if same and self.batches and not isinstance(self.norm, _NormBase):
            raise ValueError(
                f"model has a norm {self.name!r}, a {type(self.norm).__name__}, that does not gather statistics as "
                "torch's norms do: new = (1 - momentum) * old + momentum * batch; estimate them in its own way"
            )


class _OverProcesses(Estimate):
    """Of a synchronised batch norm, over the batches of all processes of its group together.

    It stays in evaluation mode, and finds the statistics of each batch in place of its own: in training mode it would
    refuse to run on the CPU.
    """

    _mean: Tensor = torch.zeros(())

    def _gather(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mean, biased, unbiased = processes.mean_and_variances(args[0] if args else kwargs["input"], norm.process_group)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(biased)
        share = 1 / processes.number(norm.process_group)
        self.batches += share
        self._mean = self._mean + (torch.stack([mean, unbiased]) - self._mean) * (share / self.batches)

    def settle(self) -> None:
        """Let the norm hold the mean over the batches."""
        if self.batches:
            self.norm.running_mean.copy_(self._mean[0])
            self.norm.running_var.copy_(self._mean[1])
