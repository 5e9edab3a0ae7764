"""What is written down of a forward pass: the axes of every tensor and the equations of every integer."""

from collections.abc import Iterable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pml_extensions._slimming.algebra.axes import Axes, Axis, Leaf, Reason, freeze, leaves, new_axis
from pml_extensions._slimming.algebra.integers import Equation
from pml_extensions._slimming.locations import where

__all__ = ["INPUT", "OUTPUT", "Trace"]

INPUT = "an input of the network"
OUTPUT = "an output of the network"


class Trace:
    """The axes of every tensor and the equations of every integer of a forward pass.

    Attributes:
        equations: what must hold between the integers of the model's code and the sizes of axes.
        weight_axes: the axes of convolutions and products with a parameter, in order of use, with the line of code, and
            whether the parameter adds the axis to the product.
        mixtures: for each product with a parameter, the contracted axis and the parameter's other one.
        multiplied: channels of depthwise convolutions, and how many outputs each of them gets.
        made_kernels: leaves of the channels of convolutions whose kernel the network computes.
        default_scales: (module, axis) of each attention whose scale torch derived from the size of that axis.
    """

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.default_scales: list[tuple[str, Axis]] = []
        self.weight_axes: list[tuple[Axis, str, bool]] = []
        self.mixtures: list[tuple[Axis, Axis]] = []
        self.multiplied: list[tuple[Axis, Axis]] = []
        self.made_kernels: set[Leaf] = set()
        self.modules: list[str] = []
        self._axes = WeakTensorKeyDictionary()
        self._weights = WeakTensorKeyDictionary()
        self._records = WeakTensorKeyDictionary()
        self._held: WeakTensorKeyDictionary | None = None

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors for the model's own and its inputs: of what else there is from before the pass, none is cut."""
        self._held = WeakTensorKeyDictionary() if self._held is None else self._held
        for tensor in tensors:
            self._held[tensor] = True

    def add_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Take tensors for parameters of the model."""
        for parameter in parameters:
            self._weights[parameter] = True

    def record(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors for what a hook makes for its records after it has looked at values: of unknown axes."""
        for tensor in tensors:
            self._records[tensor] = True

    def is_record(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is one that a hook has made for its records."""
        return tensor in self._records

    def give(self, tensor: Tensor, axes: Axes) -> None:
        """Note the axes of a tensor."""
        self._axes[tensor] = axes

    def axes(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor, new ones if it is seen for the first time."""
        known: Axes | None = self._axes.get(tensor)  # type: ignore[no-untyped-call]  # torch is untyped there
        if known is None:
            known = [new_axis(length, self._why_kept(tensor)) for length in tensor.shape]
            self.give(tensor, known)
        return known

    def _why_kept(self, tensor: Tensor) -> Reason | None:
        if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            return Reason("a table of integers", where(), by_design=True)
        held = self._held is None or tensor in self._held
        return None if held else Reason("it meets a tensor that the model does not hold", where())

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

    @property
    def module(self) -> str:
        """The name of the innermost module whose forward runs; the model's own is empty."""
        return self.modules[-1] if self.modules else ""

    def note_default_scale(self, axis: Axis) -> None:
        """Note an attention whose scale follows from the size of an axis."""
        self.default_scales.append((self.module, axis))
