"""Linear forms of terms, and the leaves that linear equations tie to others."""

import itertools

import pytest

from pml_extensions._slimming.algebra.axes import Leaf
from pml_extensions._slimming.algebra.integers import Attribute
from pml_extensions._slimming.solving.conditions import Condition, value_of
from pml_extensions._slimming.solving.linear import CONSTANT, form_of, term_of_form, tie

A, B, C, D = (Leaf(n) for n in (3, 3, 6, 12))


def plus(*terms):
    total = terms[0]
    for term in terms[1:]:
        total = ("+", total, term)
    return total


@pytest.mark.parametrize(
    ("term", "form"),
    [
        (0, {}),
        (7, {CONSTANT: 7}),
        (A, {A: 1}),
        (plus(A, B, A, 2), {A: 2, B: 1, CONSTANT: 2}),
        (("-", A, ("*", 3, B)), {A: 1, B: -3}),
        (("-", A, A), {}),
        (("*", ("+", A, 1), ("+", B, 2)), {("*", A, B): 1, A: 2, B: 1, CONSTANT: 2}),
        (("//", plus(("*", 2, A), ("*", 4, B), 3), 2), {A: 1, B: 2, CONSTANT: 1}),
        (("%", plus(("*", 2, A), 3), 2), {CONSTANT: 1}),
        (("%", ("*", 2, A), 2), {}),
        (("//", A, 2), None),
        (("//", ("*", 4, A), ("-", B, B)), None),
        (("//", 6, A), None),
        (("+", A, Attribute("", "dim", (), 4)), None),
    ],
)
def test_forms(term, form):
    assert form_of(term) == form


def test_a_form_has_the_value_of_its_term():
    term = plus(("*", ("+", A, 2), B), ("*", 5, C), ("//", plus(("*", 3, D), 4), 3))
    for numbers in itertools.product((1, 2, 5, 30), repeat=4):
        values = dict(zip((A, B, C, D), numbers, strict=True))
        assert value_of(term_of_form(form_of(term)), values) == value_of(term, values)


def equal(left, right):
    return Condition("==", left, right, "model.py:1")


def test_halves_of_shuffled_halves_follow_one_leaf():
    """What ShuffleNet's chunk and channel shuffle ask for: (a + b) + c = d, a + b = c, a = b."""
    doubled = ("*", 2, plus(A, B, C, D))
    ties, rest = tie(
        [
            equal(("//", ("+", doubled, 1), 2), ("*", 2, plus(A, B, C))),
            equal(plus(A, B, C), ("*", 2, ("+", A, B))),
            equal(A, B),
        ]
    )
    assert rest == []
    (free,) = {A, B, C, D} - ties.keys()
    assert [value_of(ties[leaf].term, {free: 2}) for leaf in (C, D)] == [4, 8]
    assert {t.where for t in ties.values()} == {"model.py:1"}


def test_what_is_not_a_sum_of_others_stays_a_condition():
    conditions = [
        equal(("*", 2, A), ("*", 3, B)),
        equal(("%", D, 4), 0),
        Condition("<", A, D, ""),
        equal(("*", C, A), ("*", C, B)),
    ]
    ties, rest = tie(conditions)
    assert ties == {}
    assert len(rest) == 4
    values = {A: 3, B: 2, C: 6, D: 12}
    assert [c.holds(values) for c in rest] == [
        c.holds(values) for c in (conditions[1], conditions[2], *conditions[::3])
    ]


def test_a_tied_leaf_is_put_into_products_and_other_conditions():
    ties, rest = tie([equal(D, ("*", 2, C)), equal(("*", D, A), ("*", 5, B)), equal(("%", D, 4), 0)])
    assert ties.keys() == {D}
    values = {A: 2, B: 4, C: 5, D: 10}
    assert [c.holds(values) for c in rest] == [False, True]  # 10 % 4; 2 * 5 * 2 == 5 * 4
    assert all(D not in c.variables() for c in rest)
