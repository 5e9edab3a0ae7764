"""How a forward pass uses parameters: as weights, or as tables, tokens and scales.

A parameter is a weight if a matrix product or a convolution applies it to features, that is, to floating-point values
computed from the input. On the way there it may be viewed, cast, rescaled or standardised, but not indexed or
interpolated, as tables of positions are. A table that enters a product all the same shows itself by what follows: the
axis that it adds is padded or gathered, so its entries are places and not features (relative positions in attention).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_extensions._slimming.algebra.axes import Axis, Leaf, leaves, resolve
from pml_extensions._slimming.tracing.stand_ins import tensors_in
from pml_extensions._slimming.tracing.trace import Trace

__all__ = ["NOT_MULTIPLIED", "PLACES", "Operands"]

NOT_MULTIPLIED = "table, token or scale: not multiplied with features"
PLACES = "table of positions: the axis that it adds to a product is padded or gathered"

aten = torch.ops.aten
_PRODUCTS = {  # where the two operands stand among the arguments, and which axis of the result each of them adds
    aten.mm: ((0, -2), (1, -1)),
    aten.bmm: ((0, -2), (1, -1)),
    aten.mv: ((0, -1), (1, None)),
    aten.dot: ((0, None), (1, None)),
    aten.addmm: ((1, -2), (2, -1)),
    aten.baddbmm: ((1, -2), (2, -1)),
    aten.addmv: ((1, -1), (2, None)),
    aten.convolution: ((0, None), (1, 1)),
}
_SELECTED_AXES: dict[Any, Callable[..., list[int]]] = {  # what chooses among the places of an axis, and of which axes
    aten.constant_pad_nd: lambda pad, *_: [-1 - i for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]],
    aten.index: lambda indices: [axis for axis, index in enumerate(indices) if index is not None],
    aten.index_select: lambda axis, _: [axis],
    aten.gather: lambda axis, *_: [axis],
}


@dataclass
class _Made:
    """What some memory was made of: all parameters that enter it, and those that it still holds whole."""

    of: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)


class _Product(NamedTuple):
    """A product of features with parameters, and the axis that these added to it."""

    of: frozenset[str]
    whole: frozenset[str]
    axis: Axis


class Operands:
    """Follow parameters and features through the operations of a watched pass; views are followed by their memory.

    Args:
        trace: tells the axes of tensors.
        parameters: those of the model, by the names that ``reasons`` is to use.
        inputs: what the model is given.
    """

    def __init__(self, trace: Trace, parameters: Mapping[str, Tensor], inputs: Iterable[Tensor]) -> None:
        self._trace = trace
        self._sizes = {name: _sizes(parameter) for name, parameter in parameters.items()}
        self._made = {_memory(parameter): _Made({name}, {name}) for name, parameter in parameters.items()}
        self._features = {_memory(value) for value in inputs if _is_feature(value)}
        self._of_product: dict[int, _Product] = {}  # the last product in some memory
        self._products: list[_Product] = []
        self._selected: list[_Product] = []
        self._alive: list[Tensor] = []  # memory that was freed could lend its number to another

    def reasons(self, names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
        """Return for each parameter None if it is a weight, else the reason why it counts as none.

        ``known`` are the weights known beforehand: what rescales one of them on its way is a scale.
        """
        weights, places = (
            {name for product in products if product.of.isdisjoint(known) for name in product.whole}
            for products in (self._products, self._selected)
        )
        return {name: PLACES if name in places else None if name in weights else NOT_MULTIPLIED for name in names}

    def places(self, known: Collection[str]) -> set[Leaf]:
        """Return the leaves of axes that tables of positions added to products: they count places, not channels.

        ``known`` are weights known beforehand: what these add are channels, padded or not.
        """
        return {leaf for product in self._selected if product.of.isdisjoint(known) for leaf in leaves(product.axis)}

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Look at one operation that has run, whose results have their axes."""
        operation, operands = func.overloadpacket, tensors_in((args, kwargs))
        from_features = not self._features.isdisjoint(map(_memory, operands))
        for result in tensors_in(out):
            if from_features:
                self._hand_on_features(operands, result)
            else:
                self._hand_on_parameters(operands, result, operation in _PRODUCTS or operation in _SELECTED_AXES)
        if operation in _PRODUCTS:
            (first, its_axis), (second, other_axis) = _PRODUCTS[operation]
            self._multiply(args[first], args[second], out, other_axis)
            self._multiply(args[second], args[first], out, its_axis)
        elif operation in _SELECTED_AXES:
            self._select(args[0], _SELECTED_AXES[operation](*args[1:]))

    def _hand_on_features(self, operands: list[Tensor], result: Tensor) -> None:
        """Mark a result as made from features, and as the product that it still is if it has the axis added there."""
        here = _memory(result)
        self._alive.append(result)
        if _is_feature(result):
            self._features.add(here)
        for product in filter(None, map(self._of_product.get, map(_memory, operands))):
            if self._has(result, product):
                self._of_product[here] = product

    def _hand_on_parameters(self, operands: list[Tensor], result: Tensor, in_part: bool) -> None:
        """Mark a result with the parameters that its operands were made of, and with those that it holds whole."""
        sources = [self._made[memory] for memory in map(_memory, operands) if memory in self._made]
        if not sources:
            return
        self._alive.append(result)
        made = self._made.setdefault(_memory(result), _Made())
        made.of.update(*(source.of for source in sources))
        if not in_part:
            names: set[str] = set().union(*(source.whole for source in sources))
            made.whole.update(name for name in names if self._sizes[name] & _sizes(result))

    def _multiply(self, features: Tensor, weight: Tensor, product: Tensor, axis: int | None) -> None:
        """Note that features are multiplied with what parameters were made into; ``axis`` is the one that it adds."""
        made = self._made.get(_memory(weight))
        if made is not None and made.whole and _memory(features) in self._features:
            added = () if axis is None else self._trace.axes(product)[axis]
            noted = _Product(frozenset(made.of), frozenset(made.whole), added)
            self._products.append(noted)
            self._of_product[_memory(product)] = noted

    def _select(self, tensor: Tensor, axes: list[int]) -> None:
        """Note that places are chosen along ``axes``, if one of them is that which parameters added to a product."""
        product = self._of_product.get(_memory(tensor))
        if product is not None and self._has(tensor, product, axes):
            self._selected.append(product)

    def _has(self, tensor: Tensor, product: _Product, dims: Iterable[int] | None = None) -> bool:
        """Tell whether a tensor has, among some dimensions, the axis that parameters added to a product."""
        added, axes = resolve(product.axis), self._trace.axes(tensor)
        return bool(added) and any(resolve(axes[d]) == added for d in (range(len(axes)) if dims is None else dims))


def _is_feature(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _memory(tensor: Tensor) -> int:
    """Return the number of the memory that a tensor shares with its views."""
    return int(tensor.untyped_storage()._cdata)


def _sizes(tensor: Tensor) -> set[tuple[str, int]]:
    """Return what stays where nothing is lost: the number of entries, or (real numbers read as complex) of bytes."""
    return {("entries", tensor.numel()), ("bytes", tensor.numel() * tensor.element_size())}
