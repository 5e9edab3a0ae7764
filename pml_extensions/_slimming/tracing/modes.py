"""Watch the integers of the model's code: its modules' attributes, the shapes it reads, the sizes it asks for."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pml_extensions._slimming.algebra.axes import Axis
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Expression, Size, TracedInt, plain
from pml_extensions._slimming.tracing.size_rules import FREE, USES, Use
from pml_extensions._slimming.tracing.trace import Trace

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]  # a getset descriptor


class WatchIntegers(TorchFunctionMode):
    """Hand out shapes as traced integers, and turn every use of an integer as a size into an equation."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*plain(args), **plain(kwargs))
        name = getattr(func, "__name__", "")
        if func == _SHAPE or name == "size":
            return self._shape(args, kwargs)
        if name == "numel":
            return self._count(args[0])
        use = Use(self._trace, args, kwargs, out)
        if name in USES:
            USES[name](use)
        elif name not in FREE:
            use.pin((*args, *kwargs.values()))
        return out

    def _shape(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        sizes = [
            self._traced(length, Size(axis))
            for length, axis in zip(tensor.shape, self._trace.axes(tensor), strict=True)
        ]
        dim = rest[0] if rest else kwargs.get("dim")
        return torch.Size(sizes) if dim is None else sizes[dim]

    def _count(self, tensor: Tensor) -> TracedInt:
        whole: Axis = sum((tuple(axis) for axis in self._trace.axes(tensor)), ())
        return self._traced(tensor.numel(), Size(whole))

    def _traced(self, value: int, expression: Expression) -> TracedInt:
        return TracedInt(value, expression, self._trace.equations)


def trace_attributes(model: nn.Module, equations: list[Equation]) -> None:
    """Replace every integer that a module of ``model`` holds by a traced one."""
    for name, module in model.named_modules():
        for attribute, value in list(vars(module).items()):
            if not attribute.startswith("_") or isinstance(value, int):
                module.__dict__[attribute] = _trace_value(value, Attribute(name, attribute), equations)


def _trace_value(value: Any, at: Attribute, equations: list[Equation]) -> Any:
    if type(value) is int:
        return TracedInt(value, Attribute(at.module, at.name, at.places, value), equations)
    if type(value) in {tuple, list, torch.Size}:
        items = [_trace_value(item, _inside(at, i), equations) for i, item in enumerate(value)]
        return type(value)(items)
    if type(value) is dict:
        return {key: _trace_value(item, _inside(at, key), equations) for key, item in value.items()}
    return value


def _inside(at: Attribute, place: Any) -> Attribute:
    return Attribute(at.module, at.name, (*at.places, place))


def with_integers(value: Any, changes: Mapping[tuple[Any, ...], int]) -> Any:
    """Return a nest of tuples, lists and dicts with the integers at the given places replaced."""
    if () in changes:
        return changes[()]
    if isinstance(value, dict):
        return {key: with_integers(item, _below(changes, key)) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([with_integers(item, _below(changes, i)) for i, item in enumerate(value)])
    return value


def _below(changes: Mapping[tuple[Any, ...], int], place: Any) -> dict[tuple[Any, ...], int]:
    return {places[1:]: value for places, value in changes.items() if places and places[0] == place}
