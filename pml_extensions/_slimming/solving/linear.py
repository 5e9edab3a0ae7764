"""Sizes that follow others: the linear equations between leaves, solved before anything is searched.

A form maps leaves, and products of leaves, to their coefficients; the constant stands under ``CONSTANT``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pml_extensions._slimming.algebra.axes import Leaf
from pml_extensions._slimming.algebra.integers import Attribute
from pml_extensions._slimming.solving.conditions import Condition, Term, build, substitute, substitute_all, variables

Form: TypeAlias = dict[Any, int]
CONSTANT = 1


@dataclass(frozen=True)
class Tie:
    """A leaf whose slim size is that of a term of other leaves, with the line of the model's code that demands it."""

    leaf: Leaf
    term: Term
    where: str


def tie(conditions: list[Condition]) -> tuple[dict[Leaf, Tie], list[Condition]]:
    """Take leaves that some condition equates with a sum or product of others out of all others, the largest first.

    Returns:
        The ties, and the conditions that remain, in leaves that are free.
    """
    forms = [(form, c.where) for c in conditions if (form := _difference(c)) is not None]
    rest = [c for c in conditions if _difference(c) is None]
    ties: dict[Leaf, tuple[Form, str]] = {}
    while found := max(map(_solved, forms), key=lambda s: s[0].size if s else -1, default=None):
        leaf, form, where = found
        ties = {tied: (replaced(f, leaf, form), line) for tied, (f, line) in ties.items()}
        ties[leaf] = (form, where)
        forms = [(new, line) for f, line in forms if (new := replaced(f, leaf, form))]
    terms = {leaf: Tie(leaf, term_of_form(form), where) for leaf, (form, where) in ties.items()}
    left = [*rest, *(_condition(form, where) for form, where in forms)]
    return terms, substitute_all(left, {leaf: t.term for leaf, t in terms.items()})


def _difference(condition: Condition) -> Form | None:
    """Return the linear form that an equation sets to zero, or None if it is not linear in leaves."""
    if condition.relation != "==":
        return None
    left, right = form_of(condition.left), form_of(condition.right)
    return None if left is None or right is None else combined(left, right, -1)


def form_of(term: Term) -> Form | None:
    """Return a term of leaves as a linear form, or None if it is not one."""
    if isinstance(term, int):
        return {CONSTANT: term} if term else {}
    if not isinstance(term, tuple):
        return None if isinstance(term, Attribute) else {term: 1}
    symbol, left, right = term
    a, b = form_of(left), form_of(right)
    if a is None or b is None:
        return None
    if symbol in {"+", "-"}:
        return combined(a, b, 1 if symbol == "+" else -1)
    if symbol == "*":
        return _product(a, b)
    return _quotient(a, symbol, b.get(CONSTANT, 0)) if b.keys() == {CONSTANT} else None


def combined(a: Form, b: Form, times: int) -> Form:
    """Return ``a + times * b``."""
    return {k: n for k in (*a, *b) if (n := a.get(k, 0) + times * b.get(k, 0))}


def _product(a: Form, b: Form) -> Form:
    out: Form = {}
    for x, m in a.items():
        for y, n in b.items():
            key = y if x == CONSTANT else x if y == CONSTANT else ("*", x, y)
            out = combined(out, {key: m * n}, 1)
    return out


def _quotient(a: Form, symbol: str, divisor: int) -> Form | None:
    """Return a floored quotient or a remainder where it is exact but for the constant."""
    if divisor <= 0 or any(n % divisor for k, n in a.items() if k != CONSTANT):
        return None
    constant = a.get(CONSTANT, 0)
    if symbol == "%":
        return form_of(constant % divisor)
    whole = {k: n // divisor for k, n in a.items() if k != CONSTANT}
    return combined(whole, {CONSTANT: constant // divisor}, 1)


def _solved(equation: tuple[Form, str]) -> tuple[Leaf, Form, str] | None:
    """Return the largest leaf that a form equates with a sum of others, that sum, and the line."""
    form, where = equation
    within = {v for k in form if isinstance(k, tuple) for v in variables(k)}
    for leaf in sorted((k for k in form if isinstance(k, Leaf)), key=lambda leaf: -leaf.size):
        others = {k: -n * form[leaf] for k, n in form.items() if k is not leaf}
        if abs(form[leaf]) == 1 and leaf not in within and all(n > 0 for n in others.values()):
            return leaf, others, where
    return None


def replaced(form: Form, leaf: Leaf, by: Form) -> Form:
    """Return a form with another put in for a leaf."""
    out: Form = {}
    for key, n in form.items():
        if key is leaf:
            part = by
        elif isinstance(key, tuple) and leaf in variables(key):
            part = form_of(substitute(key, {leaf: term_of_form(by)})) or {}
        else:
            part = {key: 1}
        out = combined(out, part, n)
    return out


def term_of_form(form: Mapping[Any, int]) -> Term:
    """Return a linear form with positive coefficients as a term."""
    term: Term = 0
    for key, n in form.items():
        term = build("+", term, n if key == CONSTANT else build("*", n, key))
    return term


def _condition(form: Form, where: str) -> Condition:
    """Return the equation of what a form adds with what it takes away."""
    left = {key: n for key, n in form.items() if n > 0}
    right = {key: -n for key, n in form.items() if n < 0}
    return Condition("==", term_of_form(left), term_of_form(right), where)
