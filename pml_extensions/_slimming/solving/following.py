"""What follows from known sizes: values of what conditions name beside them, one unknown at a time."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from pml_extensions._slimming.algebra.axes import Leaf
from pml_extensions._slimming.solving.conditions import Condition, Variable, value_of, variables
from pml_extensions._slimming.solving.solver import invert


def follow(conditions: Iterable[Condition], known: Mapping[Variable, int]) -> dict[Variable, int]:
    """Return the known values with those that follow from them.

    An equation with one solution is believed before one with several; of several the dense value is taken if it is one.
    What no equation tells has the largest value, up to the dense one, that is against no inequality.
    """
    values = dict(known)
    equations, limits = _naming(conditions, "=="), _naming(conditions, "<")
    _solve(equations, values)
    for variable, its_limits in limits.items():
        if variable not in values:
            telling = [c for c in its_limits if _unknown(c, values) == [variable]]
            fitting = (n for n in range(_dense(variable), 0, -1) if _hold(telling, {**values, variable: n}))
            if telling and (largest := next(fitting, None)) is not None:
                values[variable] = largest
    return values


def _naming(conditions: Iterable[Condition], relation: str) -> dict[Variable, list[Condition]]:
    """Return the conditions of a relation by the variables in them."""
    naming: defaultdict[Variable, list[Condition]] = defaultdict(list)
    for condition in conditions:
        if condition.relation == relation:
            for variable in condition.variables():
                naming[variable].append(condition)
    return naming


def _unknown(condition: Condition, values: Mapping[Variable, int]) -> list[Variable]:
    return [variable for variable in condition.variables() if variable not in values]


def _hold(conditions: Iterable[Condition], values: Mapping[Variable, int]) -> bool:
    return all(condition.holds(values) for condition in conditions)


def _solve(equations: Mapping[Variable, list[Condition]], values: dict[Variable, int]) -> None:
    """Enter what equations with one unknown tell, and so on."""
    waiting = deque(dict.fromkeys(condition for several in equations.values() for condition in several))
    ambiguous: deque[Condition] = deque()
    while waiting or ambiguous:
        exactly = bool(waiting)
        condition = waiting.popleft() if exactly else ambiguous.popleft()
        unknown = _unknown(condition, values)
        if len(unknown) != 1:
            continue
        value, only = _solution(condition, unknown[0], values)
        if exactly and not only:
            ambiguous.append(condition)
        elif 0 < value <= _dense(unknown[0]):
            values[unknown[0]] = value
            waiting.extend(equations[unknown[0]])


def _solution(condition: Condition, variable: Variable, values: Mapping[Variable, int]) -> tuple[int, bool]:
    """Return a value with which a condition holds, and whether it is the only one; zero if none is found."""
    on_left = variable in set(variables(condition.left))
    term, other = (condition.left, condition.right) if on_left else (condition.right, condition.left)
    try:
        value, only = invert(term, value_of(other, values), values)
    except (KeyError, ZeroDivisionError):  # it stands there twice, or nothing solves it
        return 0, False
    if only and value is not None:
        return value, True
    tried = (n for n in (_dense(variable), value) if n and condition.holds({**values, variable: n}))
    return next(tried, 0), False


def _dense(variable: Variable) -> int:
    return variable.size if isinstance(variable, Leaf) else variable.dense
