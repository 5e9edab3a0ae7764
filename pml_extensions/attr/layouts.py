"""Where the places of an image are in an activation: three layouts, and how to tell which one a layer has.

A filter holds one value a place. A layout spreads it over the activation: every channel of a place gets the place's
value, and class or register tokens get one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

__all__ = ["ChannelsFirst", "ChannelsLast", "Layout", "Tokens"]

Grid = tuple[int, int]


class Layout(Protocol):
    """What a layout can do; write another one by giving a class these two methods."""

    def grid(self, shape: torch.Size) -> Grid:
        """Return (H, W), the rows and columns of places of an activation of this shape."""

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:
        """Return ``filters`` (B, H, W) in a shape that multiplies an activation of ``shape``."""


@dataclass(frozen=True)
class ChannelsFirst:
    """Activations of shape (B, C, H, W), as convolutions give them.

    Examples:
        >>> ChannelsFirst().grid(torch.Size([2, 512, 7, 9]))
        (7, 9)
    """

    def grid(self, shape: torch.Size) -> Grid:
        """Return (H, W)."""
        _expect_dimensions(shape, 4, self)
        return shape[2], shape[3]

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:  # noqa: ARG002
        """Return the filters as (B, 1, H, W)."""
        return filters.unsqueeze(1)


@dataclass(frozen=True)
class ChannelsLast:
    """Activations of shape (B, H, W, C), as Swin transformers and other networks of timm's ``NHWC`` format give them.

    Examples:
        >>> ChannelsLast().grid(torch.Size([2, 7, 9, 512]))
        (7, 9)
    """

    def grid(self, shape: torch.Size) -> Grid:
        """Return (H, W)."""
        _expect_dimensions(shape, 4, self)
        return shape[1], shape[2]

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:  # noqa: ARG002
        """Return the filters as (B, H, W, 1)."""
        return filters.unsqueeze(-1)


@dataclass(frozen=True)
class Tokens:
    """Activations of shape (B, prefix + H * W, C), as vision transformers give them, row by row.

    Args:
        size: (H, W), the rows and columns of patches.
        prefix: the number of class and register tokens before them, which the filter leaves alone. Default: 0.

    Examples:
        >>> Tokens((14, 14), prefix=1).grid(torch.Size([2, 197, 768]))
        (14, 14)
    """

    size: Grid
    prefix: int = 0

    def grid(self, shape: torch.Size) -> Grid:
        """Return (H, W)."""
        _expect_dimensions(shape, 3, self)
        if shape[1] != self.prefix + math.prod(self.size):
            raise ValueError(
                f"layout {self} describes {self.prefix + math.prod(self.size)} tokens, but the activation of shape "
                f"{tuple(shape)} has {shape[1]}"
            )
        return self.size

    def spread(self, filters: Tensor, shape: torch.Size) -> Tensor:
        """Return the filters as (B, prefix + H * W, 1), one at the prefix."""
        ones = filters.new_ones(shape[0], self.prefix)
        return torch.cat([ones, filters.flatten(1)], dim=1).unsqueeze(-1)


def per_place(layout: Layout, values: Tensor) -> Tensor:
    """Return the sum (B, H, W) over the channels of each place."""
    wide = torch.promote_types(values.dtype, torch.float32)
    ones = torch.ones(len(values), *layout.grid(values.shape), dtype=wide, device=values.device, requires_grad=True)
    with torch.enable_grad():
        spread = layout.spread(ones, values.shape) * values
    return torch.autograd.grad(spread, ones, torch.ones_like(spread))[0]


def find_layout(shape: torch.Size, image: Grid | None, model: nn.Module | None, layer: nn.Module) -> Layout:
    """Return the layout of an activation of ``shape``.

    Args:
        shape: shape of the activation.
        image: rows and columns of the network's input, None if it is not an image. A feature map has its proportions.
        model: the network, if known. Facts that timm's networks carry (``num_prefix_tokens``,
            ``patch_embed.grid_size``, ``output_fmt``) are read from it and its parts around ``layer``.
        layer: the layer that gives the activation.

    Raises:
        ValueError: if the activation has no places, or if more than one layout fits.
    """
    owners = list(_modules_around(layer, model)) if model is not None else []
    fits: list[Layout] = []
    if len(shape) == 4:
        maps: list[Layout] = [ChannelsFirst(), ChannelsLast()]
        fits = [layout for layout in maps if _is_map(layout.grid(shape), image)]
        named = {"NCHW": maps[:1], "NHWC": maps[1:]}
        fits = named.get(str(_fact(owners, "output_fmt")), fits) if len(fits) == 2 else fits
    elif len(shape) == 3:
        fits = _token_layouts(shape, image, owners)
    if len(fits) == 1:
        return fits[0]
    finding = f"could be read as any of {fits}" if fits else "has no places that could be told from its shape"
    raise ValueError(
        f"the layer's activation of shape {tuple(shape)} {finding}; pass a layer with a feature map, or say "
        "how this one is laid out with layout=ChannelsFirst(), ChannelsLast() or Tokens((H, W), prefix=...)"
    )


def _token_layouts(shape: torch.Size, image: Grid | None, owners: list[nn.Module]) -> list[Layout]:
    known_prefix = cast("int | None", _fact(owners, "num_prefix_tokens"))
    known_grid = cast("Grid | None", _fact(owners, "patch_embed", "grid_size") or _fact(owners, "stem", "grid_size"))
    prefixes = (0, 1) if known_prefix is None else (known_prefix,)
    grids = {prefix: _grid_of(shape[1] - prefix, image, known_grid) for prefix in prefixes}
    fits = [Tokens(grid, prefix) for prefix, grid in grids.items() if grid is not None]
    known = known_prefix is not None or any(fit.size == known_grid for fit in fits)
    if fits and not known and any(_grid_of(shape[2] - prefix, image, None) for prefix in prefixes):
        raise ValueError(
            f"the layer's activation of shape {tuple(shape)} has places that could be its second or its third "
            f"dimension; if they are the second, say so with layout={fits[0]}"
        )
    return list(fits)


def _grid_of(places: int, image: Grid | None, known: Grid | None) -> Grid | None:
    """Return the rows and columns that ``places`` patches of an image make, if they can."""
    if known is not None and math.prod(known) == places and _is_map((known[0], known[1]), image):
        return known[0], known[1]
    height, width = image or (1, 1)
    rows = round(math.sqrt(max(places, 0) * height / width))
    grid = (rows, places // rows) if rows else (0, 0)
    return grid if math.prod(grid) == places and _is_map(grid, image) else None


def _is_map(grid: Grid, image: Grid | None) -> bool:
    """Say whether rows and columns have the proportions of an image, up to rounding; those of a square are exact."""
    height, width = image or (grid[0], grid[0])
    if math.prod(grid) < 2 or grid[0] > height or grid[1] > width:
        return False
    slack = 0 if height == width else 1
    return abs(grid[0] - grid[1] * height / width) <= slack or abs(grid[1] - grid[0] * width / height) <= slack


def _modules_around(layer: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that contain ``layer``, the innermost first."""
    path = next((name for name, module in model.named_modules() if module is layer), "")
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        yield model.get_submodule(".".join(parts[:length]))


def _fact(owners: list[nn.Module], *names: str) -> object:
    for owner in owners:
        value: object = owner
        for name in names:
            value = getattr(value, name, None)
        if value is not None:
            return value
    return None


def _expect_dimensions(shape: torch.Size, dimensions: int, layout: object) -> None:
    if len(shape) != dimensions:
        raise ValueError(f"layout {layout} needs an activation of {dimensions} dimensions, got shape {tuple(shape)}")
