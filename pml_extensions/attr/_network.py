"""The network behind a forward function, and what has to be as before when a call ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pml_extensions.attr._warning import warn_user


def module_of(function: Callable[..., Any]) -> nn.Module | None:
    """Return the network that a forward function is or belongs to, if that can be seen."""
    if isinstance(function, partial):
        return module_of(function.func)
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None


def refuse_foreign_layer(layer: nn.Module, model: nn.Module | None) -> None:
    """Raise a ValueError if the layer is seen not to be in the network."""
    if model is not None and not any(module is layer for module in model.modules()):
        raise ValueError(
            f"layer must be a module of forward_func, got a {type(layer).__name__} that is not in the "
            f"{type(model).__name__}"
        )


def warn_if_training(model: nn.Module | None) -> None:
    """Warn where dropout or batch statistics make the output depend on chance or on the other examples."""
    active = [module for module in model.modules() if module.training] if model is not None else []
    kinds = {type(module).__name__ for module in active if isinstance(module, (_BatchNorm, _DropoutNd))}
    if kinds:
        warn_user(
            f"{', '.join(sorted(kinds))} in training mode: maps depend on chance or on the other examples; call "
            "model.eval() first"
        )


@contextmanager
def kept_buffers(model: nn.Module | None) -> Iterator[None]:
    """Undo what forward passes in training mode write into buffers, such as running statistics."""
    active = [module for module in model.modules() if module.training] if model is not None else []
    kept = [(buffer, buffer.clone()) for module in active for buffer in module.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def slices(total: int, size: int) -> Iterator[slice]:
    """Yield so many examples at a time."""
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))


def examples_of(values: tuple[Any, ...], chosen: slice, total: int) -> tuple[Any, ...]:
    """Return the chosen examples of every value that holds one entry for each."""
    if chosen == slice(0, total):
        return values

    def part(value: Any) -> Any:
        holds_all = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
        return value[chosen] if holds_all and len(value) == total else value

    return tuple(part(value) for value in values)
