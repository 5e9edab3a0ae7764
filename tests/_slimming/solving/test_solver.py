"""The solver: sizes near their targets that satisfy every condition; what cannot be repaired stays whole."""

import itertools

import pytest

from pml_extensions._slimming.algebra.axes import Leaf, new_axis
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Operation, Size, TracedInt, evaluate, plain
from pml_extensions._slimming.solving.conditions import conditions_of
from pml_extensions._slimming.solving.solver import solve


def leaf(length):
    return Leaf(length)


def of(*factors):
    return Size(tuple(factors))


def solved(equations, targets):
    """Solve, and check the solution against every equation."""
    solution = solve(conditions_of(equations, targets.keys()), targets)
    assert all(equation.holds(solution.sizes, solution.attributes) for equation in equations)
    assert all(1 <= n <= x.size for x, n in solution.sizes.items())
    return solution


def test_targets_stay_where_they_fit():
    a, b = leaf(8), leaf(16)
    assert solved([Equation(of(a), "<", of(b))], {a: 4, b: 8}).sizes == {a: 4, b: 8}


def test_a_width_follows_its_heads():
    width, head = leaf(96), leaf(32)
    heads = Leaf(3)
    solution = solved([Equation(of(width), "==", of(heads, head))], {width: 29, head: 10})
    assert solution.sizes == {width: 30, head: 10}
    assert not solution.frozen


def test_a_chain_of_equal_widths_moves_as_one():
    widths, heads = [leaf(160) for _ in range(4)], [leaf(32) for _ in range(3)]
    equations = [Equation(of(a), "==", of(b)) for a, b in itertools.pairwise(widths)]
    equations += [Equation(of(widths[0]), "==", of(Leaf(5), head)) for head in heads]
    solution = solved(equations, {**dict.fromkeys(widths, 48), **dict.fromkeys(heads, 10)})
    assert {solution.sizes[w] for w in widths} == {50}
    assert not solution.frozen


@pytest.mark.parametrize("rate", [0.25, 0.3, 0.5, 0.75])
def test_parts_of_a_concatenation_against_heads(rate):
    parts, head = [leaf(30), leaf(30), leaf(28)], leaf(11)
    total = Operation("+", Operation("+", of(parts[0]), of(parts[1])), of(parts[2]))
    targets = {x: -(-x.size * round(100 * rate) // 100) for x in (*parts, head)}
    solution = solved([Equation(total, "==", of(Leaf(8), head))], targets)
    assert not solution.frozen
    assert all(abs(solution.sizes[x] - targets[x]) <= 5 for x in parts)


@pytest.mark.parametrize("rate", [(1, 4), (3, 10), (1, 2), (3, 4)])
@pytest.mark.parametrize("lengths", [(76, 76, 38), (54, 52, 20)])
def test_chunks_against_heads_move_two_leaves_that_do_not_fit_alone(rate, lengths):
    """EdgeNeXt's scales: n - 1 equal chunks and a rest, together eight heads."""
    chunk, rest, head = map(leaf, lengths)
    equal = (8 * lengths[2] - lengths[1]) // lengths[0]
    total = Operation("+", Operation("*", equal, of(chunk)), of(rest))
    ceiling = Operation("//", Operation("+", total, equal), equal + 1)
    targets = {x: -(-x.size * rate[0] // rate[1]) for x in (chunk, rest, head)}
    solution = solved([Equation(ceiling, "==", of(chunk)), Equation(total, "==", of(Leaf(8), head))], targets)
    assert not solution.frozen
    assert all(abs(solution.sizes[x] - n) <= 4 for x, n in targets.items())


def test_divisibility_is_repaired_by_the_least_change():
    width = leaf(96)
    assert solved([Equation(Operation("%", of(width), 8), "==", 0)], {width: 29}).sizes == {width: 32}


def test_two_leaves_are_moved_together_where_one_is_not_enough():
    a, b = leaf(20), leaf(20)
    equations = [
        Equation(Operation("%", of(a), 4), "==", 0),
        Equation(Operation("-", of(a), of(b)), "==", 0),
    ]
    solution = solved(equations, {a: 10, b: 10})
    assert solution.sizes[a] == solution.sizes[b]
    assert solution.sizes[a] % 4 == 0


def test_what_nothing_fits_stays_whole_with_the_line_of_the_code():
    a = leaf(7)
    solution = solved([Equation(Operation("%", of(a), 7), "==", 0, "model.py:9")], {a: 4})
    assert solution.sizes == {a: 7}
    assert "model.py:9" in str(solution.frozen[a])


def test_attributes_take_the_value_that_the_sizes_ask_for():
    width = leaf(12)
    dim, half, rest = (Attribute("block", n, (), v) for n, v in (("dim", 12), ("half", 6), ("rest", 5)))
    equations = [
        Equation(dim, "==", of(width)),
        Equation(Operation("//", dim, 2), "==", half),
        Equation(Operation("-", dim, 7), "==", rest),
    ]
    solution = solved(equations, {width: 8})
    assert solution.attributes == {dim: 8, half: 4, rest: 1}
    assert str(dim) == "block.dim"
    assert str(Attribute("block", "sizes", (0, "a"), 3)) == "block.sizes[0]['a']"


@pytest.mark.parametrize(
    ("symbol", "left_unknown", "other", "result"),
    [("+", True, 4, 12), ("+", False, 4, 12), ("-", True, 4, 4), ("-", False, 12, 4), ("*", True, 3, 24),
     ("//", True, 2, 4), ("//", False, 16, 2)],
)  # fmt: skip
def test_an_attribute_inside_an_operation_is_found(symbol, left_unknown, other, result):
    width = leaf(2 * result)  # it shrinks to ``result``, and the attribute, 8 or 9 in between, must fit
    attribute = Attribute("", "n", (), 8)
    two = Attribute("", "m", (), 1)  # a second unknown keeps the equation from being a definition
    operands = (attribute, other) if left_unknown else (other, attribute)
    inner = Operation("*", two, Operation(symbol, *operands))
    solution = solve(
        conditions_of([Equation(inner, "==", of(width)), Equation(two, "==", 1)], [width]), {width: result}
    )
    value = solution.attributes[attribute]
    assert evaluate(Operation(symbol, *operands), {}, {attribute: value}) == result


def test_an_equation_that_would_divide_by_zero_does_not_hold():
    a = leaf(4)
    equation = Equation(Operation("%", 8, Operation("-", of(a), 2)), "==", 0)
    assert equation.holds({a: 4}, {})
    assert not equation.holds({a: 2}, {})
    assert solved([equation], {a: 2}).sizes[a] in {1, 3, 4}


def test_traced_integers_are_integers():
    noted = []
    traced = TracedInt(6, Size(new_axis(6)), noted)
    assert [int(-traced), int(traced - 1), int(7 - traced), int(traced * 2), int(13 // traced), int(13 % traced)] == [
        -6, 5, 1, 12, 2, 1
    ]  # fmt: skip
    assert (traced / 4, traced**2, 2.5 * traced, f"{traced}") == (1.5, 36, 15.0, "6")
    assert not noted
    assert traced == 6
    assert traced != 5
    assert traced > 2
    assert not traced < 2
    assert traced > 2.5  # floats are compared, not noted
    assert [(e.relation, e.right) for e in noted] == [("==", 6), ("!=", 5), (">", 2), (">=", 2)]
    assert plain({"a": [traced, (traced, slice(traced))]}) == {"a": [6, (6, slice(6))]}
    assert type(plain(traced)) is int
