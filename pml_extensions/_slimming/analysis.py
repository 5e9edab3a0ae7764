"""From a traced forward pass to the slim size of every width."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pml_extensions._slimming.algebra.axes import (
    Axis,
    Cat,
    Leaf,
    Reason,
    freeze,
    kept,
    leaves,
    resolve,
    size,
    slim_size,
)
from pml_extensions._slimming.algebra.integers import Attribute
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.solving.conditions import conditions_of
from pml_extensions._slimming.solving.fixing import fix_what_follows
from pml_extensions._slimming.solving.solver import solve
from pml_extensions._slimming.tracing.forward import Watched, watch
from pml_extensions._slimming.tracing.module_integers import known_weights
from pml_extensions._slimming.tracing.trace import INPUT, Trace


@dataclass(frozen=True)
class Whole:
    """A hidden width that stays whole, with the reason and the line of the model's code where it is used."""

    size: int
    reason: Reason
    where: str

    def __str__(self) -> str:
        return f"{self.size} at {self.where}: {self.reason}"


@dataclass
class Widths:
    """What of a model stays: the indices of every dimension, the integers that change, and what stayed whole.

    Attributes:
        watched: the pass that all was read off.
        sizes: the slim sizes of leaves.
        attributes: the slim values of integers that modules hold.
        whole: hidden widths that stay whole.
        outputs: widths that stay whole because they are an output of the network, or tied to one, or to what else would
            not become narrower: an input, places in space, a table that the code computes.
        unchanged: why no width becomes narrower, or an empty string if any does.
    """

    watched: Watched
    sizes: dict[Leaf, int]
    attributes: dict[Attribute, int]
    whole: list[Whole]
    outputs: list[Whole]
    unchanged: str

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
    places = watched.operands.places(known_weights(model))
    freeze(tuple(places), Reason("it counts places", by_design=True))
    fix_what_follows(trace.equations)
    chosen = chosen_sizes(trace, rate, multiple)
    targets = {leaf: n for leaf, n in chosen.items() if n < leaf.size}
    solution = solve(conditions_of(trace.equations, targets.keys()), targets)
    for leaf, reason in solution.frozen.items():
        leaf.frozen = reason
    broken = [e for e in trace.equations if not e.holds(solution.sizes, solution.attributes)]
    if broken:
        raise TracingError(
            f"{len(broken)} equations between sizes have no solution, the first at {broken[0].where}; no slim network "
            "can be made of this model, but splits of single weights (WELS) work"
        )
    _check_results(watched, solution.sizes)
    weight_axes = [
        (axis, where)
        for axis, where, added in trace.weight_axes
        if places.isdisjoint(leaves(axis)) and (added or not _is_given(axis))
    ]
    whole, outputs, every = (
        _whole(weight_axes, solution.sizes, reason) for reason in (_reason, _reason_by_design, _first_reason)
    )
    narrower = any(n < leaf.size for leaf, n in solution.sizes.items())
    unchanged = "" if narrower else _why_unchanged(every, bool(chosen) and not targets)
    return Widths(watched, solution.sizes, solution.attributes, whole, outputs, unchanged)


def _check_results(watched: Watched, sizes: Mapping[Leaf, int]) -> None:
    """Raise if the pass used what an earlier call computed of dense weights: a slim network computes something else."""
    for name in watched.results:
        if not watched.complete or any(slim_size(axis, sizes) < size(axis) for axis in watched.axes[name]):
            raise TracingError(
                f"{name!r} of the model holds a tensor that an earlier call computed, and the forward pass uses it "
                "instead of computing it anew; set it to what it was in the new model, or cut the network before its "
                "first call"
            )


def chosen_sizes(trace: Trace, rate: float, multiple: int) -> dict[Leaf, int]:
    """Choose the leaves to shrink and return the wanted sizes; some may be rounded up to what they are.

    Of a product the innermost factor that can shrink is chosen (head_dim, channels of a group) and the others (heads,
    groups) stay whole everywhere, as does the multiplier of a depthwise convolution whose channels can shrink. The
    channels of a kernel that the network computes are widths each of their own, though a parameter holds their product.
    """
    axes = [resolve(axis) for axis, *_ in trace.weight_axes]
    made = {leaf for known in trace.made_kernels for leaf in leaves((known,))}
    chosen: dict[Leaf, int] = {}
    counts = {
        leaf for mixed, other in trace.mixtures if len(made.intersection(leaves(other))) > 1 for leaf in leaves(mixed)
    }
    for channels, times in trace.multiplied:
        if any(_can_shrink(leaf, counts) for leaf in leaves(channels)):
            counts.update(leaves(times))
    for product in (p for axis in axes for p in _products(axis)):
        if len(product) > 1 and len(made.intersection(leaves(product))) < 2:
            _choose_factor(product, rate, multiple, chosen, counts)
    for axis in axes:
        _choose(axis, rate, multiple, chosen, counts)
    return chosen


