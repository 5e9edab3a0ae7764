"""The operations between an activation and the output of a network, recorded once and played back at will.

They are noted below autograd, while the network runs as usual: there a network is nothing but tensor operations,
whatever Python made them. Playing them back costs neither the layers before nor the side branches, gives the very
bits that the network gave, and no tracing pass is spent on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class _Slot:
    """Stands in a recorded operation for a tensor that depends on the activation."""

    index: int


@dataclass(frozen=True)
class _Operation:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]


class Recording:
    """A function of the activation that does what the network did; ``obstacle`` says why it cannot, if it cannot."""

    def __init__(self, operations: list[_Operation], result: int, obstacle: str | None) -> None:
        self.obstacle = obstacle
        self._operations = operations
        self._result = result

    def __call__(self, activation: Tensor) -> Tensor:
        """Return the output of the network for ``activation``."""
        values: dict[int, Tensor] = {0: activation}
        for operation in self._operations:
            args, kwargs = tree_map_only(_Slot, lambda slot: values[slot.index], (operation.args, operation.kwargs))
            results = zip(operation.results, tree_leaves(operation.function(*args, **kwargs)), strict=True)
            values.update({index: leaf for index, leaf in results if index is not None})
        return values[self._result]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch is partly untyped
    """Record what depends on an activation, from ``begin`` to ``end``, while this mode is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.begin(None)

    def begin(self, activation: Tensor | None) -> None:
        """Start from ``activation``; what was recorded before is forgotten, so a layer that runs twice counts last."""
        self._operations: list[_Operation] = []
        self._obstacle: str | None = None
        self._slots: dict[tuple[object, ...], int] = {}
        self._memory: set[object] = set()
        self._alive: list[object] = []  # no memory may be reused while tensors are told apart by it
        if activation is not None:
            self._new_slot(activation)

    def end(self, output: Tensor) -> Recording:
        """Return what leads to ``output``, and let go of every tensor on the way."""
        slot = self._slots.get(_identity(output))
        if slot is None:
            self._obstacle = self._obstacle or "the output is not among the recorded tensors"
        recording = Recording(self._operations, slot or 0, self._obstacle)
        self.begin(None)
        return recording

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(_memory(leaf) in self._memory for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        if func is torch.ops.aten.detach.default:  # the same memory, hence the same slot: the gradient stays
            return
        if func is torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001 - what .item() and if() call
            self._obstacle = "the network reads a value of the activation in Python"
        args, kwargs = tree_map_only(Tensor, self._slot_or_constant, (args, kwargs))
        if any(isinstance(argument, Tensor) for argument in _written(func, args, kwargs)):
            self._obstacle = f"{func} writes into a tensor that does not come from the activation"
        results = tuple(self._new_slot(leaf) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(result))
        self._operations.append(_Operation(func, args, kwargs, results))

    def _new_slot(self, tensor: Tensor) -> int:
        if tensor.layout is not torch.strided:
            self._obstacle = f"a {tensor.layout} tensor has no memory to know it by"
        self._alive.append(tensor)
        self._memory.add(_memory(tensor))
        return self._slots.setdefault(_identity(tensor), len(self._slots))

    def _slot_or_constant(self, tensor: Tensor) -> object:
        slot = self._slots.get(_identity(tensor))
        if slot is not None:
            return _Slot(slot)
        if _memory(tensor) in self._memory:
            self._obstacle = "a recorded tensor comes back under a shape that no operation gave it"
        return tensor


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[object]:
    arguments = func._schema.arguments  # noqa: SLF001 - no public way to ask
    values = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
    aliases = [argument.alias_info for argument in arguments]  # torch 2.4 tells what is written nowhere else
    return [value for alias, value in zip(aliases, values, strict=True) if alias is not None and alias.is_write]


def _memory(tensor: Tensor) -> object:
    if tensor.layout is not torch.strided:
        return None
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - the only name of a storage that costs nothing


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Tell tensors apart by their memory: autograd wraps a view into a new object, but never moves it."""
    strides = tuple(step if size > 1 else 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return _memory(tensor), tensor.storage_offset(), tuple(tensor.shape), strides, tensor.dtype
