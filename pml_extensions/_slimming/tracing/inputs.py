"""The input that a model is traced with: the user's example, or what a timm model says it takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing.stand_ins import stand_in

ExampleInput = Tensor | tuple[Tensor, ...] | None


def stand_in_inputs(model: nn.Module, example_input: ExampleInput) -> tuple[Tensor, ...]:
    """Return stand-ins of the example input, or of the input that a timm model's configuration names.

    Floating-point inputs get the type of the model's weights: only shapes matter here.

    Raises:
        TracingError: if there is no example input and the model does not say what it takes.
    """
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    if example_input is not None:
        given = example_input if isinstance(example_input, tuple) else (example_input,)
        return tuple(stand_in(t.shape, dtype if t.dtype.is_floating_point else t.dtype) for t in given)
    configuration: Any = getattr(model, "pretrained_cfg", None) or {}
    size = configuration.get("input_size")
    if size is None:
        raise TracingError("example_input is needed: the model has no timm configuration that names its input size")
    return (stand_in((2, _channels(model, configuration, size[0]), *_image_size(model, size[1:])), dtype),)


def _channels(model: nn.Module, configuration: Any, declared: int) -> int:
    """Return the input channels: those of the first convolution, which timm's configuration names."""
    first = configuration.get("first_conv")
    for name in [first] if isinstance(first, str) else first or ():
        layer = dict(model.named_modules()).get(name)
        if isinstance(layer, nn.Conv2d) and layer.in_channels % declared:
            return layer.in_channels
    return declared


def _image_size(model: nn.Module, declared: Sequence[int]) -> Sequence[int]:
    """Return height and width: what the patch embedding was made for (``img_size``), or what is declared."""
    made_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(made_for, int):
        return (made_for, made_for)
    return tuple(made_for) if made_for else declared
