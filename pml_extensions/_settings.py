"""Checks of settings and models, of whatever part: each error names it, what was got and what was expected."""

import math
import numbers
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["check_flag", "check_integer", "check_model", "check_number", "check_object", "check_rate"]


def check_flag(name: str, value: Any) -> None:
    """Raise unless a setting is True or False."""
    if isinstance(value, str | Tensor) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Raise unless a setting is a finite number; a tensor of one element will do."""
    if isinstance(value, bool | str) or not isinstance(value, numbers.Real | Tensor):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise TypeError(f"{name} must be one real number, got a tensor {value.dtype} of shape {tuple(value.shape)}")
        value = value.detach()
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_integer(name: str, value: Any, least: int | None = None) -> None:
    """Raise unless a setting is an integer, and ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_rate(rate: Any) -> None:
    """Raise unless ``rate`` is a share of the weights."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate must be a number in (0, 1], got {type(rate).__name__}")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}")


def check_object(name: str, value: Any, example: str, method: str = "__call__") -> None:
    """Raise unless a part has the method that it is used for; a class in its place was meant to be an object."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be an object, got the class {value.__name__}; write {value.__name__}(...)")
    if not hasattr(value, method):
        what = "a callable, such as" if method == "__call__" else f"an object with a method {method}, such as"
        raise TypeError(f"{name} must be {what} {example}, got {type(value).__name__}")


def check_model(model: Any, *, with_data: bool = True) -> None:
    """Raise unless ``model`` is a module of floating-point weights that exist, ``with_data`` off the meta device."""
    if not isinstance(model, nn.Module):
        got = (
            f"the class {model.__name__}; write {model.__name__}(...)"
            if isinstance(model, type)
            else type(model).__name__
        )
        raise TypeError(f"model must be a torch.nn.Module, got {got}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"model must be initialised, but its parameter {name!r} has no shape yet; run a batch first"
            )
        if parameter.is_meta and with_data:
            raise ValueError(
                f"model must hold data, but its parameter {name!r} is on the meta device; materialise it first, with "
                "model.to_empty(device=...) and its weights"
            )
    for name, layer in model.named_modules():
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        if type(layer).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "model must not be wrapped in FullyShardedDataParallel, which flattens its weights; shard it with "
                "torch.distributed.fsdp.fully_shard (FSDP2)"
            )
        if ".quantized" in kind:
            raise ValueError(
                f"model must not be quantised, but its layer {name!r} is a {kind}; evolve the floating-point "
                "model and quantise it afterwards"
            )
