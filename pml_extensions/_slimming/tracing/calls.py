"""One ATen operation as the rules see it, and the table that the rules are entered in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pml_extensions._slimming.algebra.axes import Axes, Axis, Reason, freeze, is_frozen, new_axis, resolve, size
from pml_extensions._slimming.algebra.unification import unify
from pml_extensions._slimming.locations import where
from pml_extensions._slimming.tracing.stand_ins import has_glanced
from pml_extensions._slimming.tracing.trace import Trace

Rule: TypeAlias = Callable[["Call"], Axes | list[Axes]]

RULES: dict[Any, Rule] = {}


class ForRecordsError(Exception):
    """A hook that has looked at values would tie a width down, as to print some entries does."""


def keep_open() -> None:
    """Raise for a hook that has looked at values: what ties a width down there says nothing of the network.

    Should the network use the result all the same, it is refused.
    """
    if has_glanced():
        raise ForRecordsError


class _Operations:
    """``torch.ops.aten``, where an operation that this release of torch lacks is its name, which no call matches."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.aten, name, name)


aten = _Operations()


def rule(*packets: Any) -> Callable[[Rule], Rule]:
    """Enter a function as the rule of the given operations (all their overloads)."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(packets, function))
        return function

    return enter


@dataclass
class Call:
    """One operation that has run: what it was given, by the names of its schema, and what it returned."""

    trace: Trace
    func: Any
    arguments: dict[str, Any]
    out: Any

    @classmethod
    def of(cls, trace: Trace, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> "Call":
        """Bind the arguments of an operation to the names of its schema."""
        schema = func._schema.arguments  # the documented way to an operator's argument names
        values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        values.update((argument.name, value) for argument, value in zip(schema, args, strict=False))
        return cls(trace, func, values | kwargs, out)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        """Return an argument, or None if the schema has none of this name."""
        return self.arguments.get(name)

    def axes(self, name: str = "self") -> Axes:
        """Return the axes of an operand."""
        return self.trace.axes(self.arguments[name])

    def dim(self, name: str = "dim", of: str = "self") -> int:
        """Return a dimension argument counted from the front."""
        return int(self.arguments[name]) % max(len(self.axes(of)), 1)

    def dims(self, name: str = "dim", of: str = "self") -> list[int]:
        """Return a list of dimensions counted from the front; None or an empty list means all."""
        value, rank = self.arguments.get(name), len(self.axes(of))
        listed = [value] if isinstance(value, int) else value
        return [int(d) % max(rank, 1) for d in listed] if listed else list(range(rank))

    def freeze(self, axis: Axis, text: str, by_design: bool = False) -> None:
        """Freeze an axis, noting the line of the model's code.

        Raises:
            ForRecordsError: if a hook that has looked at values does this; see ``keep_open``.
        """
        if not is_frozen(axis):
            keep_open()
            freeze(axis, Reason(text, where(), by_design))

    def frozen(self, length: int, text: str, by_design: bool = True) -> Axis:
        """Return a new axis that keeps its size."""
        return new_axis(length, Reason(text, where(), by_design))

    def unify(self, left: Axis, right: Axis) -> Axis:
        """Make two axes equal and return what they are now."""
        if left is not right:
            unify(left, right, where())
        return resolve(left)

    def space(self, before: Axes, lengths: Sequence[int], pointwise: bool = False) -> Axes:
        """Return the axes of space after a sliding window: the same where the length stays, new ones elsewhere."""
        after = []
        for axis, length in zip(before, lengths, strict=True):
            kept = size(axis) == length and (pointwise or len(resolve(axis)) <= 1)
            if not kept:
                self.freeze(axis, "a window slides along it", by_design=True)
            after.append(resolve(axis) if kept else self.frozen(length, "space"))
        return after


def tensors(value: object) -> list[Tensor]:
    """Return the tensors of an argument that may be a tensor, a list of tensors or neither."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, Tensor)]


def add_operand(call: Call, axes: Axes, operand: Tensor) -> Axes:
    """Unify an operand that is spread over the given axes with those that it has at full length; return them."""
    offset = len(axes) - operand.ndim
    added = call.trace.axes(operand)
    return [
        call.unify(axis, added[d - offset]) if d >= offset and operand.shape[d - offset] == size(axis) else axis
        for d, axis in enumerate(axes)
    ]
