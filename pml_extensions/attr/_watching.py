"""A run of a network, watched from its inputs to its output.

Operations are noted below autograd, while the network runs as usual: there a network is nothing but tensor operations,
whatever Python made them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pml_extensions.attr._axes import Axes, Kind, Root, channels, whole
from pml_extensions.attr._axis_rules import axes_of_results
from pml_extensions.attr._recording import Operation, Recording, Slot, in_precision, play

_HALF = {torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class _Seen:
    """A tensor of the run, without its values."""

    slot: int
    axes: Axes
    memory: StorageWeakRef = field(repr=False)  # while this is held, no other memory goes by its name


@dataclass(frozen=True)
class _Constant:
    """A tensor from before the activation that is used after it."""

    value: Tensor
    version: int

    def changed(self) -> bool:
        """Say whether it was written into since."""
        return not self.value.is_inference() and self.value._version != self.version  # noqa: SLF001


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch is partly untyped
    """Note what depends on ``inputs`` while this mode is on, and what depends on the activation given to ``mark``.

    Attributes:
        axes: those of the activation, None as long as there is none.
        halved: whether anything ran in half precision.
        obstacle: why the operations after the activation cannot be played back, if they cannot.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes: Axes | None = None
        self.halved = any(tensor.dtype in _HALF for tensor in inputs)
        self.obstacle: str | None = None
        self._whole = True  # whether the operations before the activation can be played back
        self._seen: dict[object, _Seen] = {}
        self._memories: set[object] = set()
        self._buffers: set[object] = set()  # memories of what is put back after a run
        self._operations: list[Operation] = []
        self._activation = -1
        self._after: set[int] = set()  # slots that depend on the activation
        self._constants: dict[int, _Constant] = {}
        self._inputs: dict[int, Tensor] = {}
        examples = Root(Kind.EXAMPLES)
        for tensor in inputs:
            roots = [examples, *(Root(Kind.INPUT) for _ in tensor.shape[1:])]
            axes = tuple(starmap(whole, zip(roots, tensor.shape, strict=True)))
            self._inputs[self._see(tensor, axes)] = tensor

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that would skip it imports the compiler, which is slow

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch for as long as the context lasts."""
        handles = [
            register_module_forward_pre_hook(self._note_buffers),
            register_module_forward_hook(self._note_recurrent),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def mark(self, tensor: Tensor, given: Tensor) -> None:
        """Start from ``given``, which takes the place of an activation; the last start counts."""
        self.axes, self.obstacle = self.axes_of(tensor), None
        self._activation = self._see(given, self.axes)
        self._after, self._constants = {self._activation}, {}

    def axes_of(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; those of one that does not depend on the inputs come from the network."""
        seen = self._seen.get(_identity(tensor))
        return tuple(map(channels, tensor.shape)) if seen is None else seen.axes

    def tail(self, output: Tensor) -> Recording | None:
        """Return the function from the activation to ``output``, constant where none leads there; None if unknown."""
        seen = self._seen.get(_identity(output))
        if seen is None or self._activation < 0:
            self.obstacle = self.obstacle or "the output is not among the recorded tensors"
        elif seen.slot not in self._after:
            self._constants[seen.slot] = _Constant(output, output._version)  # noqa: SLF001
        if any(constant.changed() for constant in self._constants.values()):
            self.obstacle = self.obstacle or "the network writes into a tensor that it has used"
        if self.obstacle or seen is None:
            return None
        after, operations = {self._activation}, []
        for operation in self._operations:
            if operation.needs() & after:
                after.update(slot for slot in operation.results if slot is not None)
                operations.append(operation)
        return Recording(
            operations,
            self._activation,
            seen.slot,
            {slot: constant.value for slot, constant in self._constants.items()},
        )

    def replayed(self, tail: Recording, dtype: torch.dtype) -> tuple[Tensor, Recording] | None:
        """Return the activation and what follows it as computed from the inputs in another precision, if possible."""
        if not self._whole:
            return None
        own = {id(operation) for operation in tail.operations}
        before = [operation.in_precision(dtype) for operation in self._operations if id(operation) not in own]
        values = play(before, {slot: in_precision(tensor, dtype).clone() for slot, tensor in self._inputs.items()})
        operations = [operation.in_precision(dtype) for operation in tail.operations]
        constants = {slot: values[slot] for slot in tail.constants}
        return values[tail.start], Recording(operations, tail.start, tail.result, constants)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(_memory(tensor) in self._memories for tensor in tensors) or self._is_lowered(func, tensors, result):
            self._note(func, args, kwargs, result)
        return result

    def _is_lowered(self, func: Any, tensors: list[Tensor], result: object) -> bool:
        """Say whether a weight is brought to half precision, as under autocast."""
        return (
            func is torch.ops.aten._to_copy.default  # noqa: SLF001
            and isinstance(result, Tensor)
            and result.dtype in _HALF
            and tensors[0].dtype.is_floating_point
        )

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        if func is torch.ops.aten.detach.default:  # the same memory, hence the same slot: the gradient stays
            return
        after = any(self._is_after(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        leaves = tree_leaves(result)
        if after and any(isinstance(leaf, int | float | complex) for leaf in leaves):  # as .item() and if() have it
            self.obstacle = "the network reads a value of the activation in Python"
        for tensor in _written(func, args, kwargs):
            if not (self._is_after(tensor) if after else _identity(tensor) in self._seen):
                self._cannot(f"{func} writes into a tensor that does not come from the activation", after=after)
        shapes = [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]
        axes = iter(axes_of_results(func, args, kwargs, self.axes_of, shapes))
        args, kwargs = tree_map_only(Tensor, lambda one: self._slot_or_constant(one, after=after), (args, kwargs))
        slots = [self._see(leaf, next(axes)) if isinstance(leaf, Tensor) else None for leaf in leaves]
        self._operations.append(Operation(func, args, kwargs, tuple(slots)))
        self.halved = self.halved or any(isinstance(leaf, Tensor) and leaf.dtype in _HALF for leaf in leaves)
        if after:
            self._after.update(slot for slot in slots if slot is not None)

    def _cannot(self, reason: str, *, after: bool) -> None:
        if after:
            self.obstacle = reason
        else:
            self._whole = False

    def _note_buffers(self, module: nn.Module, _: object) -> None:
        self._buffers.update(_memory(buffer) for buffer in module.buffers(recurse=False))

    def _note_recurrent(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note what a recurrent layer's class says of its output; seen as operations it is a loop over places."""
        if isinstance(module, nn.RNNBase) and isinstance(args[0], Tensor) and isinstance(output[0], Tensor):
            axes = (*self.axes_of(args[0])[:-1], channels(output[0].shape[-1]))
            if _identity(output[0]) in self._seen:
                self._see(output[0], axes)

    def _see(self, tensor: Tensor, axes: Axes) -> int:
        if tensor.layout is not torch.strided:
            self.obstacle = f"a {tensor.layout} tensor has no memory to know it by"
        name = _identity(tensor)
        memory = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call] # torch is partly untyped
        before = self._seen.get(name)
        slot = len(self._seen) if before is None else before.slot
        self._seen[name] = _Seen(slot, axes, memory)
        self._memories.add(memory.cdata)
        return slot

    def _is_after(self, tensor: Tensor) -> bool:
        seen = self._seen.get(_identity(tensor))
        return seen is not None and seen.slot in self._after

    def _slot_or_constant(self, tensor: Tensor, *, after: bool) -> object:
        seen = self._seen.get(_identity(tensor))
        if seen is None:
            if _memory(tensor) in self._memories:
                self._cannot("a recorded tensor comes back under a shape that no operation gave it", after=after)
            return tensor.clone() if _memory(tensor) in self._buffers else tensor
        if after and seen.slot not in self._after:
            self._constants[seen.slot] = _Constant(tensor, 0 if tensor.is_inference() else tensor._version)  # noqa: SLF001
        return Slot(seen.slot)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    arguments = func._schema.arguments  # noqa: SLF001 - no public way to ask
    values = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
    aliases = [argument.alias_info for argument in arguments]  # torch 2.4 tells what is written nowhere else
    written = [value for alias, value in zip(aliases, values, strict=True) if alias is not None and alias.is_write]
    return [leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> object:
    if tensor.layout is not torch.strided:
        return None
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - the only name of a storage that costs nothing


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Tell tensors apart by their memory: autograd wraps a view into a new object, but never moves it."""
    strides = tuple(step if size > 1 else 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return _memory(tensor), tensor.storage_offset(), tuple(tensor.shape), strides, tensor.dtype
