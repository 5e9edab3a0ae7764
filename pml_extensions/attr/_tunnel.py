"""What captum's ``NoiseTunnel`` needs: a reference for all noisy copies of an image, and reports that have a mean.

``NoiseTunnel`` repeats the inputs and the arguments that it knows; ``reference`` is not among them. It adds up tensors
and nothing else. It calls what lies beneath ``log_usage``, which tells its calls from a user's.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from pml_extensions.attr._arguments import check_inputs
from pml_extensions.attr._solving import Report

Attribute = TypeVar("Attribute", bound=Callable[..., Any])


class MeanReport(Tensor):
    """(B, 4), the mean reports of the noisy copies of each image; ``converged`` and ``exact`` are shares of them."""

    @property
    def objective(self) -> Tensor:
        """Return the mean objective, (B,)."""
        return self.column(0)

    @property
    def steps(self) -> Tensor:
        """Return the mean number of steps, (B,)."""
        return self.column(1)

    @property
    def converged(self) -> Tensor:
        """Return the share of copies whose search converged, (B,)."""
        return self.column(2)

    @property
    def exact(self) -> Tensor:
        """Return the share of copies with a closed form, (B,)."""
        return self.column(3)

    def column(self, index: int) -> Tensor:
        """Return a column as a plain tensor."""
        return self.as_subclass(Tensor)[..., index]


def works_in_tunnels(attribute: Attribute) -> Attribute:
    """Return ``attribute``, with a method beneath it that suits ``NoiseTunnel``."""
    plain = attribute.__wrapped__  # type: ignore[attr-defined] # log_usage is untyped

    @wraps(plain)
    def in_tunnel(self: object, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["reference"] = _expanded(kwargs.get("reference"), len(check_inputs(inputs)[0]))
        result = plain(self, inputs, *args, **kwargs)
        if not kwargs.get("return_report") or isinstance(result, list):
            return result
        maps, report = result
        return maps, _as_tensor(report, maps.dtype)

    attribute.__wrapped__ = in_tunnel  # type: ignore[attr-defined]
    return attribute


def _expanded(reference: Any, examples: int) -> Any:
    """Return a reference for each copy of its image, if there is one for each image."""
    if not isinstance(reference, Tensor) or reference.ndim != 2 or len(reference) < 2 or examples % len(reference):
        return reference
    return reference.repeat_interleave(examples // len(reference), dim=0)


def _as_tensor(report: Report, dtype: torch.dtype) -> Tensor:
    return torch.stack([column.to(dtype) for column in vars(report).values()], dim=1).as_subclass(MeanReport)
