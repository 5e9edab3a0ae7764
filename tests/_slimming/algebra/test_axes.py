"""Axes: what a dimension is made of, and the indices of it that stay."""

import numpy as np

from pml_extensions._slimming.algebra.axes import (
    Cat,
    Leaf,
    Reason,
    concatenate,
    freeze,
    is_frozen,
    kept,
    leaves,
    new_axis,
    size,
    slim_size,
)


def test_an_axis_of_size_one_has_no_leaves():
    assert new_axis(1) == ()
    assert size(()) == 1
    assert is_frozen(())


def test_concatenations_are_flat_and_forget_empty_parts():
    a, b, c = new_axis(2), new_axis(3), new_axis(4)
    (joined,) = concatenate([concatenate([a, b]), (Cat(()),), c])
    assert joined.parts == (a, b, c)
    assert concatenate([a, (Cat(()),)]) == a
    assert list(leaves((joined,))) == [*a, *b, *c]


def test_what_stays_of_products_and_concatenations():
    heads, channels, other = new_axis(2), new_axis(4), new_axis(6)
    axis = concatenate([(*heads, *channels), other])
    sizes = {channels[0]: 2, other[0]: 3}
    assert slim_size(axis, sizes) == 7
    np.testing.assert_array_equal(kept(axis, sizes), [0, 1, 4, 5, 8, 9, 10])


def test_the_first_reason_stays():
    leaf = Leaf(6)
    freeze((leaf,), Reason("first", "here.py:1"))
    freeze((leaf,), Reason("second"))
    assert str(leaf.frozen) == "first (here.py:1)"


def test_axes_print_what_they_are_made_of():
    frozen = new_axis(2, Reason("said so"))
    assert repr(Cat(((), (*frozen, *new_axis(3))))) == "[1 + 2!*3]"
