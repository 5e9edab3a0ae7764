"""Attention filters: from free parameters to one value a place.

Source: Taha, Yang, Shrivastava and Davis, ECCV 2020, arXiv:2007.09748. The unit-norm filter is the method; the softmax
and the Gaussian filter are the alternatives that the authors compare it with.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pml_extensions._constructors import checked_constructor

__all__ = ["Filter", "Gaussian", "Softmax", "UnitNorm"]


class Filter(Protocol):
    """What a filter can do; write another one by giving a class these two methods."""

    def start(self, examples: int, grid: tuple[int, ...]) -> Tensor:
        """Return the parameters (B, P) that an iterative solver starts from."""

    def __call__(self, parameters: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Return the filters (B, *grid) that the parameters (B, P) stand for, each example's from its own row."""


@checked_constructor
@dataclass(frozen=True)
class UnitNorm:
    """f = p / ||p||: any sign, Euclidean norm one.

    Examples:
        >>> UnitNorm()(torch.tensor([[3.0, 4.0]]), (1, 2))
        tensor([[[0.6000, 0.8000]]])
    """

    def start(self, examples: int, grid: tuple[int, ...]) -> Tensor:
        """Return ones, the published start."""
        return torch.ones(examples, math.prod(grid))

    def __call__(self, parameters: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Return p / ||p||."""
        return (F.normalize(parameters, dim=1)).reshape(-1, *grid)


@checked_constructor
@dataclass(frozen=True)
class Softmax:
    """f = softmax(p) over all places: positive, sum one.

    Examples:
        >>> Softmax()(torch.zeros(1, 4), (2, 2)).sum()
        tensor(1.)
    """

    def start(self, examples: int, grid: tuple[int, ...]) -> Tensor:
        """Return ones, the published start: every place alike."""
        return torch.ones(examples, math.prod(grid))

    def __call__(self, parameters: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Return softmax(p)."""
        return (parameters.softmax(dim=1)).reshape(-1, *grid)


@checked_constructor
@dataclass(frozen=True)
class Gaussian:
    """A round Gaussian of sum one whose mean p is free: one place that matters.

    The published code is for 7 x 7 maps; here the mean is counted from the centre of a grid of any size and dimension.

    Args:
        std: standard deviation in places. Default: 1, as published.

    Raises:
        ValueError: if ``std`` is not positive and finite.

    Examples:
        >>> Gaussian()(torch.zeros(1, 2), (3, 3)).argmax()
        tensor(4)
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite, got {self.std}")

    def start(self, examples: int, grid: tuple[int, ...]) -> Tensor:
        """Return zeros: the centre of the map."""
        return torch.zeros(examples, len(grid))

    def __call__(self, parameters: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Return the Gaussian around the mean, counted from the centre."""
        exponent = parameters.new_zeros(len(parameters), *grid)
        for dim, size in enumerate(grid):
            ticks = torch.arange(size, dtype=parameters.dtype, device=parameters.device) - (size - 1) / 2
            along = -(((ticks - parameters[:, dim : dim + 1]) / self.std) ** 2) / 2
            exponent = exponent + along.reshape(-1, *(size if other == dim else 1 for other in range(len(grid))))
        return exponent.flatten(1).softmax(dim=1).reshape(-1, *grid)
