"""What is tied to a size that stays whole stays whole, for the same reason."""

from pml_extensions._slimming.algebra.axes import Leaf, Reason
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Operation, Size
from pml_extensions._slimming.solving.fixing import fix_what_follows

OUTPUT = Reason("an output", by_design=True)


def of(*factors):
    return Size(tuple(factors))


def test_it_goes_through_attributes_products_and_sums():
    output, heads, channels, part, other = Leaf(12, OUTPUT), Leaf(3), Leaf(4), Leaf(5), Leaf(7)
    dim = Attribute("", "dim", (), 12)
    fix_what_follows(
        [
            Equation(Operation("+", of(part), of(other)), "==", dim),
            Equation(dim, "==", of(heads, channels)),
            Equation(of(output), "==", dim),
        ]
    )
    assert [leaf.frozen for leaf in (heads, channels, part, other)] == [OUTPUT] * 4


def test_numbers_in_the_code_are_a_reason_of_their_own():
    width = Leaf(12)
    fix_what_follows([Equation(of(width), "==", 12, "model.py:3")])
    assert "model.py:3" in str(width.frozen)
    assert not width.frozen.by_design


def test_what_may_still_shrink_is_left_alone():
    output, width, divided, free = Leaf(12, OUTPUT), Leaf(12), Leaf(24), Leaf(9)
    dim = Attribute("", "dim", (), 12)
    fix_what_follows(
        [
            Equation(of(output), "!=", of(free)),
            Equation(of(width), "==", dim),
            Equation(of(output), "==", Operation("//", of(divided), 2)),
            Equation(of(output), "==", Operation("+", dim, 0)),
        ]
    )
    assert (width.frozen, divided.frozen, free.frozen) == (None, None, None)