def _products(axis: Axis) -> list[Axis]:
    """Return the products of an axis: itself, or those of the parts of a concatenation."""
    if len(axis) == 1 and isinstance(axis[0], Cat):
        return [inner for part in axis[0].parts for inner in _products(part)]
    return [axis]


def _choose_factor(product: Axis, rate: float, multiple: int, chosen: dict[Leaf, int], counts: set[Leaf]) -> None:
    """Choose the innermost factor of a product that can shrink; the others count heads, groups or the like."""
    able = [f for f in reversed(product) if any(_can_shrink(leaf, counts) for leaf in leaves((f,)))]
    factor = next((f for f in able if any(leaf in chosen for leaf in leaves((f,)))), able[0] if able else None)
    for other in product:
        if other is factor:
            _choose((other,), rate, multiple // math.gcd(multiple, size(product) // other.size), chosen, counts)
        else:
            counts.update(leaf for leaf in leaves((other,)) if leaf not in chosen)


def _choose(axis: Axis, rate: float, step: int, chosen: dict[Leaf, int], counts: set[Leaf]) -> None:
    for product in _products(axis):
        if len(product) == 1 and isinstance(product[0], Leaf):
            leaf = product[0]
            if leaf not in chosen and _can_shrink(leaf, counts):
                chosen[leaf] = rounded(leaf.size, rate, step)
        elif len(product) > 1 and chosen.keys().isdisjoint(leaves(product)):
            _choose_factor(product, rate, step, chosen, counts)


def _can_shrink(leaf: Leaf, counts: set[Leaf]) -> bool:
    return leaf.frozen is None and leaf.produced and leaf not in counts


def rounded(length: int, rate: float, step: int) -> int:
    """Return ceil(rate * length), rounded up to a multiple of ``step`` but never above ``length``."""
    least = math.ceil(round(rate * length, 9))
    return min(length, -(-least // step) * step)


def _whole(
    axes: Iterable[tuple[Axis, str]], sizes: Mapping[Leaf, int], reason_of: Callable[[Axis], Reason | None]
) -> list[Whole]:
    found: dict[tuple[Any, ...], Whole] = {}
    for axis, where in axes:
        for part in _products(resolve(axis)):
            if slim_size(part, sizes) == size(part) > 1:
                reason = reason_of(part)
                if reason is not None:
                    found.setdefault(part, Whole(size(part), reason, where))
    return list(found.values())


def _is_given(axis: Axis) -> bool:
    """Tell whether an axis is one of an input: what reads it must have its size."""
    return all(leaf.frozen is not None and leaf.frozen.text == INPUT for leaf in leaves(axis))


def _reason(axis: Axis) -> Reason | None:
    """Return why an axis stays whole, or None if no narrower network would differ here."""
    return next((reason for reason in reversed(_reasons(axis)) if not reason.by_design), None)


def _reason_by_design(axis: Axis) -> Reason | None:
    """Return the reason of an axis that would stay whole in any narrower network, else None."""
    return _first_reason(axis) if _reason(axis) is None else None


def _first_reason(axis: Axis) -> Reason | None:
    """Return why an axis stays whole, be it by design."""
    return next(iter(_reasons(axis)), None)


def _reasons(axis: Axis) -> list[Reason]:
    """Return why the leaves of an axis that weights decide on keep their sizes."""
    frozen = [leaf.frozen for leaf in leaves(axis)] if all(leaf.produced for leaf in leaves(axis)) else []
    return [reason for reason in frozen if reason is not None]


def _why_unchanged(whole: Sequence[Whole], rounded_up: bool) -> str:
    """Return in words why no width becomes narrower."""
    lines = ["every width is rounded up to what it is"] if rounded_up else []
    lines += dict.fromkeys(map(str, whole))
    return "; ".join(lines) or "the model multiplies its input with no weight"
