"""A forward pass that computes shapes alone: weights and activations without values, and without memory.

A stand-in is one zero, expanded with strides of zero to the shape it stands for. The mode below lets whatever depends
on a stand-in give stand-ins again, their shapes from the meta kernels; what depends on none of them (position tables,
masks, window indices) is computed as ever. So the largest network is traced in the time that its Python code takes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from enum import Enum
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from pml_extensions._slimming.locations import TracingError, where

Observer: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]

aten = torch.ops.aten

_NEEDS_VALUES = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten._unique2,
    aten.unique_consecutive, aten.unique_dim, aten.bincount,
}  # fmt: skip
RESHAPING_IN_PLACE = {aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_}  # to which the other names lead
_DECIDED_BY_SECOND = {aten.masked_select, aten._pack_padded_sequence, aten._pad_packed_sequence}
_COUNT_STEPS = {aten._pack_padded_sequence, aten._pad_packed_sequence}  # by the values of their integers
_BY_MEMORY = {aten.resize_, aten.resize_as_, aten.as_strided_, aten.set_, aten.as_strided}
_ASK_FOR_STRIDES = {aten.view_as_complex.default, aten.view.dtype}  # which a stand-in has not
_SHAPE_OF_OPERAND = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_full,
    aten.new_empty,
}  # fmt: skip


_GLANCES: ContextVar[list[bool] | None] = ContextVar("glances", default=None)


class MissingValueError(TracingError):
    """Something asked for the value of a stand-in."""


def stand_in(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros that takes no memory."""
    return torch.zeros((), dtype=dtype).expand(tuple(shape))


def is_stand_in(tensor: Tensor) -> bool:
    """Tell whether a tensor, of one dimension or more, looks like a stand-in."""
    return tensor.ndim > 0 and not any(tensor.stride())


