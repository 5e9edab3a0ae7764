"""Find sizes of leaves, near their targets, and values of attributes that satisfy every condition.

Most systems hold at the targets as they are. Where they do not (96 channels at rate 0.3 are 29, which three heads do
not divide), sizes are repaired: the change of one leaf, or of two, that satisfies the most conditions at the least
relative cost, again and again. What cannot be repaired is frozen at its dense size, with the condition as the reason;
with every leaf at its dense size all conditions hold, so the search ends. Leaves that a condition equates with a sum or
product of others follow those, and are not searched.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pml_extensions._slimming.algebra.axes import Leaf, Reason
from pml_extensions._slimming.algebra.integers import Attribute
from pml_extensions._slimming.solving.conditions import Condition, Term, Variable, eliminate, value_of, variables
from pml_extensions._slimming.solving.linear import Tie, tie

_REACH = 72  # how far from its present size a leaf is moved in one step
_MISFIT = "its slim size fits no other that the code ties it to"
_BEST = 24  # how many moves of one leaf are tried in pairs: the best by themselves ...
_NEAREST = 96  # ... and of those this near
_NEAR = 4


@dataclass
class Solution:
    """Slim sizes of leaves, values of attributes, and the leaves that had to stay whole with the reason."""

    sizes: dict[Leaf, int]
    attributes: dict[Attribute, int] = field(default_factory=dict)
    frozen: dict[Leaf, Reason] = field(default_factory=dict)


def solve(conditions: list[Condition], targets: Mapping[Leaf, int]) -> Solution:
    """Satisfy the conditions.

    Args:
        conditions: what must hold; every leaf in them has a target.
        targets: the wanted size of each leaf that is to shrink.
    """
    definitions, remaining = eliminate(conditions)
    solution = Solution(dict(targets))
    for component in components(remaining):
        _solve_component(component, solution)
    for attribute, term in definitions.items():
        values = _joined(solution.sizes, solution.attributes)
        solution.attributes[attribute] = value_of(term, values)
    return solution


def components(conditions: Iterable[Condition]) -> list[list[Condition]]:
    """Group conditions that share variables."""
    groups: list[tuple[set[Variable], list[Condition]]] = []
    for condition in conditions:
        names, members = condition.variables(), [condition]
        apart = []
        for group in groups:
            if group[0] & names:
                names |= group[0]
                members = group[1] + members
            else:
                apart.append(group)
        groups = [*apart, (names, members)]
    return [members for _, members in groups]


def _solve_component(conditions: list[Condition], solution: Solution) -> None:
    names = {v for c in conditions for v in variables_of(c)}
    targets = {leaf: n for leaf, n in solution.sizes.items() if leaf in names}
    if not targets:  # attributes alone: their dense values satisfy everything
        return
    search = _Search(*tie(conditions), targets)
    search.run()
    solution.sizes.update(search.sizes)
    solution.attributes.update(search.attributes)
    solution.frozen.update(search.frozen)


def variables_of(condition: Condition) -> Iterator[Variable]:
    """Yield the variables of both sides."""
    yield from variables(condition.left)
    yield from variables(condition.right)


class _Search:
    """The repair of one component."""

    def __init__(self, ties: dict[Leaf, Tie], conditions: list[Condition], targets: dict[Leaf, int]) -> None:
        self.ties = ties
        self.conditions = conditions
        self.targets = targets
        self.sizes = {leaf: n for leaf, n in targets.items() if leaf not in ties}
        self.frozen: dict[Leaf, Reason] = {}
        self.moved: dict[Leaf, str] = {}
        self.attributes: dict[Attribute, int] = {}

    def run(self) -> None:
        while violated := self.violations(self.sizes):
            if len(self.frozen) == len(self.sizes):  # everything is dense, and so are the attributes
                break
            move = self.best_move(violated)
            if move is None:
                self.freeze_one(violated[0])
            else:
                self.sizes.update(move)
                self.moved.update(dict.fromkeys(move, violated[0].where))
        self.attributes = determine(self.conditions, self.sizes)
        self.sizes = self.with_ties(self.sizes)
        for leaf, n in self.sizes.items():
            if self.targets[leaf] < n == leaf.size:
                where = self.ties[leaf].where if leaf in self.ties else self.moved.get(leaf, "")
                self.frozen.setdefault(leaf, Reason(_MISFIT, where))

    def with_ties(self, sizes: Mapping[Leaf, int]) -> dict[Leaf, int]:
        """Return sizes of the free leaves together with those of the leaves that follow them."""
        values = _joined(sizes, {})
        return {**sizes, **{leaf: value_of(tie.term, values) for leaf, tie in self.ties.items()}}

    def violations(self, sizes: Mapping[Leaf, int]) -> list[Condition]:
        values = _joined(sizes, determine(self.conditions, sizes))
        return [c for c in self.conditions if not c.holds(values)]

    def best_move(self, violated: list[Condition]) -> dict[Leaf, int] | None:
        """Return the change that leaves the fewest violations at the least cost, or None if none helps."""
        free = self.free_leaves(violated)
        singles = sorted((self.score({leaf: n}), i, {leaf: n}) for i, (leaf, n) in enumerate(self.moves(free)))
        if singles and singles[0][0][0] < len(violated):
            return singles[0][2]
        tried = singles[:_BEST] + [single for single in singles[_BEST:] if self.is_near(single[2])][:_NEAREST]
        pairs = [a | b for (_, _, a), (_, _, b) in itertools.combinations(tried, 2) if a.keys() != b.keys()]
        scored = sorted((self.score(pair), i, pair) for i, pair in enumerate(pairs))
        return scored[0][2] if scored and scored[0][0][0] < len(violated) else None

    def free_leaves(self, violated: list[Condition]) -> list[Leaf]:
        names = {v for c in violated for v in c.variables()}
        if any(isinstance(v, Attribute) for v in names):
            names = {v for c in self.conditions for v in c.variables()}
        return [leaf for leaf in self.sizes if leaf in names and leaf not in self.frozen]

    def moves(self, free: list[Leaf]) -> Iterator[tuple[Leaf, int]]:
        for leaf in free:
            now = self.sizes[leaf]
            for n in range(max(1, now - _REACH), min(leaf.size, now + _REACH) + 1):
                if n != now:
                    yield leaf, n

    def is_near(self, move: Mapping[Leaf, int]) -> bool:
        return all(abs(n - self.sizes[leaf]) <= _NEAR for leaf, n in move.items())

    def score(self, move: Mapping[Leaf, int]) -> tuple[int, float]:
        sizes = {**self.sizes, **move}
        cost = sum(self.cost(leaf, n) for leaf, n in self.with_ties(sizes).items())
        return len(self.violations(sizes)), cost

    def cost(self, leaf: Leaf, n: int) -> float:
        """Return the relative change of a leaf; to lose channels costs a little more than to keep some."""
        change = (n - self.targets[leaf]) / leaf.size
        return change if change >= 0 else -1.1 * change

    def freeze_one(self, condition: Condition) -> None:
        """Give the leaf of a condition back its dense size that leaves the fewest violations."""
        free = self.free_leaves([condition]) or [leaf for leaf in self.sizes if leaf not in self.frozen]
        reason = Reason(_MISFIT, condition.where)
        leaf = min(free, key=lambda candidate: len(self.violations({**self.sizes, candidate: candidate.size})))
        self.frozen[leaf] = reason
        self.sizes[leaf] = leaf.size


def determine(conditions: list[Condition], sizes: Mapping[Leaf, int]) -> dict[Attribute, int]:
    """Return values of the attributes for given sizes: from the equations with one unknown, else the dense value."""
    values = _joined(sizes, {})
    unknown = sorted({v for c in conditions for v in c.variables() if isinstance(v, Attribute)}, key=_by_dense)
    while unknown:
        found = _one_unknown(conditions, values)
        attribute, value = found if found is not None else (unknown[0], unknown[0].dense)
        values[attribute] = value
        unknown.remove(attribute)
    return {v: n for v, n in values.items() if isinstance(v, Attribute)}


def _joined(sizes: Mapping[Leaf, int], attributes: Mapping[Attribute, int]) -> dict[Variable, int]:
    values: dict[Variable, int] = {}
    values.update(sizes.items())
    values.update(attributes.items())
    return values


def _by_dense(attribute: Attribute) -> tuple[int, str]:
    return attribute.dense, str(attribute)


def _one_unknown(conditions: list[Condition], values: Mapping[Variable, int]) -> tuple[Attribute, int] | None:
    """Return an attribute that an equation without other unknowns fixes; exact solutions before rounded ones."""
    rounded = None
    for c in conditions:
        unknown = [v for v in variables_of(c) if v not in values]
        if c.relation != "==" or len(unknown) != 1:
            continue
        sides = (c.left, c.right) if unknown[0] in set(variables(c.left)) else (c.right, c.left)
        try:
            value, exact = invert(sides[0], value_of(sides[1], values), values)
        except ZeroDivisionError:
            continue
        if value is not None and exact:
            return unknown[0], value  # type: ignore[return-value]  # an attribute: every leaf has a value
        if value is not None and rounded is None:
            rounded = unknown[0], value
    return rounded  # type: ignore[return-value]


def invert(term: Term, target: int, values: Mapping[Variable, int]) -> tuple[int | None, bool]:  # noqa: PLR0911
    """Solve ``term == target`` for the one variable without a value; tell whether the solution is the only one."""
    if not isinstance(term, tuple):
        return target, True
    symbol, left, right = term
    on_left = any(v not in values for v in variables(left))
    inner, other = (left, value_of(right, values)) if on_left else (right, value_of(left, values))
    if symbol == "+":
        return invert(inner, target - other, values)
    if symbol == "-":
        return invert(inner, target + other if on_left else other - target, values)
    if symbol == "*":
        return invert(inner, target // other, values) if target % other == 0 else (None, False)
    if symbol == "//" and on_left:
        return invert(inner, target * other, values)[0], False
    if symbol == "//" and target and other % target == 0:
        return invert(inner, other // target, values)[0], False
    return None, False
