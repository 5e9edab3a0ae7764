"""The way that a forward pass takes: its operations in order, by which a pass that branches otherwise is told.

What code makes of a width beyond arithmetic and comparisons, such as ``range(x.shape[1])``, ``len(x[0])`` or the place
in a list, is a plain integer that nobody sees. Where it decides what is computed, the slim network would differ.
"""

from collections.abc import Sequence
from typing import Any

import torch

from pml_extensions._slimming.locations import where
from pml_extensions._slimming.tracing.stand_ins import is_stand_in, tensors_in

__all__ = ["Way", "parting"]

aten = torch.ops.aten

_ALIKE = {aten.mm: "product", aten.bmm: "product", aten.addmm: "sum", aten.baddbmm: "sum"}
_LAYOUT = {aten.clone, aten.contiguous, aten._unsafe_view, aten.copy_}  # what views need here and there


class Way:
    """An observer that notes the operations that give stand-ins, beside those that only look at memory otherwise.

    What depends on none may come from a cache that outlives a pass, as tables of positions do.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.places: list[str] = []

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:  # noqa: ARG002
        """Note one operation."""
        packet = func.overloadpacket
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if any(map(is_stand_in, tensors_in(out))) and not views and packet not in _LAYOUT:
            self.steps.append(_ALIKE.get(packet, str(packet)))
            self.places.append(where())


def parting(way: Way, other: Way) -> str | None:
    """Return in words where another way parts from one, or None if it does not."""
    if way.steps == other.steps:
        return None
    place = next((i for i, (a, b) in enumerate(zip(way.steps, other.steps, strict=False)) if a != b), None)
    at = min(len(way.steps), len(other.steps)) if place is None else place
    return f"{_step(other, at)} instead of {_step(way, at)}"


def _step(way: Way, place: int) -> str:
    steps: Sequence[str] = way.steps
    return f"{steps[place]} at {way.places[place]}" if place < len(steps) else "nothing more"
