"""The characters are those that the studies' figures were made with, and no image is on both sides of a split."""

import pytest
import torch

pytest.importorskip("matplotlib")
SIZE = 16


@pytest.fixture(scope="module")
def module(load_once):
    return load_once("glyphs")


@pytest.fixture(scope="module")
def glyphs(module):
    return module.Glyphs.load(SIZE)


@pytest.fixture(scope="module")
def distinct(glyphs):
    return glyphs.distinct()


def drawings(glyphs):
    """The drawings of every character, as a set."""
    characters = [glyphs.characters[label] for label in glyphs.labels.tolist()]
    return {(c, image.tobytes()) for c, image in zip(characters, glyphs.images.numpy(), strict=True)}


def test_all_images_are_there(module, glyphs):
    assert glyphs.images.shape == (33565, 1, SIZE, SIZE)
    assert glyphs.images.dtype == torch.float32
    assert glyphs.images.aminmax() == (-1, 1)
    assert (glyphs.images.flatten(1).max(1).values > -1).all()
    assert len(glyphs.characters) == len(set(glyphs.characters)) == 2948
    counts = glyphs.labels.bincount()
    assert (counts.min(), counts.max()) == (8, 15)
    assert torch.equal(glyphs.faces.unique(), torch.arange(15))
    assert module.Glyphs.load(size=SIZE).images is glyphs.images


@pytest.mark.parametrize("size", [24, 32])
def test_every_size_has_the_same_classes(module, glyphs, size):
    other = module.Glyphs.load(size)
    assert other.characters == glyphs.characters
    assert torch.equal(other.labels, glyphs.labels)
    assert torch.equal(other.faces, glyphs.faces)
    assert other.images.shape[-2:] == (size, size)


@pytest.mark.parametrize(
    ("character", "family"),
    [
        ("é", "Latin"),
        ("Ω", "Greek"),
        ("Ж", "Cyrillic"),
        ("ა", "Georgian"),
        ("Փ", "Armenian"),
        ("⠃", "Braille"),
        ("→", "arrows"),
        ("⇀", "arrows"),
        ("╬", "box drawing"),
        ("ʰ", "modifiers"),
        ("½", "numbers"),
        ("∑", "mathematics"),
        ("?", "punctuation"),
        ("€", "symbols"),
        ("ª", "other letters"),
    ],
)
def test_families(glyphs, character, family):
    families = glyphs.families
    assert len(families) == len(glyphs.characters)
    assert families[glyphs.characters.index(character)] == family


def test_a_look_alike_is_no_class_of_its_own(glyphs):
    assert "A" in glyphs.characters
    assert not {"Α", "А", "⠀", " "} & set(glyphs.characters)  # Greek, Cyrillic, and two that leave no ink  # noqa: RUF001


def test_distinct_drawings(glyphs, distinct):
    found = drawings(distinct)
    assert len(found) == len(distinct.labels) < len(glyphs.labels)
    assert found == drawings(glyphs)
    assert distinct.characters == glyphs.characters
    braille = distinct.labels == distinct.characters.index("⠃")
    assert distinct.faces[braille][0] == 0


def test_halves_share_no_class(glyphs):
    seen, unseen = glyphs.halves(0)
    assert not set(seen.characters) & set(unseen.characters)
    assert sorted(seen.characters + unseen.characters) == list(glyphs.characters)
    assert len(seen.characters) == len(unseen.characters)
    assert len(seen.labels) + len(unseen.labels) == len(glyphs.labels)
    assert torch.equal(seen.labels.unique(), torch.arange(len(seen.characters)))
    assert drawings(seen) | drawings(unseen) == drawings(glyphs)
    assert glyphs.halves(0)[0].characters == seen.characters != glyphs.halves(1)[0].characters


def test_classes_in_the_order_given(glyphs):
    part = glyphs.classes(torch.tensor([700, 3]))
    assert part.characters == glyphs.characters[700] + glyphs.characters[3]
    assert torch.equal(part.images[part.labels == 0], glyphs.images[glyphs.labels == 700])
    assert torch.equal(part.faces[part.labels == 1], glyphs.faces[glyphs.labels == 3])


def test_unseen_faces_show_nothing_seen(distinct):
    seen, unseen = distinct.by_face(3, held_out=4)
    assert len(unseen.faces.unique()) == 4
    assert len(seen.faces.unique()) == 11
    assert not set(seen.faces.tolist()) & set(unseen.faces.tolist())
    assert not drawings(seen) & drawings(unseen)
    assert len(seen.labels) + len(unseen.labels) == len(distinct.labels)


def test_another_matplotlib_is_refused(module, monkeypatch):
    path = module.path
    for name, other in (("STIXGeneralBol", "missing"), ("STIXGeneral", "DejaVuSerif"), ("DejaVuSans", "missing")):
        with monkeypatch.context() as patch:
            patch.setattr(module, "path", lambda n, names=(name, other): path(names[1] if n == names[0] else n))
            with pytest.raises(ValueError, match=r"matplotlib \d.*other typefaces than.* expected \(15, .*pip install"):
                module.drawn.__wrapped__(SIZE)
    monkeypatch.setattr(module, "LEAST", 9)
    with pytest.raises(
        ValueError, match=r"matplotlib \d.*other characters than.*\(2\d\d\d, '\w{64}'\), expected \(2948, "
    ):
        module.drawn.__wrapped__(SIZE)
