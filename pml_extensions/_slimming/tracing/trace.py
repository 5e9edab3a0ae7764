"""One forward pass of a copy of the model, watched: the axes of every tensor and the equations of every integer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pml_extensions._slimming.algebra.axes import Axis, Leaf, Reason, freeze, leaves, new_axis, size
from pml_extensions._slimming.algebra.integers import Equation
from pml_extensions._slimming.locations import TracingError, where
from pml_extensions._slimming.tracing import value_rules, view_rules  # noqa: F401  # view_rules enters its rules
from pml_extensions._slimming.tracing.calls import RULES, Axes, Call
from pml_extensions._slimming.tracing.stand_ins import ShapesOnly, tensors_in

__all__ = ["Trace"]

aten = torch.ops.aten
_PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution, aten.mv, aten.index, aten.embedding}


class Trace(ShapesOnly):  # type: ignore[no-untyped-call]  # torch is untyped there
    """The axes of every tensor and the equations of every integer of a forward pass.

    Attributes:
        equations: what must hold between the integers of the model's code and the sizes of axes.
        weight_axes: the axes of convolutions and products with a parameter, in order of use, with the line of code.
        mixtures: for each product with a parameter, the contracted axis and the parameter's other one.
        multiplied: channels of depthwise convolutions, and how many outputs each of them gets.
        made_kernels: leaves of the channels of convolutions whose kernel the network computes.
        default_scales: (module, axis) of each attention whose scale torch derived from the size of that axis.
    """

    def __init__(self, unknown: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
        super().__init__(unknown)
        self.equations: list[Equation] = []
        self.default_scales: list[tuple[str, Axis]] = []
        self.weight_axes: list[tuple[Axis, str]] = []
        self.mixtures: list[tuple[Axis, Axis]] = []
        self.multiplied: list[tuple[Axis, Axis]] = []
        self.made_kernels: set[Leaf] = set()
        self.modules: list[str] = []
        self._axes = WeakTensorKeyDictionary()
        self._weights = WeakTensorKeyDictionary()
        self.add_parameters(parameters)

    def add_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Take tensors for parameters of the model."""
        for parameter in parameters:
            self.hide(parameter)
            self._weights[parameter] = True

    def axes(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor, new ones if it is seen for the first time."""
        known: Axes | None = self._axes.get(tensor)  # type: ignore[no-untyped-call]  # torch is untyped there
        if known is None:
            integer = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
            reason = Reason("a table of integers", where(), by_design=True) if integer else None
            known = [new_axis(length, reason) for length in tensor.shape]
            self._axes[tensor] = known
        return known

    def seen(self, tensor: Tensor) -> bool:
        """Tell whether the pass used a tensor."""
        return tensor in self._axes

    def freeze(self, tensor: Tensor, text: str) -> None:
        """Freeze every axis of a tensor, by design."""
        for axis in self.axes(tensor):
            freeze(axis, Reason(text, by_design=True))

    def is_weight(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is made of parameters alone, without a product."""
        return tensor in self._weights

    def produce(self, tensor: Tensor) -> None:
        """Note that a parameter decides what the axes of a tensor hold, if it is a weight."""
        if self.is_weight(tensor):
            for axis in self.axes(tensor):
                for leaf in leaves(axis):
                    leaf.produced = True

    def enter(self, module: str) -> None:
        """Note that the forward of a module begins."""
        self.modules.append(module)

    def leave(self) -> None:
        """Note that the forward of the innermost module has ended."""
        self.modules.pop()

    def note_default_scale(self, axis: Axis) -> None:
        """Note an attention whose scale follows from the size of an axis."""
        self.default_scales.append((self.modules[-1] if self.modules else "", axis))

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Give the results of an operation their axes."""
        results = out if isinstance(out, (tuple, list)) else [out]
        if not any(isinstance(t, Tensor) for t in results):
            return
        operands = tensors_in((args, kwargs))
        packet = func.overloadpacket
        call = Call.of(self, func, args, kwargs, out)
        rule = RULES.get(packet) or (value_rules.elementwise if torch.Tag.pointwise in func.tags else _unknown)
        axes = rule(call)
        many = [axes] if isinstance(out, Tensor) else axes
        made_of_weights = operands and packet not in _PRODUCTS and all(t in self._weights for t in operands)
        for tensor, its_axes in zip(results, many, strict=True):
            if isinstance(tensor, Tensor):
                self._check(func, tensor, its_axes)
                self._axes[tensor] = list(its_axes)
                if made_of_weights:
                    self._weights[tensor] = True

    def _check(self, func: Any, tensor: Tensor, axes: Axes) -> None:
        lengths = [size(axis) for axis in axes]
        if lengths != list(tensor.shape):
            raise TracingError(f"the rule of {func} gives {lengths} where the result has {tuple(tensor.shape)}")


def _unknown(call: Call) -> Any:
    name = str(call.func)
    for tensor in tensors_in(call.arguments):
        for axis in call.trace.axes(tensor):
            call.freeze(axis, f"there is no rule for {name}")
    results = [call.out] if isinstance(call.out, Tensor) else call.out
    axes = [[call.frozen(n, name) for n in t.shape] if isinstance(t, Tensor) else [] for t in results]
    return axes[0] if isinstance(call.out, Tensor) else axes
