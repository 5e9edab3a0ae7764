"""Watch a forward pass: the operations on its tensors, and the shapes that its code reads and the sizes it asks for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pml_extensions._slimming.algebra.axes import Axes, Axis, size
from pml_extensions._slimming.algebra.integers import Expression, Size, TracedInt, plain
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing import index_rules, value_rules, view_rules  # noqa: F401  # they enter their rules
from pml_extensions._slimming.tracing.calls import RULES, Call, ForRecordsError
from pml_extensions._slimming.tracing.size_rules import FREE, USES, Use
from pml_extensions._slimming.tracing.stand_ins import (
    RESHAPING_IN_PLACE,
    Observer,
    ShapesOnly,
    has_glanced,
    missing_value,
    noticed,
    tensors_in,
)
from pml_extensions._slimming.tracing.trace import Trace

aten = torch.ops.aten
_PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution, aten.mv, aten.index, aten.embedding}
_READ_MEMORY = {"tolist", "numpy", "__array__"}  # past the operations that a dispatch mode sees
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]  # a getset descriptor


class WatchTensors(ShapesOnly):  # type: ignore[no-untyped-call]  # torch is untyped there
    """Run a forward pass on stand-ins, and give the results of every operation their axes.

    Args:
        trace: what to write them down in.
        unknown: see ``ShapesOnly``.
        observers: likewise; they find the axes written down.
    """

    def __init__(self, trace: Trace, unknown: Iterable[Tensor], *observers: Observer) -> None:
        super().__init__(unknown, *observers)
        self._trace = trace

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func.overloadpacket in RESHAPING_IN_PLACE:
            self._trace.axes(args[0])  # those that it has before
        return super()._run(func, args, kwargs)

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Give the results of an operation their axes, and show it to the observers."""
        results = out if isinstance(out, (tuple, list)) else [out]
        if any(isinstance(t, Tensor) for t in results):
            self._give_axes(func, args, kwargs, out, results)
            super().observe(func, args, kwargs, out)

    def _give_axes(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, results: Sequence[Any]
    ) -> None:
        operands = tensors_in((args, kwargs))
        packet = func.overloadpacket
        call = Call.of(self._trace, func, args, kwargs, out)
        rule = RULES.get(packet) or (value_rules.elementwise if torch.Tag.pointwise in func.tags else _unknown)
        if any(map(self._trace.is_record, operands)):
            if not has_glanced():
                raise used_records()
            self._trace.record(tensors_in(results))
        try:
            axes = rule(call)
        except ForRecordsError:
            frozen = [[call.frozen(n, "records") for n in t.shape] if isinstance(t, Tensor) else [] for t in results]
            axes = frozen[0] if isinstance(out, Tensor) else frozen
            self._trace.record(tensors_in(results))
        many = [axes] if isinstance(out, Tensor) else axes
        made_of_weights = packet not in _PRODUCTS and self._makes_a_weight(rule, operands)
        written = {id(call[argument.name]) for argument in func._schema.arguments if argument.is_out}  # as by ``out=``
        for tensor, its_axes in zip(results, many, strict=True):
            if isinstance(tensor, Tensor):
                _check(func, tensor, its_axes)
                if id(tensor) in written:
                    its_axes = map(call.unify, self._trace.axes(tensor), its_axes)  # noqa: PLW2901  # they are the same
                self._trace.give(tensor, list(its_axes))
                if made_of_weights:
                    self._trace.add_parameters([tensor])

    def _makes_a_weight(self, rule: Any, operands: Sequence[Tensor]) -> bool:
        """Tell whether a result is a weight: of weights alone, or rescaled or masked by what no activation decides.

        A number does not count: a weight stays one, whatever it is divided by.
        """
        shaped = [tensor for tensor in operands if tensor.ndim]
        others = [tensor for tensor in shaped if not self._trace.is_weight(tensor)]
        known = rule is value_rules.elementwise and not any(tensor in self._unknown for tensor in others)
        return len(others) < len(shaped) and (known or not others)


def used_records() -> TracingError:
    """Return the error for a network that uses what a hook made after a look at values, beyond plain arithmetic."""
    return TracingError(
        "a hook hands on what it has made of an activation after a look at values, which is not followed; let it look "
        "at values last"
    )


def _check(func: Any, tensor: Tensor, axes: Axes) -> None:
    lengths = [size(axis) for axis in axes]
    if lengths != list(tensor.shape):
        raise TracingError(
            f"{func} is known to give {lengths} here and gives {tuple(tensor.shape)}; is a tensor changed beside "
            "torch's operations, as by assigning to its .data?"
        )


def _unknown(call: Call) -> Any:
    reason = f"there is no rule for {call.func}"
    for tensor in tensors_in(call.arguments):
        for axis in call.trace.axes(tensor):
            call.freeze(axis, reason)
    results = [call.out] if isinstance(call.out, Tensor) else call.out
    axes = [[call.frozen(n, reason) for n in t.shape] if isinstance(t, Tensor) else [] for t in results]
    return axes[0] if isinstance(call.out, Tensor) else axes


class WatchIntegers(TorchFunctionMode):
    """Hand out shapes as traced integers, and turn every use of an integer as a size into an equation.

    Args:
        trace: what to write them down in.
        is_unknown: tells the tensors whose values are not to be looked at.
    """

    def __init__(self, trace: Trace, is_unknown: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._trace = trace
        self._is_unknown = is_unknown

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _READ_MEMORY and self._is_unknown(args[0]) and not noticed():
            raise missing_value(name)
        out = self.run(func, plain(args), plain(kwargs))
        if func == _SHAPE or name == "size":
            return self._shape(args, kwargs)
        if name == "numel":
            return self._count(args[0])
        use = Use(self._trace, args, kwargs, out)
        if has_glanced():  # a hook, for its records
            self._trace.record(tensors_in(out) if name in USES else [])
            return out
        if name in USES:
            USES[name](use)
        elif name not in FREE:
            use.pin((*args, *kwargs.values()))
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function on plain integers."""
        return func(*args, **kwargs)

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
