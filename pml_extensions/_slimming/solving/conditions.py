"""Equations over leaves and attributes, brought into their smallest form: what remains for the solver to satisfy."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pml_extensions._slimming.algebra.axes import Axis, Leaf, resolve
from pml_extensions._slimming.algebra.integers import (
    OPERATORS,
    RELATIONS,
    Attribute,
    Equation,
    Expression,
    Operation,
    Size,
)

Variable: TypeAlias = Leaf | Attribute
Term: TypeAlias = Any  # int | Variable | tuple[str, Term, Term]


@dataclass(frozen=True)
class Condition:
    """A relation of two terms, with the line of the model's code that demands it."""

    relation: str
    left: Term
    right: Term
    where: str

    def variables(self) -> set[Variable]:
        """Return the leaves and attributes that occur in it."""
        return set(variables(self.left)) | set(variables(self.right))

    def holds(self, values: Mapping[Variable, int]) -> bool:
        """Tell whether it holds."""
        try:
            return RELATIONS[self.relation](value_of(self.left, values), value_of(self.right, values))
        except ZeroDivisionError:
            return False

    def key(self) -> tuple[Any, ...]:
        """Return what makes two conditions the same."""
        return (self.relation, self.left, self.right)

    def trivial(self) -> bool:
        """Tell whether it holds whatever the values are."""
        return (self.relation == "==" and self.left == self.right) or not self.variables()


def variables(term: Term) -> Iterable[Variable]:
    """Yield the leaves and attributes of a term."""
    if isinstance(term, tuple):
        yield from variables(term[1])
        yield from variables(term[2])
    elif not isinstance(term, int):
        yield term


def value_of(term: Term, values: Mapping[Variable, int]) -> int:
    """Return the value of a term."""
    if isinstance(term, tuple):
        return OPERATORS[term[0]](value_of(term[1], values), value_of(term[2], values))
    return term if isinstance(term, int) else values[term]


def build(symbol: str, left: Term, right: Term) -> Term:
    """Return the term ``left symbol right``, computed as far as it is constant."""
    if isinstance(left, int) and isinstance(right, int) and not (symbol in {"//", "%"} and right == 0):
        return OPERATORS[symbol](left, right)
    if symbol == "*" and 1 in (left, right):
        return right if left == 1 else left
    if symbol in {"+", "-"} and right == 0:
        return left
    if symbol == "+" and left == 0:
        return right
    if symbol == "//" and right == 1:
        return left
    if symbol == "*" and isinstance(right, int):
        left, right = right, left
    return (symbol, left, right)


def term_of(expression: Expression, narrowed: Collection[Leaf]) -> Term:
    """Return an expression as a term in which only the given leaves are variable."""
    if isinstance(expression, Operation):
        return build(expression.symbol, term_of(expression.left, narrowed), term_of(expression.right, narrowed))
    if isinstance(expression, Size):
        return _term_of_axis(expression.axis, narrowed)
    return expression if isinstance(expression, Attribute) else int(expression)


def _term_of_axis(axis: Axis, narrowed: Collection[Leaf]) -> Term:
    term: Term = 1
    for factor in resolve(axis):
        if isinstance(factor, Leaf):
            term = build("*", term, factor if factor in narrowed else factor.size)
        else:
            total: Term = 0
            for part in factor.parts:
                total = build("+", total, _term_of_axis(part, narrowed))
            term = build("*", term, total)
    return term


def conditions_of(equations: Iterable[Equation], narrowed: Collection[Leaf]) -> list[Condition]:
    """Return the equations as conditions, without the trivial ones and without repetitions."""
    found: dict[tuple[Any, ...], Condition] = {}
    for equation in equations:
        left, right = term_of(equation.left, narrowed), term_of(equation.right, narrowed)
        condition = Condition(equation.relation, left, right, equation.where)
        if not condition.trivial():
            found.setdefault(condition.key(), condition)
    return list(found.values())


def substitute(term: Term, definitions: Mapping[Any, Term]) -> Term:
    """Return a term with the defined attributes or leaves replaced."""
    if isinstance(term, tuple):
        return build(term[0], substitute(term[1], definitions), substitute(term[2], definitions))
    return term if isinstance(term, int) else definitions.get(term, term)


def substitute_all(conditions: Iterable[Condition], definitions: Mapping[Any, Term]) -> list[Condition]:
    """Return the conditions with definitions put in, without those that hold by themselves and without repetitions."""
    remaining: dict[tuple[Any, ...], Condition] = {}
    for c in conditions:
        new = Condition(c.relation, substitute(c.left, definitions), substitute(c.right, definitions), c.where)
        if not new.trivial():
            remaining.setdefault(new.key(), new)
    return list(remaining.values())


def eliminate(conditions: list[Condition]) -> tuple[dict[Attribute, Term], list[Condition]]:
    """Take attributes that some condition equates with a term of leaves out of all others.

    Returns:
        The definitions found, and the conditions that remain.
    """
    definitions: dict[Attribute, Term] = {}
    while fresh := _definitions(conditions, definitions):
        definitions.update(fresh)
        conditions = substitute_all(conditions, fresh)
    return definitions, conditions


def _definitions(conditions: list[Condition], known: Mapping[Attribute, Term]) -> dict[Attribute, Term]:
    fresh: dict[Attribute, Term] = {}
    for c in conditions:
        for attribute, term in ((c.left, c.right), (c.right, c.left)):
            bare = c.relation == "==" and isinstance(attribute, Attribute) and attribute not in known
            if bare and not any(isinstance(v, Attribute) for v in variables(term)):
                fresh.setdefault(attribute, term)
    return fresh
