"""Integers that remember where they came from, and the equations that the forward pass puts them into."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pml_extensions._slimming.algebra.axes import Axis, Leaf, leaves, slim_size
from pml_extensions._slimming.locations import where


@dataclass(frozen=True)
class Attribute:
    """An integer that a module holds: the module's name, the attribute's, and the places in nested tuples.

    ``dense`` is its value in the dense model.
    """

    module: str
    name: str
    places: tuple[Any, ...] = ()
    dense: int = 0

    def __str__(self) -> str:
        return ".".join(filter(None, [self.module, self.name])) + "".join(f"[{place!r}]" for place in self.places)


@dataclass(frozen=True, eq=False)
class Size:
    """The size of an axis."""

    axis: Axis


@dataclass(frozen=True, eq=False)
class Operation:
    """One of ``+ - * // %`` on two expressions."""

    symbol: str
    left: "Expression"
    right: "Expression"


Expression: TypeAlias = int | Attribute | Size | Operation

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
}  # fmt: skip
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Equation:
    """What held between two expressions in the dense forward pass, and must hold in the slim one."""

    left: Expression
    relation: str
    right: Expression
    where: str = ""

    def holds(self, sizes: Mapping[Leaf, int], attributes: Mapping[Attribute, int]) -> bool:
        """Tell whether it holds for slim sizes of leaves and values of attributes."""
        try:
            left, right = (evaluate(side, sizes, attributes) for side in (self.left, self.right))
        except ZeroDivisionError:
            return False
        return RELATIONS[self.relation](left, right)


def evaluate(expression: Expression, sizes: Mapping[Leaf, int], attributes: Mapping[Attribute, int]) -> int:
    """Return the value of an expression; leaves and attributes that are not listed have their dense value."""
    if isinstance(expression, Operation):
        left = evaluate(expression.left, sizes, attributes)
        return OPERATORS[expression.symbol](left, evaluate(expression.right, sizes, attributes))
    if isinstance(expression, Size):
        return slim_size(expression.axis, sizes)
    if isinstance(expression, Attribute):
        return attributes.get(expression, expression.dense)
    return int(expression)


def atoms(expression: Expression) -> Iterator[Attribute | Leaf]:
    """Yield the attributes and the unbound leaves of an expression."""
    if isinstance(expression, Operation):
        yield from atoms(expression.left)
        yield from atoms(expression.right)
    elif isinstance(expression, Size):
        yield from leaves(expression.axis)
    elif isinstance(expression, Attribute):
        yield expression


class TracedInt(int):
    """An int that carries its expression, and notes every comparison that the model's code makes with it."""

    expression: Expression
    equations: list[Equation]

    def __new__(cls, value: int, expression: Expression, equations: list[Equation]) -> "TracedInt":  # noqa: PYI034  # Self needs Python 3.11
        """Return ``value`` with the expression that gave it, noting comparisons in ``equations``."""
        traced = super().__new__(cls, value)
        traced.expression = expression
        traced.equations = equations
        return traced

    def __neg__(self) -> "TracedInt":
        return TracedInt(-int(self), Operation("-", 0, self.expression), self.equations)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TracedInt":
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    __hash__ = int.__hash__


def expression_of(value: int) -> Expression:
    """Return the expression of an integer, traced or plain."""
    return value.expression if isinstance(value, TracedInt) else int(value)


def plain(value: Any) -> Any:
    """Return a nest of tuples, lists, dicts and slices with plain integers in place of traced ones."""
    if isinstance(value, TracedInt):
        return int(value)
    if isinstance(value, (tuple, list)):
        items = [plain(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value


def _arithmetic(symbol: str, reverse: bool) -> Callable[[TracedInt, Any], Any]:
    plain_operator = OPERATORS[symbol]

    def apply(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        left, right = (other, self) if reverse else (self, other)
        value = plain_operator(int(left), int(right))
        return TracedInt(value, Operation(symbol, expression_of(left), expression_of(right)), self.equations)

    return apply


def _comparison(symbol: str) -> Callable[[TracedInt, Any], Any]:
    plain_relation = RELATIONS[symbol]
    negation = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}[symbol]

    def compare(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int, _NAMES[symbol])(int(self), other)
        held = plain_relation(int(self), int(other))
        relation = symbol if held else negation
        self.equations.append(Equation(self.expression, relation, expression_of(other), where()))
        return held

    return compare


_NAMES = {"==": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
for _symbol, _name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("//", "floordiv"), ("%", "mod")):
    setattr(TracedInt, f"__{_name}__", _arithmetic(_symbol, reverse=False))
    setattr(TracedInt, f"__r{_name}__", _arithmetic(_symbol, reverse=True))
for _symbol, _name in _NAMES.items():
    setattr(TracedInt, _name, _comparison(_symbol))
