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

__all__ = ["Filter", "Gaussian", "Softmax", "UnitNorm"]


class Filter(Protocol):
    """What a filter can do; write another one by giving a class these two methods."""

    def start(self, examples: int, grid: tuple[int, int]) -> Tensor:
        """Return the parameters (B, P) that an iterative solver starts from."""

    def __call__(self, parameters: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the filters (B, H, W) that the parameters (B, P) stand for, each example's from its own row."""


@dataclass(frozen=True)
class UnitNorm:
    """f = p / ||p||: any sign, Euclidean norm one.

    Examples:
        >>> UnitNorm()(torch.tensor([[3.0, 4.0]]), (1, 2))
        tensor([[[0.6000, 0.8000]]])
    """

    def start(self, examples: int, grid: tuple[int, int]) -> Tensor:
        """Return ones, the published start."""
        return torch.ones(examples, grid[0] * grid[1])

    def __call__(self, parameters: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return p / ||p||."""
        return (F.normalize(parameters, dim=1)).reshape(-1, *grid)


@dataclass(frozen=True)
class Softmax:
    """f = softmax(p) over all places: positive, sum one.

    Examples:
        >>> Softmax()(torch.zeros(1, 4), (2, 2)).sum()
        tensor(1.)
    """

    def start(self, examples: int, grid: tuple[int, int]) -> Tensor:
        """Return ones, the published start: every place alike."""
        return torch.ones(examples, grid[0] * grid[1])

    def __call__(self, parameters: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return softmax(p)."""
        return (parameters.softmax(dim=1)).reshape(-1, *grid)


@dataclass(frozen=True)
class Gaussian:
    """A round Gaussian of sum one whose mean p is free: one place that matters.

    The published code is for 7 x 7 maps; here the mean is counted from the centre of any map.

    Args:
        std: standard deviation in places. Default: 1, as published.

    Examples:
        >>> Gaussian()(torch.zeros(1, 2), (3, 3)).argmax()
        tensor(4)
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite, got {self.std}")

    def start(self, examples: int, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Return zeros: the centre of the map."""
        return torch.zeros(examples, 2)

    def __call__(self, parameters: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the Gaussian around the mean (row, column), counted from the centre."""
        rows, columns = (
            torch.arange(size, dtype=parameters.dtype, device=parameters.device) - (size - 1) / 2 for size in grid
        )
        row_part = -(((rows - parameters[:, :1]) / self.std) ** 2) / 2
        column_part = -(((columns - parameters[:, 1:]) / self.std) ** 2) / 2
        return ((row_part.unsqueeze(2) + column_part.unsqueeze(1)).flatten(1).softmax(dim=1)).reshape(-1, *grid)
