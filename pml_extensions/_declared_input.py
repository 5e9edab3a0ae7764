"""The input that a model says it takes: timm's configuration, corrected by what the model itself holds.

A timm model, or one inside a wrapper, names in ``pretrained_cfg`` the input of its published weights. What it was made
for may differ (``in_chans``, ``img_size``): its first layer tells the channels, its patch embedding or the grids of its
tables the size. Where these leave several answers, the first that the model runs with is taken, tried on shapes alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pml_extensions._slimming import TracingError, shapes_of_output, stand_in, without_values

__all__ = ["ExampleInput", "declared_input", "stand_in_inputs"]

ExampleInput: TypeAlias = Tensor | tuple[Tensor, ...] | None
Shape: TypeAlias = tuple[int, int, int]


def stand_in_inputs(model: nn.Module, example_input: ExampleInput) -> tuple[Tensor, ...]:
    """Return tensors without memory for the example input, or for two samples of what the model declares.

    Floating-point inputs get the type of the model's weights: only their shapes matter here. Those of integers and
    booleans (identifiers, masks, lengths) keep their values.

    Raises:
        TracingError: if there is no example input and the model does not say what it takes.
    """
    dtype = _floating_type(model)
    if example_input is not None:
        given = example_input if isinstance(example_input, tuple) else (example_input,)
        return tuple(
            stand_in(t.shape, dtype if t.dtype.is_floating_point else t.dtype) if without_values(t) else t.cpu()
            for t in given
        )
    shape = declared_input(model)
    if shape is None:
        raise TracingError(
            f"example_input is needed: no timm configuration tells the input size of this {type(model).__name__}, or "
            "it runs with none that it names"
        )
    return (stand_in((2, *shape), dtype),)


def declared_input(model: nn.Module) -> Shape | None:
    """Return (C, H, W) of the images that a model declares to take, or None if it declares none that it runs with.

    The model is not run: where it must be tried, a copy without values is.
    """
    candidates = list(dict.fromkeys(shape for inner in _declaring(model) for shape in _candidates(inner)))
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    return next((shape for shape in candidates if _runs(model, shape)), None)


def _floating_type(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)


def _runs(model: nn.Module, shape: Shape) -> bool:
    try:
        shapes_of_output(model, (stand_in((2, *shape), _floating_type(model)),))
    except Exception:  # noqa: BLE001  # whatever a model raises for an input that it does not take
        return False
    return True


def _declaring(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules with a configuration that names an input size."""
    if _declared(model) is not None:
        return [model]
    return [inner for child in model.children() for inner in _declaring(child)]


def _declared(model: nn.Module) -> Shape | None:
    configuration = getattr(model, "pretrained_cfg", None)
    size = configuration.get("input_size") if isinstance(configuration, Mapping) else None
    return (int(size[0]), int(size[1]), int(size[2])) if size else None


def _candidates(model: nn.Module) -> Iterator[Shape]:
    """Yield what a timm model may have been made for, the likeliest first."""
    channels, *size = model.pretrained_cfg["input_size"]  # type: ignore[index]  # a timm model's mapping
    sizes = _sizes(model, (int(size[0]), int(size[1])))
    yield from ((c, h, w) for c in _channels(model, channels) for h, w in sizes)


def _channels(model: nn.Module, declared: int) -> list[int]:
    """Return the channels that may be meant: those of the first layer, or fewer if it sees them rearranged in space."""
    stem = _stem(model)
    if stem is None or stem == declared:
        return [declared]
    fewer = [n for n in range(1, stem + 1) if stem % n == 0 and math.isqrt(stem // n) ** 2 == stem // n]
    return sorted(fewer, key=lambda n: n != declared)


def _stem(model: nn.Module) -> int | None:
    """Return the input channels of the layer that the configuration names as the first, wherever a wrapper put it."""
    named: Any = model.pretrained_cfg.get("first_conv") or ()  # type: ignore[union-attr, operator]
    wanted = {name.replace(".", "_") for name in ([named] if isinstance(named, str) else named)}
    for name, layer in model.named_modules():
        flat = name.replace(".", "_")
        if any(flat == one or flat.endswith(f"_{one}") for one in wanted):
            size = getattr(layer, "in_channels", getattr(layer, "in_features", None))
            if isinstance(size, int):
                return size
    return None


def _sizes(model: nn.Module, declared: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the image sizes that may be meant, the likeliest first; only one where nothing leaves a doubt."""
    held = next((value for module in model.modules() if (value := _pair(vars(module).get("img_size")))), None)
    if held is not None:
        return [held] if held == declared else [held, declared, *_sizes_of_grids(model)]
    if not model.pretrained_cfg.get("fixed_input_size"):  # type: ignore[union-attr, operator]
        return [declared]
    of_grids = _sizes_of_grids(model)
    maps = of_grids.pop(declared, 0)
    return [declared] if all(maps > other for other in of_grids.values()) else [declared, *of_grids]


def _sizes_of_grids(model: nn.Module) -> dict[tuple[int, int], int]:
    """Return the sizes for which feature maps have a grid that the model holds, those of the most maps first."""
    grids = {pair for pair in _grids(model) if min(pair) > 1}
    info: Any = getattr(model, "feature_info", None) or ()
    entries = getattr(info, "info", info)
    reductions = {int(entry["reduction"]) for entry in entries if "reduction" in entry}
    sizes = {(h * r, w * r) for h, w in grids for r in reductions}
    maps = {(h, w): sum((-(-h // r), -(-w // r)) in grids for r in reductions) for h, w in sizes}
    return dict(sorted(maps.items(), key=lambda item: (-item[1], item[0])))


def _grids(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield the pairs of integers that may count places: attributes of modules, and neighbouring axes of tables."""
    windows = {pair for m in model.modules() if isinstance(m, nn.Conv2d) for pair in (m.kernel_size, m.stride)}
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        pairs = filter(None, (_pair(value) for value in vars(module).values() if not isinstance(value, int)))
        yield from (pair for pair in pairs if pair not in windows)
        for parameter in module.parameters(recurse=False):
            if parameter.ndim >= 4:
                yield from pairwise(parameter.shape)


def _pair(value: object) -> tuple[int, int] | None:
    """Return an integer or a sequence of two as a pair, anything else as None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return (int(value[0]), int(value[1]))
    return None
