"""What a split is, and what it may offer beside its masks."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pml_extensions._declared_input import ExampleInput
from pml_extensions._slimming import Widths

__all__ = ["Explaining", "Narrowing", "Slimming", "Split", "WithExample"]


class Split(Protocol):
    """Anything that is called with a model and returns bool masks by the names of parameters, True = fit-hypothesis."""

    def __call__(self, model: nn.Module, /) -> Mapping[str, Tensor]:
        """Return the masks."""


@runtime_checkable
class WithExample(Protocol):
    """A split that was given an input to run its model on."""

    @property
    def example_input(self) -> ExampleInput:
        """That input, or None."""


@runtime_checkable
class Explaining(Protocol):
    """A split that tells why it leaves parameters out."""

    def reasons(self, model: nn.Module) -> Mapping[str, str]:
        """Return the reasons by the names of parameters."""


@runtime_checkable
class Slimming(Protocol):
    """A split whose fit-hypothesis is a smaller network."""

    def slim(self, model: nn.Module, data: Iterable[Any] | None = None, *, batches: int = 50) -> Any:
        """Return that network; ``data`` are batches to estimate statistics from."""


@runtime_checkable
class Narrowing(Slimming, Protocol):
    """A split whose slim network has the layers of the dense one, of smaller widths that an analysis finds."""

    def widths(self, model: nn.Module) -> Widths:
        """Return what the analysis finds."""

    def compare(
        self, model: nn.Module, latency: tuple[Tensor, ...] | None = None, *, widths: Widths | None = None
    ) -> Any:
        """Return a comparison of the dense and the slim network, which prints as a table."""