def without_values(tensor: Tensor) -> bool:
    """Tell whether only the shape of an input matters: the values of integers and booleans are used."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta


def given(inputs: Any) -> Any:
    """Return inputs for one more pass: it may write to those that have values."""
    return tree_map_only(Tensor, lambda tensor: tensor if without_values(tensor) else tensor.clone(), inputs)


def stand_in_parameter(parameter: nn.Parameter, shape: Sequence[int] | None = None) -> nn.Parameter:
    """Return a parameter without memory for ``parameter``, of its shape or of another."""
    shape = parameter.shape if shape is None else shape
    return nn.Parameter(stand_in(shape, parameter.dtype), requires_grad=parameter.requires_grad)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors of a nest of lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [tensor for item in tree for tensor in tensors_in(item)]


def outputs_in(value: Any) -> list[Tensor]:
    """Return the tensors of what a network returns: of a nest, of records, or else of whatever objects it returns.

    Beside tensors, an object of another class is a state, as a cache of keys and values is: part of no output.

    Raises:
        TracingError: if there are none.
    """
    found = tensors_in(_opened(value, _RECORDS, set())) or tensors_in(_opened(value, (object,), set()))
    if not found:
        raise TracingError(
            f"the forward pass must return tensors, alone or in lists, dicts or objects; got {type(value).__name__}"
        )
    return found


_RECORDS = (SimpleNamespace, Distribution)
_NO_RECORDS = (nn.Module, type, FunctionType, MethodType, ModuleType, torch.dtype, torch.device, str, bytes, Enum)


def _opened(value: Any, records: tuple[type, ...], seen: set[int]) -> Any:
    """Return a nest in which objects of some classes, and dataclasses, are lists of what they hold."""
    if isinstance(value, Tensor):
        return value
    if id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, Mapping):
        return [_opened(item, records, seen) for item in value.values()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [_opened(item, records, seen) for item in value]
    if isinstance(value, _NO_RECORDS) or not (isinstance(value, records) or is_dataclass(value)):
        return None
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = [getattr(value, name, None) for name in slots] + list(getattr(value, "__dict__", {}).values())
    return [_opened(item, records, seen) for item in held]


class ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is untyped there
    """Run a forward pass on stand-ins.

    Args:
        unknown: the tensors whose values are not to be looked at: inputs and parameters. Those on the meta device have
            none.
        observers: called with every operation that has run, its arguments and keyword arguments, and its result.
    """

    def __init__(self, unknown: Iterable[Tensor], *observers: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch is untyped there
        self.observers = list(observers)
        self._unknown = WeakTensorKeyDictionary()
        self.hide(unknown)

    def hide(self, tensors: Iterable[Tensor]) -> None:
        """Treat tensors as stand-ins from now on."""
        for tensor in tensors:
            self._unknown[tensor] = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = self._run(func, args, kwargs)
        self.observe(func, args, kwargs, out)
        return out

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Show one operation that has run to the observers."""
        for observer in self.observers:
            observer(func, args, kwargs, out)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packet = func.overloadpacket
        if packet in _SHAPE_OF_OPERAND or not any(map(self.is_unknown, tensors_in((args, kwargs)))):
            return func(*args, **kwargs)
        if packet in _NEEDS_VALUES or any(map(self.is_unknown, _read(packet, args))):
            if not noticed():
                raise missing_value(func)
            out = func(*args, **kwargs)  # of zeros
            self.hide(tensors_in(out))
            return out
        if packet in _BY_MEMORY:
            line = where()
            raise TracingError(
                f"{func}{line and f' at {line}'} makes something else of the memory of an activation, which is not "
                "followed; use reshape, view, expand, unfold or a slice, which return a tensor"
            )
        written = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if packet in RESHAPING_IN_PLACE:
            out = func(*args, **kwargs)
        elif written:
            out = self._written(func, args, kwargs)
        elif packet in _COUNT_STEPS:
            data, counts = _with_contiguous(func, args, kwargs)
            out = stand_in(data.shape, data.dtype)
            self.hide([out])
            return out, counts
        elif func not in _ASK_FOR_STRIDES and any(r.alias_info is not None for r in func._schema.returns):
            out = func(*args, **kwargs)
        else:
            out = _shapes_of_result(func, args, kwargs)
        self.hide(tensors_in(out))
        return out

    def is_unknown(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a stand-in, or has no values for another reason."""
        return tensor.is_meta or tensor in self._unknown

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Leave an operation in place undone: its result is the tensor that it would have written to."""
        results = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                results.append(kwargs[argument.name] if argument.name in kwargs else args[position])
        self.hide(tensors_in(results))
        returns = results[: len(func._schema.returns)]
        return returns[0] if len(returns) == 1 else tuple(returns) if returns else None


@contextmanager
def glancing() -> Iterator[list[bool]]:
    """Let code see zeros where it looks at values; yield a list that is empty until it does."""
    glances: list[bool] = []
    token = _GLANCES.set(glances)
    try:
        yield glances
    finally:
        _GLANCES.reset(token)


def noticed() -> bool:
    """Tell whether code may see zeros in place of values, and note that it does."""
    glances = _GLANCES.get()
    if glances is not None:
        glances.append(True)
    return glances is not None


def has_glanced() -> bool:
    """Tell whether code that may see zeros has looked: what it does then is for its records, more likely than not."""
    return bool(_GLANCES.get())


def missing_value(func: Any) -> MissingValueError:
    """Return the error for an operation that asks for values that a stand-in has not."""
    line = where()
    return MissingValueError(
        f"{func} needs the values of an activation, a weight or a floating-point input{line and f' at {line}'}: "
        "control flow that depends on data. Integer and boolean tensors of example_input are used with their values"
    )


def _read(packet: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Return the operands whose values decide on the shape of the result."""
    if packet is aten.index:
        return [index for index in tensors_in(args[1]) if index.dtype == torch.bool]
    return [args[1]] if packet in _DECIDED_BY_SECOND else []


def _shapes_of_result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func.overloadpacket is aten.masked_select:
        _, places = torch.broadcast_tensors(*args)  # type: ignore[no-untyped-call]  # torch is untyped there
        return stand_in([int(places.sum())], args[0].dtype)
    if func.overloadpacket is aten.index:
        args = (args[0], [place for index in args[1] for place in _places(index)])
    meta_args, meta_kwargs = tree_map_only(Tensor, _meta, (args, kwargs))
    if meta_kwargs.get("device") is not None:
        meta_kwargs["device"] = torch.device("meta")
    try:
        out = func(*meta_args, **meta_kwargs)
    except NotImplementedError:
        out = _with_contiguous(func, args, kwargs)
    return tree_map_only(Tensor, lambda t: stand_in(t.shape, t.dtype), out)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """Return an index without a mask: the places where that is true, one tensor for each of its dimensions."""
    return list(index.nonzero().unbind(1)) if index is not None and index.dtype == torch.bool else [index]


def _with_contiguous(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    full_args, full_kwargs = tree_map_only(Tensor, Tensor.contiguous, (args, kwargs))
    return func(*full_args, **full_kwargs)


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
