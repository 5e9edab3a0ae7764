"""Axes: what one dimension of a tensor is made of, and what of it stays.

An axis is a product of factors, outermost first; the empty product has size one. A factor is a leaf, which shrinks as
a whole, or a concatenation of axes. A leaf may turn out to be a product or a concatenation itself (a view splits it, a
slice cuts it): it is then bound to that axis, and whatever mentions the leaf means the axis from then on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True)
class Reason:
    """Why a leaf keeps its size.

    Attributes:
        text: the reason in words.
        where: file and line of the model's code.
        by_design: True for what no narrower network would change (inputs, outputs, space, constants).
    """

    text: str
    where: str = ""
    by_design: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.where})" if self.where else self.text


class Leaf:
    """The smallest unit that shrinks as a whole.

    Attributes:
        size: its size in the dense model.
        bound: the axis it was found to be, or None.
        frozen: the reason why it keeps its size, or None.
        produced: True once a parameter decides what its entries hold.
    """

    __slots__ = ("bound", "frozen", "produced", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.bound: Axis | None = None
        self.frozen = frozen
        self.produced = False

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.frozen else ''}"


class Cat:
    """Axes behind one another."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: "tuple[Axis, ...]") -> None:
        self.parts = parts
        self.size = sum(size(part) for part in parts)

    def __repr__(self) -> str:
        return f"[{' + '.join('*'.join(map(repr, part)) or '1' for part in self.parts)}]"


Factor: TypeAlias = Leaf | Cat
Axis: TypeAlias = tuple[Factor, ...]
Axes: TypeAlias = list[Axis]


def new_axis(length: int, frozen: Reason | None = None) -> Axis:
    """Return an axis of one new leaf, or of none if the length is one."""
    return () if length == 1 else (Leaf(length, frozen),)


def size(axis: Axis) -> int:
    """Return the dense size of an axis."""
    return math.prod(factor.size for factor in axis)


def resolve(axis: Axis) -> Axis:
    """Return the axis with every bound leaf replaced by what it is bound to."""
    factors: list[Factor] = []
    for factor in axis:
        if isinstance(factor, Cat):
            factors.extend(_concatenation([resolve(part) for part in factor.parts]))
        elif factor.bound is None:
            factors.append(factor)
        else:
            factor.bound = resolve(factor.bound)
            factors.extend(factor.bound)
    return tuple(factors)


def concatenate(parts: list[Axis]) -> Axis:
    """Return the axis that has the given axes behind one another."""
    return _concatenation([resolve(part) for part in parts])


def _concatenation(parts: list[Axis]) -> Axis:
    flat: list[Axis] = []
    for part in parts:
        nested = len(part) == 1 and isinstance(part[0], Cat)
        flat.extend(part[0].parts if nested else (part,))  # type: ignore[union-attr]  # nested: a Cat
    flat = [part for part in flat if size(part)]
    return flat[0] if len(flat) == 1 else (Cat(tuple(flat)),)


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Yield the unbound leaves of an axis, in order."""
    for factor in resolve(axis):
        if isinstance(factor, Leaf):
            yield factor
        else:
            for part in factor.parts:
                yield from leaves(part)


def freeze(axis: Axis, reason: Reason) -> None:
    """Keep the whole axis at its size; the first reason of a leaf stays."""
    for leaf in leaves(axis):
        leaf.frozen = leaf.frozen or reason


def is_frozen(axis: Axis) -> bool:
    """Tell whether no leaf of the axis can shrink."""
    return all(leaf.frozen for leaf in leaves(axis))


def slim_size(axis: Axis, sizes: Mapping[Leaf, int]) -> int:
    """Return the size of an axis when leaves shrink to ``sizes``; a leaf that is not listed stays whole."""
    total = 1
    for factor in resolve(axis):
        if isinstance(factor, Leaf):
            total *= sizes.get(factor, factor.size)
        else:
            total *= sum(slim_size(part, sizes) for part in factor.parts)
    return total


def kept(axis: Axis, sizes: Mapping[Leaf, int]) -> np.ndarray:
    """Return the indices of an axis that stay: the leading ones of every leaf."""
    index = np.zeros(1, dtype=np.int64)
    for factor in resolve(axis):
        index = (index[:, None] * factor.size + _kept_of_factor(factor, sizes)[None, :]).reshape(-1)
    return index


def _kept_of_factor(factor: Factor, sizes: Mapping[Leaf, int]) -> np.ndarray:
    if isinstance(factor, Leaf):
        return np.arange(sizes.get(factor, factor.size))
    offsets = np.cumsum([0, *(size(part) for part in factor.parts)])
    return np.concatenate([kept(part, sizes) + offset for part, offset in zip(factor.parts, offsets, strict=False)])
