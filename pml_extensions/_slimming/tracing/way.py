"""The way that a forward pass takes: its operations in order, by which a pass that branches otherwise is told.

What code makes of a width beyond arithmetic and comparisons, such as ``range(x.shape[1])``, ``len(x[0])`` or the place
in a list, is a plain integer that nobody sees. Where it decides what is computed, the slim network would differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pml_extensions._slimming.algebra.axes import Axes, Leaf, slim_size
from pml_extensions._slimming.locations import where
from pml_extensions._slimming.tracing.stand_ins import has_glanced, is_stand_in, tensors_in
from pml_extensions._slimming.tracing.trace import Trace

__all__ = ["Way", "parting"]

aten = torch.ops.aten

_ALIKE = {aten.mm: "product", aten.bmm: "product", aten.addmm: "sum", aten.baddbmm: "sum"}
_LAYOUT = {aten.clone, aten.contiguous, aten._unsafe_view, aten.copy_}  # what views need here and there


class Way:
    """An observer that notes the operations that give stand-ins, beside those that only look at memory otherwise.

    What depends on none may come from a cache that outlives a pass, as tables of positions do.

    Args:
        trace: where the axes of a watched pass are written down. Those of the operands of each operation are noted,
            and without it their shapes.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        self.steps: list[str] = []
        self.places: list[str] = []
        self.axes: list[list[Axes]] = []
        self.shapes: list[list[torch.Size]] = []
        self._trace = trace

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note one operation, unless it is for the records of a hook."""
        if has_glanced():
            return
        packet = func.overloadpacket
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if any(map(is_stand_in, tensors_in(out))) and not views and packet not in _LAYOUT:
            self.steps.append(_ALIKE.get(packet, str(packet)))
            self.places.append(where())
            operands = filter(is_stand_in, tensors_in((args, kwargs)))
            if self._trace is None:
                self.shapes.append([operand.shape for operand in operands])
            else:
                self.axes.append([self._trace.axes(operand) for operand in operands])


def parting(way: Way, other: Way, sizes: Mapping[Leaf, int]) -> str | None:
    """Return in words where the way of a slim network parts from the watched one, or None if it does not.

    ``sizes`` are those of the leaves that shrink: they tell the shapes of all that the slim network computes.
    """
    if way.steps == other.steps:
        return next(filter(None, (_other_shapes(way, other, place, sizes) for place in range(len(way.steps)))), None)
    place = next((i for i, (a, b) in enumerate(zip(way.steps, other.steps, strict=False)) if a != b), None)
    at = min(len(way.steps), len(other.steps)) if place is None else place
    return f"{_step(other, at)} instead of {_step(way, at)}"


def _other_shapes(way: Way, other: Way, place: int, sizes: Mapping[Leaf, int]) -> str | None:
    found = [list(shape) for shape in other.shapes[place]]
    expected = [[slim_size(axis, sizes) for axis in axes] for axes in way.axes[place]]
    if found == expected:
        return None
    one, its = next((a, b) for a, b in zip(found, expected, strict=False) if a != b)
    return f"with a tensor of {one} instead of {its} in {_step(other, place)}"


def _step(way: Way, place: int) -> str:
    steps: Sequence[str] = way.steps
    return f"{steps[place]} at {way.places[place]}" if place < len(steps) else "nothing more"
