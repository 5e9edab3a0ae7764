"""Unification of products and concatenations, and cuts."""

import numpy as np
import pytest

from pml_extensions._slimming.algebra.axes import (
    Cat,
    Leaf,
    Reason,
    concatenate,
    freeze,
    kept,
    leaves,
    new_axis,
    resolve,
    size,
    slim_size,
)
from pml_extensions._slimming.algebra.unification import split_at, split_outer, unify


def halves(axis):
    """Every leaf of even size that is not frozen shrinks to its half."""
    return {leaf: leaf.size // 2 for leaf in leaves(axis) if leaf.size % 2 == 0 and leaf.frozen is None}


def test_axes_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes 4 and 6 cannot be one"):
        unify(new_axis(4), new_axis(6))


def test_a_leaf_is_split_by_what_it_is_unified_with():
    whole, heads, channels = new_axis(12), new_axis(3), new_axis(4)
    unify(whole, (*heads, *channels))
    assert resolve(whole) == (*heads, *channels)
    assert slim_size(whole, {channels[0]: 2}) == 6
    np.testing.assert_array_equal(kept(whole, {channels[0]: 2}), [0, 1, 4, 5, 8, 9])
    assert repr(whole[0]) == "12"


def test_products_that_do_not_line_up_are_frozen_up_to_the_next_common_boundary():
    tail = new_axis(5)
    left, right = (*new_axis(4), *new_axis(6), *tail), (*new_axis(6), *new_axis(4), *new_axis(5))
    unify(left, right, "here.py:1")
    assert [leaf.frozen is None for leaf in leaves(left)] == [False, False, True]
    assert str(next(leaves(left)).frozen) == "two views of it do not line up (here.py:1)"
    sizes = {resolve(tail)[0]: 2}
    assert slim_size(left, sizes) == slim_size(right, sizes) == 48


def test_concatenations_are_unified_part_by_part():
    a, b = new_axis(4), new_axis(6)
    left, right = concatenate([a, b]), concatenate([new_axis(2), new_axis(2), new_axis(6)])
    unify(left, right)
    assert [size(part) for part in resolve(left)[0].parts] == [2, 2, 6]
    assert slim_size(left, halves(left)) == slim_size(right, halves(left)) == 5
    np.testing.assert_array_equal(kept(left, halves(left)), [0, 2, 4, 5, 6])
    assert repr(resolve(left)[0]) == "[2 + 2 + 6]"


def test_parts_that_tear_a_product_are_frozen():
    product, tail = (*new_axis(2), *new_axis(3)), new_axis(4)
    left, right = concatenate([product, tail]), concatenate([new_axis(4), new_axis(2), new_axis(4)])
    unify(left, right, "here.py:2")
    frozen = [leaf.frozen is not None for leaf in leaves(left)]
    assert frozen == [True, True, False]
    assert "two concatenations of it do not line up" in str(next(leaves(left)).frozen)
    assert not tail[0].frozen


def test_a_concatenation_of_equal_groups_becomes_a_product():
    groups = concatenate([new_axis(2), new_axis(4), new_axis(2), new_axis(4)])
    unify(groups, (*new_axis(2), *new_axis(6)))
    first, second = resolve(groups)[0].parts[:2]
    assert [part == first for part in resolve(groups)[0].parts] == [True, False, True, False]
    assert slim_size(groups, {first[0]: 1, second[0]: 2}) == 6


def test_a_concatenation_with_a_common_inner_factor():
    heads = concatenate([new_axis(8), new_axis(4)])
    unify(heads, (*new_axis(3), *new_axis(4)))
    shared = {leaf for leaf in leaves(heads) if leaf.size == 4}
    assert len(shared) == 1
    assert slim_size(heads, dict.fromkeys(shared, 1)) == 3


def test_a_concatenation_that_is_no_such_product_is_frozen():
    uneven = concatenate([new_axis(5), new_axis(7)])
    assert split_outer(uneven[0], 3) is None
    unify(uneven, (*new_axis(3), *new_axis(4)), "here.py:3")
    assert all(leaf.frozen for leaf in leaves(uneven))


def test_cuts():
    leaf = new_axis(10)
    before, after = split_at(leaf, 4)
    assert (size(before), size(after)) == (4, 6)
    assert isinstance(resolve(leaf)[0], Cat)
    head, tail = split_at(leaf, 7)
    assert (size(head), size(tail)) == (7, 3)
    assert [size(a) for a in split_at(leaf, 0)] == [0, 10]
    assert [size(a) for a in split_at(leaf, 10)] == [10, 0]
    product = (*new_axis(3), *new_axis(4))
    assert split_at(product, 6) is None
    assert [size(a) for a in split_at(product, 8)] == [8, 4]
    torn = concatenate([new_axis(2), (*new_axis(3), *new_axis(4))])
    assert split_at(torn, 8) is None


def test_what_is_known_of_a_leaf_goes_to_what_it_is_bound_to():
    leaf, parts = Leaf(6), (*new_axis(2), *new_axis(3))
    leaf.produced = True
    freeze((leaf,), Reason("first"))
    freeze((leaf,), Reason("second"))
    unify((leaf,), parts)
    assert all(p.produced and str(p.frozen) == "first" for p in parts)
