"""Pairs that differ by a mark, and how a map is held against it."""

import pytest
import torch

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def marks(load_once):
    return load_once("marks")


@pytest.mark.parametrize(
    ("character", "plain"), [("é", "e"), ("ç", "c"), ("ø", "o"), ("ħ", "h"), ("e", None), ("½", None), ("ﬁ", None)]
)
def test_a_character_without_its_mark(marks, character, plain):
    assert marks.plain_of(character) == plain


def test_pairs_differ_by_added_ink_in_one_place(marks, load_once):
    glyphs = load_once("glyphs")
    if not glyphs.path(glyphs.FACES[0]).exists():
        pytest.skip("matplotlib without its typefaces")
    pixels, letters = glyphs.drawn(marks.SIZE), "eéèoø"
    known = marks.pairs(pixels.classes(torch.tensor([pixels.characters.index(letter) for letter in letters])))
    assert len(known.mark) > 20
    upper, lower = known.mark[:, : marks.SIZE // 2].sum((1, 2)), known.mark[:, marks.SIZE // 2 :].sum((1, 2))
    assert (upper > lower).float().mean() > 0.6  # accents, and strokes through the whole letter
    own, rest = known.cells()
    assert own.any((1, 2)).all()
    assert not (own & rest).any()


def test_a_map_that_is_least_in_the_mark_points_at_it(marks):
    mark = torch.zeros(2, 3, 3, dtype=torch.bool)
    mark[:, 0, 1] = True
    rest = ~mark
    heat = torch.rand(2, 3, 3)
    heat[:, 0, 1] = -1
    assert marks.pointed(heat, mark) == 100
    assert marks.separation(heat, mark, rest) == 100
    assert marks.pointed(-heat, mark) == 0
    assert marks.separation(-heat, mark, rest) == 0
    assert marks.separation(torch.zeros(2, 3, 3), mark, rest) == 50
