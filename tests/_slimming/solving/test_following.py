"""What follows from known sizes, and what does not."""

import pytest

from pml_extensions._slimming.algebra.axes import Leaf
from pml_extensions._slimming.algebra.integers import Attribute
from pml_extensions._slimming.solving.conditions import Condition
from pml_extensions._slimming.solving.following import follow

WIDTH = Leaf(64)  # 32 in the slim network
CHANNELS, GROUPS, KERNEL = Attribute("", "channels", (), 64), Attribute("", "groups", (), 64), Attribute("", "k", (), 4)


def equal(left, right):
    return Condition("==", left, right, "")


def below(left, right):
    return Condition("<", left, right, "")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([equal(CHANNELS, WIDTH)], {CHANNELS: 32}),
        ([equal(("//", CHANNELS, GROUPS), 1), equal(CHANNELS, WIDTH)], {CHANNELS: 32, GROUPS: 32}),  # in any order
        ([equal(("*", 2, GROUPS), CHANNELS), equal(WIDTH, CHANNELS)], {CHANNELS: 32, GROUPS: 16}),
        ([equal(("//", KERNEL, 2), 2)], {KERNEL: 4}),  # five would do as well: the dense value stays
        ([equal(("//", KERNEL, 2), 2), equal(("-", KERNEL, 1), 2)], {KERNEL: 3}),  # what is certain comes first
        ([below(("%", i, ("//", WIDTH, GROUPS)), 1) for i in range(64)], {GROUPS: 32}),  # an index of one place
        ([below(("%", i, ("//", WIDTH, GROUPS)), 32) for i in range(64)], {GROUPS: 32}),
        ([equal(("*", CHANNELS, GROUPS), WIDTH)], {}),  # two unknowns
        ([equal(("+", CHANNELS, CHANNELS), WIDTH)], {}),  # one, but twice
        ([equal(CHANNELS, ("*", 3, WIDTH))], {}),  # above the dense value
        ([equal(("%", CHANNELS, 7), 3)], {}),  # not solved
        ([equal(("//", 5, GROUPS), 0)], {GROUPS: 64}),
        ([below(WIDTH, CHANNELS), below(("+", WIDTH, 60), CHANNELS)], {}),  # nothing fits
    ],
)
def test_what_follows(conditions, expected):
    assert follow(conditions, {WIDTH: 32}) == {WIDTH: 32, **expected}
