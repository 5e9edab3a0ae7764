"""Where the places of a sequence, an image or a volume are in an activation: three layouts.

A filter holds one value a place. A layout spreads it over the activation: every channel of a place gets the place's
value, and class or register tokens get one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer

__all__ = ["ChannelsFirst", "ChannelsLast", "Layout", "Tokens"]

Grid = tuple[int, ...]
_PIECE = 2**16  # elements


class Layout(Protocol):
    """What a layout can do; write another one by giving a class these two methods."""

    def grid(self, shape: torch.Size) -> Grid:
        """Return the sizes of the dimensions of places of an activation of this shape: (L,), (H, W) or (D, H, W)."""

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:
        """Return ``filters`` (B, *grid) in a shape that multiplies an activation of ``shape``."""


@checked_constructor
@dataclass(frozen=True)
class ChannelsFirst:
    """Activations (B, C, L), (B, C, H, W) or (B, C, D, H, W), as convolutions give them.

    Examples:
        >>> ChannelsFirst().grid(torch.Size([2, 512, 7, 9]))
        (7, 9)
    """

    def grid(self, shape: torch.Size) -> Grid:
        """Return the sizes of all dimensions after the second."""
        _expect_dimensions(shape, range(3, 6), self)
        return tuple(shape[2:])

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:  # noqa: ARG002
        """Return the filters as (B, 1, *grid)."""
        return filters.unsqueeze(1)


@checked_constructor
@dataclass(frozen=True)
class ChannelsLast:
    """Activations (B, T, C), (B, H, W, C) or (B, D, H, W, C).

    Sequence transformers give the first, Swin transformers and other networks of timm's ``NHWC`` format the second.

    Examples:
        >>> ChannelsLast().grid(torch.Size([2, 7, 9, 512]))
        (7, 9)
    """

    def grid(self, shape: torch.Size) -> Grid:
        """Return the sizes of all dimensions between the first and the last."""
        _expect_dimensions(shape, range(3, 6), self)
        return tuple(shape[1:-1])

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:  # noqa: ARG002
        """Return the filters as (B, *grid, 1)."""
        return filters.unsqueeze(-1)


@checked_constructor
@dataclass(frozen=True)
class Tokens:
    """Activations (B, prefix + P, C) of P patches, as vision transformers give them, row by row.

    Args:
        size: (H, W), the rows and columns of patches; (T,) of a sequence, (D, H, W) of a volume or a video.
        prefix: the number of class and register tokens before them, which the filter leaves alone. Default: 0.

    Raises:
        TypeError: if ``size`` is no tuple of integers, or ``prefix`` no integer.
        ValueError: if a size is below 1, or ``prefix`` negative.

    Examples:
        >>> Tokens((14, 14), prefix=1).grid(torch.Size([2, 197, 768]))
        (14, 14)
    """

    size: Grid
    prefix: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, tuple) or not self.size:
            raise TypeError(f"size must be a tuple of integers such as (14, 14), got {self.size!r}")
        for side in self.size:
            check_integer("size", side, least=1)
        check_integer("prefix", self.prefix, least=0)

    def grid(self, shape: torch.Size) -> Grid:
        """Return the size."""
        _expect_dimensions(shape, range(3, 4), self)
        if shape[1] != self.prefix + math.prod(self.size):
            raise ValueError(
                f"layout {self} describes {self.prefix + math.prod(self.size)} tokens, but the activation of shape "
                f"{tuple(shape)} has {shape[1]}"
            )
        return self.size

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:
        """Return the filters as (B, prefix + P, 1), one at the prefix."""
        ones = filters.new_ones(shape[0], self.prefix)
        return torch.cat([ones, filters.flatten(1)], dim=1).unsqueeze(-1)


def per_place(layout: Layout, of: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return the sum (B, *grid) over the channels of each place of ``of(*tensors)``, in pieces that a cache holds."""
    first = tensors[0]
    wide = torch.promote_types(first.dtype, torch.float32)
    ones = torch.ones(len(first), *layout.grid(first.shape), dtype=wide, device=first.device, requires_grad=True)
    with torch.enable_grad():
        spread = layout.spread(ones, first.shape)
    examples = max(1, _PIECE // max(1, first[0].numel()))
    pieces = zip(*(torch.split(tensor, examples) for tensor in (spread, *tensors)), strict=True)
    sums = torch.cat([of(*piece).to(wide).sum_to_size(shaped.shape) for shaped, *piece in pieces])
    return torch.autograd.grad(spread, ones, sums)[0]


def _expect_dimensions(shape: torch.Size, allowed: range, layout: object) -> None:
    if len(shape) not in allowed:
        expected = f"{allowed[0]}" if len(allowed) == 1 else f"{allowed[0]} to {allowed[-1]}"
        raise ValueError(f"layout {layout} needs an activation of {expected} dimensions, got shape {tuple(shape)}")
