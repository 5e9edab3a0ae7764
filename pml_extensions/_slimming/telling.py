"""The integers of a slim model that its forward pass does not read, from the sizes that the analysis has found.

What a timm model tells of itself, what a new classifier is made with, what branches are fused by: no width depends on
any of it, so nothing here decides a size, and what does not follow from known sizes keeps its dense value.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from pml_extensions._slimming.algebra.axes import Axis, Cat, Factor, Leaf, leaves, resolve
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Size, atoms
from pml_extensions._slimming.analysis import Widths
from pml_extensions._slimming.solving.conditions import Variable, conditions_of
from pml_extensions._slimming.solving.following import follow
from pml_extensions._slimming.tracing.later_uses import ask, can_be_asked, can_be_fused, fuse


def with_unread_integers(model: nn.Module, widths: Widths) -> Widths:
    """Return the widths of a model together with the integers that other uses than the forward pass read."""
    for applies, use in ((can_be_asked, ask), (can_be_fused, fuse)):
        if applies(model):
            known = _KnownSizes(widths)
            axes = {name: [known.copy(axis) for axis in axes] for name, axes in widths.watched.axes.items()}
            found = known.follow(use(model, widths.watched.inputs, axes))
            widths = replace(widths, attributes={**found, **widths.attributes})
    return widths


class _KnownSizes:
    """Axes with the structure of those analysed, of leaves of their own, with the slim sizes of these."""

    def __init__(self, widths: Widths) -> None:
        self._widths = widths
        self._copies: dict[Leaf, Leaf] = {}

    def copy(self, axis: Axis) -> Axis:
        """Return the copy of an axis."""
        return tuple(map(self._copy_factor, resolve(axis)))

    def _copy_factor(self, factor: Factor) -> Factor:
        if isinstance(factor, Cat):
            return Cat(tuple(map(self.copy, factor.parts)))
        return self._copies.setdefault(factor, Leaf(factor.size))

    def follow(self, equations: Iterable[Equation]) -> dict[Attribute, int]:
        """Return the values of attributes that follow from the sizes by equations."""
        telling = [e for e in equations if not isinstance(e.left, int) and not isinstance(e.right, int)]
        known: dict[Variable, int] = {}
        known.update(self._widths.attributes.items())
        for leaf, copy in self._copies.items():
            slim = self._widths.sizes.get(leaf, leaf.size)
            if copy.bound is None:
                known[copy] = slim
            else:  # it has turned out to be made of others
                telling.append(Equation(Size((copy,)), "==", slim))
        ours = {part for copy in self._copies.values() for part in leaves((copy,))}
        found = {part for e in telling for side in (e.left, e.right) for part in atoms(side)}
        open_to_change = {part for part in found if isinstance(part, Leaf) and (part in ours or part.frozen is None)}
        values = follow(conditions_of(telling, open_to_change), known)
        return {attribute: n for attribute, n in values.items() if isinstance(attribute, Attribute)}
