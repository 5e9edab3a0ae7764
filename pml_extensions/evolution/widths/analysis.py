"""From a traced forward pass to the slim size of every width."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pml_extensions.evolution.widths.axes import Axis, Cat, Leaf, Reason, kept, leaves, resolve, size, slim_size
from pml_extensions.evolution.widths.forward import Watched, watch
from pml_extensions.evolution.widths.integers import Attribute
from pml_extensions.evolution.widths.locations import TracingError
from pml_extensions.evolution.widths.solver import solve
from pml_extensions.evolution.widths.system import conditions_of


@dataclass(frozen=True)
class Whole:
    """A hidden width that stays whole, with the reason and the line of the model's code where it is used."""

    size: int
    reason: Reason
    where: str


@dataclass
class Widths:
    """What of a model stays: the indices of every dimension, the integers that change, and what stayed whole."""

    watched: Watched
    sizes: dict[Leaf, int]
    attributes: dict[Attribute, int]
    whole: list[Whole]

    def kept(self, name: str) -> list[np.ndarray] | None:
        """Return the indices that stay in each dimension of a tensor of the model; None if forward did not use it."""
        axes = self.watched.axes.get(name)
        return None if axes is None else [kept(axis, self.sizes) for axis in axes]

    def slim_size(self, axis: Axis) -> int:
        """Return the slim size of an axis."""
        return slim_size(axis, self.sizes)

    def changes(self) -> dict[tuple[str, str], dict[tuple[Any, ...], int]]:
        """Return the integers that change, by module and attribute, then by the places in nested tuples."""
        changed: dict[tuple[str, str], dict[tuple[Any, ...], int]] = {}
        for attribute, value in self.attributes.items():
            if value != attribute.dense:
                changed.setdefault((attribute.module, attribute.name), {})[attribute.places] = value
        return changed


def analyse(model: nn.Module, inputs: tuple[Any, ...], rate: float, multiple: int = 1) -> Widths:
    """Find the slim size of every hidden width of a model.

    Args:
        model: the dense model; it is not touched.
        inputs: what its forward takes, as stand-ins.
        rate: the part of each width to keep, rounded up.
        multiple: widths are rounded up further to multiples of this, where they are large enough.
    """
    watched = watch(model, inputs)
    trace = watched.trace
    targets = wanted_sizes([axis for axis, _ in trace.weight_axes], rate, multiple)
    solution = solve(conditions_of(trace.equations, targets.keys()), targets)
    for leaf, reason in solution.frozen.items():
        leaf.frozen = reason
    broken = [e for e in trace.equations if not e.holds(solution.sizes, solution.attributes)]
    if broken:
        raise TracingError(
            f"{len(broken)} equations between sizes have no solution, the first at {broken[0].where}; no slim network "
            "can be made of this model, but splits of single weights (WELS) work"
        )
    return Widths(watched, solution.sizes, solution.attributes, _whole(trace.weight_axes, solution.sizes))


def wanted_sizes(axes: Iterable[Axis], rate: float, multiple: int) -> dict[Leaf, int]:
    """Choose one leaf of every product to shrink, the innermost that can, and return the wanted sizes."""
    chosen: dict[Leaf, int] = {}
    for axis in axes:
        _choose(resolve(axis), 1, rate, multiple, chosen)
    return {leaf: n for leaf, n in chosen.items() if n < leaf.size}


def _choose(axis: Axis, outer: int, rate: float, multiple: int, chosen: dict[Leaf, int]) -> None:
    if len(axis) > 1 and any(leaf in chosen for leaf in leaves(axis)):
        return
    for factor in reversed(axis):
        rest = outer * size(axis) // factor.size
        if isinstance(factor, Cat):
            if not all(leaf.frozen or not leaf.produced for leaf in leaves((factor,))):
                for part in factor.parts:
                    _choose(part, rest, rate, multiple, chosen)
                return
        elif factor in chosen:
            return
        elif not factor.frozen and factor.produced:
            chosen[factor] = rounded(factor.size, rate, multiple // math.gcd(multiple, rest))
            return


def rounded(length: int, rate: float, step: int) -> int:
    """Return ceil(rate * length), rounded up to a multiple of ``step`` but never above ``length``."""
    least = math.ceil(round(rate * length, 9))
    return min(length, -(-least // step) * step)


def _whole(axes: Iterable[tuple[Axis, str]], sizes: Mapping[Leaf, int]) -> list[Whole]:
    found: dict[tuple[Any, ...], Whole] = {}
    for axis, where in axes:
        for part in _parts(resolve(axis)):
            if slim_size(part, sizes) == size(part) > 1:
                reason = _reason(part)
                if reason is not None:
                    found.setdefault(part, Whole(size(part), reason, where))
    return list(found.values())


def _parts(axis: Axis) -> list[Axis]:
    if len(axis) == 1 and isinstance(axis[0], Cat):
        return [inner for part in axis[0].parts for inner in _parts(part)]
    return [axis]


def _reason(axis: Axis) -> Reason | None:
    """Return why an axis stays whole, or None if no narrower network would differ here."""
    if not all(leaf.produced for leaf in leaves(axis)):
        return None
    reasons = [leaf.frozen for leaf in reversed(list(leaves(axis)))]
    return next((reason for reason in reasons if reason is not None and not reason.by_design), None)
