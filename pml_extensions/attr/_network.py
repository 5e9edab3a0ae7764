"""The network behind a forward function, and what has to be as before when a call ends."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

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
def as_written() -> Iterator[None]:
    """Let networks run operation by operation: uncompiled, without fused layers that hide what is inside them."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.clear_autocast_cache()  # a weight is seen to be brought to half precision only when it is
    try:
        with sdpa_kernel(SDPBackend.MATH), _uncompiled():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _uncompiled() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield  # nothing is compiled, or torch is too old to say so
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")  # ours
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a network run operation by operation, and leave it as it was."""
    with as_written(), kept_buffers():
        yield


@contextmanager
def kept_buffers() -> Iterator[None]:
    """Undo what the modules that run write into their buffers, such as running statistics and counters."""
    kept: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}

    def keep(module: nn.Module, _: object) -> None:
        if module not in kept:
            kept[module] = {name: (value, value.clone()) for name, value in module.named_buffers(recurse=False)}

    handle = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
        for module, buffers in kept.items():
            for name, (buffer, value) in buffers.items():
                _put_back(module, name, buffer, value)


@torch.no_grad()
def _put_back(module: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    now = getattr(module, name, None)
    if not isinstance(now, Tensor) or now.shape != value.shape:  # a store that the network let grow
        return
    if now is not buffer:
        setattr(module, name, buffer)
    if not torch.equal(buffer, value):
        buffer.data.copy_(value)  # unseen by autograd, whose graph of the run may still be needed


def differentiable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values with tensors made in inference mode, which no gradient may touch, as ordinary copies."""
    return tuple(value.clone() if isinstance(value, Tensor) and value.is_inference() else value for value in values)


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
