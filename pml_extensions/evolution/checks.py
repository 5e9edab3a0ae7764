"""Checks of what a user hands to Knowledge Evolution."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["check_masks"]


def check_masks(model: nn.Module, masks: Any) -> dict[str, Tensor]:
    """Return a split's masks on the CPU, in the order of the model's parameters; raise unless they fit the model."""
    if not isinstance(masks, Mapping):
        raise TypeError(f"split must return a dict of masks by parameter name, got {type(masks).__name__}")
    if not masks:
        raise ValueError("split must return at least one mask, got none: it found no weight to split in the model")
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"split must name parameters as model.named_parameters() does, got {name!r}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"the mask of {name!r} must be a tensor of torch.bool (True = fit-hypothesis), got {got}")
        parameter = parameters[name]
        if mask.shape != parameter.shape:
            expected, shape = tuple(parameter.shape), tuple(mask.shape)
            raise ValueError(f"the mask of {name!r} must have the parameter's shape {expected}, got {shape}")
        if not parameter.is_floating_point():
            raise ValueError(f"parameters to split must be floating-point, but {name!r} is {parameter.dtype}")
    return {name: masks[name].detach().to("cpu").contiguous() for name in parameters if name in masks}
