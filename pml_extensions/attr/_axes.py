"""What the axes of a tensor are made of: the examples, places of the input, channels of the network.

An axis is a product of factors, the outermost first: after ``flatten(2)`` rows and columns, say. A factor is a digit of
the index into its root, where an extent came into being: an axis of an input, of a convolution's result, of a weight.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an axis counts."""

    EXAMPLES = "examples"
    PLACES = "places"
    CHANNELS = "channels"
    INPUT = "an axis of the input"  # of which nothing has said yet whether it counts places or channels
    UNKNOWN = "unknown"


@dataclass(eq=False)
class Root:
    """Where an extent came into being; the ``parts`` of a concatenation are its axes."""

    kind: Kind
    parts: tuple["Axis", ...] = ()


@dataclass(frozen=True)
class Factor:
    """The digit ``index // step % size`` of an index into a root."""

    root: Root
    step: int
    size: int


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]

_CHANNELS, _UNKNOWN = Root(Kind.CHANNELS), Root(Kind.UNKNOWN)
_CERTAINTY = [Kind.CHANNELS, Kind.UNKNOWN, Kind.INPUT, Kind.PLACES, Kind.EXAMPLES]


def whole(root: Root, size: int) -> Axis:
    """Return the axis that a root spans."""
    return (Factor(root, 1, size),)


def channels(size: int) -> Axis:
    """Return an axis that comes from the network."""
    return whole(_CHANNELS, size)


def places(size: int) -> Axis:
    """Return a new axis of places."""
    return whole(Root(Kind.PLACES), size)


def unknown(size: int) -> Axis:
    """Return an axis of which nothing is known."""
    return whole(_UNKNOWN, size)


def length(axis: Axis) -> int:
    """Return the size of an axis."""
    return math.prod(factor.size for factor in axis)


def kind(axis: Axis) -> Kind | None:
    """Return what an axis counts: channels if it counts places as well, None if it is of size 1 and from nowhere."""
    kinds = {factor.root.kind for factor in axis}
    if len(kinds) <= 1:
        return next(iter(kinds), None)
    if kinds & {Kind.UNKNOWN, Kind.EXAMPLES}:
        return Kind.UNKNOWN
    return Kind.PLACES if kinds == {Kind.PLACES, Kind.INPUT} else Kind.CHANNELS


def lost(axis: Axis) -> bool:
    """Say whether nothing at all is known of an axis."""
    return bool(axis) and all(factor.root.kind is Kind.UNKNOWN for factor in axis)


def learn(axis: Axis, what: Kind) -> None:
    """Note what an operation takes an axis of the input for."""
    for factor in axis:
        if factor.root.kind is Kind.INPUT:
            factor.root.kind = what


def agreed(candidates: Iterable[Axis]) -> Axis:
    """Return what is best known of axes that meet element by element."""
    return max(candidates, key=_certainty, default=())


def _certainty(axis: Axis) -> tuple[int, int]:
    what = kind(axis)
    return (-1 if what is None else _CERTAINTY.index(what)), len(axis)


def resized(axis: Axis, size: int) -> Axis:
    """Return what becomes of an axis that is cropped, padded or thinned out to another size."""
    return axis if size == length(axis) else picked(axis, size)


def picked(axis: Axis, size: int) -> Axis:
    """Return what becomes of an axis of which some entries are taken in some order."""
    what = kind(axis)
    if what is Kind.CHANNELS:
        return channels(size)
    return places(size) if what in {Kind.PLACES, Kind.INPUT} else unknown(size)


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """Return the axes that an axis is a concatenation of."""
    if len(axis) == 1 and axis[0].root.parts and length(axis) == sum(map(length, axis[0].root.parts)):
        return axis[0].root.parts
    return (axis,)


def concatenated(axes: Sequence[Axis]) -> Axis:
    """Return the axis of a concatenation along it."""
    parts = [part for axis in axes for part in parts_of(axis) if length(part)]
    size, kinds = sum(map(length, parts)), {kind(part) or Kind.CHANNELS for part in parts}
    if len(parts) == 1:
        return parts[0]
    if kinds == {Kind.CHANNELS}:
        return channels(size)
    if kinds <= {Kind.PLACES, Kind.INPUT}:
        return places(size)
    if kinds & {Kind.UNKNOWN, Kind.EXAMPLES}:
        return unknown(size)
    merged: list[Axis] = []
    for part in parts:
        alike = merged and kind(part) is kind(merged[-1]) is Kind.CHANNELS
        merged[-1:] = [channels(length(merged[-1]) + length(part))] if alike else [*merged[-1:], part]
    return whole(Root(Kind.PLACES, tuple(merged)), size)


def cut(axis: Axis, start: int, stop: int) -> Axis:
    """Return a stretch of an axis; of a concatenation the parts that lie in it."""
    kept, begin = [], 0
    for part in parts_of(axis):
        end = begin + length(part)
        overlap = min(end, stop) - max(begin, start)
        if overlap > 0:
            kept.append(resized(part, overlap))
        begin = end
    return concatenated(kept) if kept else unknown(max(stop - start, 0))


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes:
    """Return the axes of a tensor after a view as ``shape``, in row-major order."""
    left = [factor for axis in axes for factor in axis]
    result: list[Axis] = []
    for place, size in enumerate(shape):
        taken = _take(left, size, last=place == len(shape) - 1)
        if taken is None:  # sizes that do not divide one another
            return (*result, *(unknown(later) for later in shape[place:]))
        result.append(_simplified(taken))
    return tuple(result)


def _take(left: list[Factor], size: int, *, last: bool) -> list[Factor] | None:
    """Take the outermost factors of an axis of some size off the list of those that are left."""
    taken: list[Factor] = []
    if size == 1 and left and left[0].size == 1:
        taken.append(left.pop(0))
    while size > 1:
        if not left:
            return None
        factor = left.pop(0)
        common = math.gcd(size, factor.size)
        if common < min(size, factor.size):
            return None
        if common < factor.size:
            rest = factor.size // common
            left.insert(0, Factor(factor.root, factor.step, rest))
            factor = Factor(factor.root, factor.step * rest, common)
        taken.append(factor)
        size //= common
    return taken + left if last else taken


def _simplified(factors: list[Factor]) -> Axis:
    """Return the axis with neighbours joined that were one, and without factors of size 1 where there are others."""
    kept: list[Factor] = []
    for factor in [factor for factor in factors if factor.size > 1] or factors[:1]:
        before = kept[-1] if kept else None
        if before and before.root is factor.root in {_CHANNELS, _UNKNOWN}:
            kept[-1] = Factor(factor.root, 1, before.size * factor.size)
        elif before and before.root is factor.root and before.step == factor.step * factor.size:
            kept[-1] = Factor(factor.root, factor.step, before.size * factor.size)
        else:
            kept.append(factor)
    return tuple(kept)
