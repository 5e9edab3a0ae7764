"""Unification: making two axes equal, and cutting them where a view or a slice does.

Leaves are bound to one another, products are aligned at their common boundaries, concatenations part by part. What
cannot be aligned is frozen: it keeps its size, so the analysis may lose a width here but never its correctness.
"""

import math

from pml_extensions._slimming.algebra.axes import (
    Axis,
    Cat,
    Factor,
    Leaf,
    Reason,
    concatenate,
    freeze,
    leaves,
    new_axis,
    resolve,
    size,
)


def _bind(leaf: Leaf, axis: Axis) -> None:
    leaf.bound = axis
    for target in leaves(axis):
        target.frozen = target.frozen or leaf.frozen
        target.produced |= leaf.produced


def unify(left: Axis, right: Axis, where: str = "") -> None:
    """Make two axes of the same size equal, freezing the runs of factors that cannot be aligned.

    Raises:
        ValueError: if the sizes differ.
    """
    if size(left) != size(right):
        raise ValueError(f"axes of sizes {size(left)} and {size(right)} cannot be one")
    left, right = resolve(left), resolve(right)
    while left and right:
        a, b = left[0], right[0]
        if a is b or a.size == b.size:
            left, right = left[1:], right[1:]
            _unify_factors(a, b, where)
        else:
            left, right = _align(left, right, where)
        left, right = resolve(left), resolve(right)


def _align(left: Axis, right: Axis, where: str) -> tuple[Axis, Axis]:
    """Split the larger first factor so that both sides begin alike, or freeze and drop the shortest common run."""
    if left[0].size > right[0].size:
        right, left = _align(right, left, where)
        return left, right
    outer = left[0].size
    split = split_outer(right[0], outer, where) if outer and right[0].size % outer == 0 else None
    if split is not None:
        return left, (*split, *right[1:])
    m, n = _common_run([f.size for f in left], [f.size for f in right])
    freeze((*left[:m], *right[:n]), Reason("two views of it do not line up", where))
    return left[m:], right[n:]


def _common_run(left: list[int], right: list[int]) -> tuple[int, int]:
    """Return how many leading factors of both sides have the same product."""
    m = n = 1
    while (a := math.prod(left[:m])) != (b := math.prod(right[:n])):
        m, n = (m + 1, n) if a < b else (m, n + 1)
    return m, n


def _unify_factors(a: Factor, b: Factor, where: str) -> None:
    if a is b:
        return
    if isinstance(a, Leaf):
        _bind(a, (b,))
    elif isinstance(b, Leaf):
        _bind(b, (a,))
    else:
        _unify_parts(list(a.parts), list(b.parts), where)


def _unify_parts(left: list[Axis], right: list[Axis], where: str) -> None:
    """Make two concatenations of the same size equal, part by part."""
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if size(a) > size(b):
            left, right, a, b = right, left, b, a
        if size(a) == size(b):
            unify(a, b, where)
        elif (pieces := split_at(b, size(a))) is not None:
            unify(a, pieces[0], where)
            right.insert(0, pieces[1])
        else:
            _freeze_common_length([a, *left], [b, *right], where)
            m, n = _common_length([size(p) for p in (a, *left)], [size(p) for p in (b, *right)])
            left, right = [a, *left][m:], [b, *right][n:]


def _common_length(left: list[int], right: list[int]) -> tuple[int, int]:
    m = n = 1
    while (a := sum(left[:m])) != (b := sum(right[:n])):
        m, n = (m + 1, n) if a < b else (m, n + 1)
    return m, n


def _freeze_common_length(left: list[Axis], right: list[Axis], where: str) -> None:
    m, n = _common_length([size(p) for p in left], [size(p) for p in right])
    for part in (*left[:m], *right[:n]):
        freeze(part, Reason("two concatenations of it do not line up", where))


def split_outer(factor: Factor, outer: int, where: str = "") -> Axis | None:
    """Return the factor as a product whose first factors have size ``outer``, or None if it cannot be one."""
    inner = factor.size // outer
    if isinstance(factor, Leaf):
        axis = (*new_axis(outer), *new_axis(inner))
        _bind(factor, axis)
        return axis
    if all(size(part) % inner == 0 for part in factor.parts):
        shared = new_axis(inner)
        outers = [new_axis(size(part) // inner) for part in factor.parts]
        for part, count in zip(factor.parts, outers, strict=True):
            unify(part, (*count, *shared), where)
        return resolve((Cat(tuple(outers)), *shared))
    groups = _groups_of(factor.parts, inner)
    if groups is None:
        return None
    for group in groups[1:]:
        unify(group, groups[0], where)
    return resolve(
        (*new_axis(outer, Reason("it counts the parts of a concatenation", where, by_design=True)), *groups[0])
    )


def _groups_of(parts: tuple[Axis, ...], length: int) -> list[Axis] | None:
    """Gather parts into consecutive groups of the given length, if their boundaries allow it."""
    groups: list[list[Axis]] = [[]]
    for part in parts:
        if sum(map(size, groups[-1])) == length:
            groups.append([])
        groups[-1].append(part)
    if any(sum(map(size, group)) != length for group in groups):
        return None
    return [concatenate(group) for group in groups]


def split_at(axis: Axis, offset: int) -> tuple[Axis, Axis] | None:
    """Return the axis as what stands before and after ``offset``, or None if a product would be torn."""
    axis = resolve(axis)
    if offset in {0, size(axis)}:
        empty: Axis = (Cat(()),)
        return (axis, empty) if offset else (empty, axis)
    first, rest = axis[0], axis[1:]
    inner = size(rest)
    if offset % inner:
        return None
    pieces = _split_leaf(first, offset // inner) if isinstance(first, Leaf) else _split_cat(first, offset // inner)
    return None if pieces is None else ((*pieces[0], *rest), (*pieces[1], *rest))


def _split_leaf(leaf: Leaf, offset: int) -> tuple[Axis, Axis]:
    head, tail = new_axis(offset), new_axis(leaf.size - offset)
    _bind(leaf, (Cat((head, tail)),))
    return head, tail


def _split_cat(cat: Cat, offset: int) -> tuple[Axis, Axis] | None:
    before: list[Axis] = []
    after = list(cat.parts)
    while size(after[0]) <= offset:
        before.append(after.pop(0))
        offset -= size(before[-1])
    if offset:
        pieces = split_at(after.pop(0), offset)
        if pieces is None:
            return None
        before.append(pieces[0])
        after.insert(0, pieces[1])
    return concatenate(before), concatenate(after)
