"""The layout of an activation, from what is known of it; never from a number that happens to fit.

Known are its axes, followed through the operations from the inputs on: which count places of an input and which count
channels of the network. Where they were lost on the way, known are the kind of the layer, and what timm's networks
declare: ``output_fmt``, ``patch_embed.grid_size`` and ``num_prefix_tokens``.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from pml_extensions.attr._axes import Axes, Axis, Kind, kind, length, parts_of
from pml_extensions.attr.layouts import ChannelsFirst, ChannelsLast, Grid, Layout, Tokens

_CHANNELS_FIRST = (
    conv._ConvNd,  # noqa: SLF001
    batchnorm._BatchNorm,  # noqa: SLF001
    instancenorm._InstanceNorm,  # noqa: SLF001
    nn.GroupNorm,
    pooling._AvgPoolNd,  # noqa: SLF001
    pooling._MaxPoolNd,  # noqa: SLF001
    pooling._AdaptiveAvgPoolNd,  # noqa: SLF001
    pooling._AdaptiveMaxPoolNd,  # noqa: SLF001
    nn.Upsample,
)


def known_layout(axes: Axes | None, shape: torch.Size, layer: nn.Module, model: nn.Module | None) -> Layout:
    """Return the layout of an activation of ``shape``.

    Args:
        axes: its axes, None if they were not seen.
        shape: its shape.
        layer: the layer that gives or takes it.
        model: the network, if known.

    Raises:
        ValueError: if the activation has no places, or if the layout is not known.
    """
    if axes is not None and not _may_be_examples(axes[0]) and kind(axes[0]) is Kind.CHANNELS:
        axes = None  # it comes from no input that was seen
    layout = _from_axes(axes) if axes is not None else None
    if layout is None and (axes is None or _may_be_examples(axes[0])):
        layout = _declared(shape, layer, model) or _of_kind(shape, layer)
    if layout is not None and math.prod(layout.grid(shape)) > 1:
        return layout
    counted = [Kind.UNKNOWN] * len(shape) if axes is None else [kind(axis) for axis in axes]
    empty = layout is not None or len(shape) < 3 or set(counted[1:]) <= {Kind.CHANNELS, None}
    reason = "has no places" if empty else "is laid out in a way that is not known"
    names = ", ".join("1" if one is None else one.value for one in counted)
    raise ValueError(
        f"the activation of layer {type(layer).__name__}, of shape {tuple(shape)}, {reason}; its dimensions count "
        f"({names}). Pass a layer with a feature map, or say how this one is laid out: layout=ChannelsFirst() for "
        "(B, C, ...), ChannelsLast() for (B, ..., C), Tokens((H, W), prefix=...) for class tokens and patches"
    )


def _may_be_examples(axis: Axis) -> bool:
    return length(axis) == 1 or kind(axis) in {Kind.EXAMPLES, Kind.UNKNOWN}


def _from_axes(axes: Axes) -> Layout | None:
    """Return the layout of axes of which one counts channels and all others places."""
    examples, *others = axes
    counted = [kind(axis) for axis in others]
    of_channels = Kind.CHANNELS if Kind.CHANNELS in counted else None
    if not _may_be_examples(examples) or not 2 <= len(others) <= 4 or counted.count(of_channels) != 1:
        return None
    if not set(counted) <= {Kind.CHANNELS, Kind.PLACES, Kind.INPUT, None}:
        return None
    channel = counted.index(of_channels)
    places = [axis for at, axis in enumerate(others) if at != channel]
    roots = [factor.root for axis in places for factor in axis]
    if len(roots) != len(set(roots)):  # pairs of places, as in an attention matrix
        return None
    if channel == len(others) - 1:
        return _tokens(places[0]) if len(places) == 1 else ChannelsLast()
    return ChannelsFirst() if channel == 0 and all(len(parts_of(axis)) == 1 for axis in places) else None


def _tokens(axis: Axis) -> Layout | None:
    """Return the layout of tokens, if none but those before the places count no places."""
    *before, places = parts_of(axis)
    if kind(places) is Kind.CHANNELS or any(kind(part) is not Kind.CHANNELS for part in before):
        return None
    grid = tuple(factor.size for factor in places)
    prefix = sum(map(length, before))
    return Tokens(grid, prefix) if prefix or len(grid) > 1 else ChannelsLast()


def _declared(shape: torch.Size, layer: nn.Module, model: nn.Module | None) -> Layout | None:
    """Return the layout that timm's networks declare around the layer, the innermost declaration first."""
    for owner in _modules_around(layer, model):
        named = str(getattr(owner, "output_fmt", None))
        if len(shape) == 4 and named in {"NCHW", "NHWC"}:
            return ChannelsFirst() if named == "NCHW" else ChannelsLast()
        grid = _declared_grid(owner)
        prefix = getattr(owner, "num_prefix_tokens", None)
        if len(shape) == 3 and grid is not None and prefix is not None and shape[1] == prefix + math.prod(grid):
            return Tokens(grid, prefix)
    return None


def _declared_grid(owner: nn.Module) -> Grid | None:
    for part in ("patch_embed", "stem"):
        grid = getattr(getattr(owner, part, None), "grid_size", None)
        if grid is not None:
            return tuple(grid)
    return None


def _of_kind(shape: torch.Size, layer: nn.Module) -> Layout | None:
    return ChannelsFirst() if isinstance(layer, _CHANNELS_FIRST) and 3 <= len(shape) <= 5 else None


def _modules_around(layer: nn.Module, model: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the modules that contain ``layer``, the innermost first."""
    if model is not None:
        path = next((name for name, module in model.named_modules() if module is layer), "")
        while path:
            yield model.get_submodule(path)
            path = path.rpartition(".")[0]
        yield model
