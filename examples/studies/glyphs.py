"""Glyphs: 2,948 characters as classes, each in the 8 to 15 typefaces that come with matplotlib and have it.

    from studies.glyphs import Glyphs    # in a script of examples/

    seen, unseen = Glyphs.load(size=32).distinct().halves(seed=0)    # classes to train on, and others to retrieve

A character is a letter, number, punctuation mark or symbol; those that look the same in DejaVu Sans are one class.
Those that leave no ink (U+2800, a Braille cell without dots, and U+FFFC) would be class 2,949; they are left out.
Pillow draws them. From its release 9.5 to 13 it draws the DejaVu faces alike to the bit, and 131 of the other images
anew since FreeType 2.14; matplotlib's own releases of FreeType differ in three of four images.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
LEAST = 8  # faces that must have a character
EXPECTED = {  # number, SHA-256
    "typefaces": (15, "cdf2e3839b1aaf00ba8af2414a7271e011624494ad810a5e0ba08863a400713b"),
    "characters": (2948, "2a9052d59267ab3823ffe4ccea93b1b166621415d4764f2fcf75687267c3e922"),
}
SCRIPTS = ("Latin", "Greek", "Cyrillic", "Georgian", "Armenian", "Braille")
SIGNS = {"ARROW": "arrows", "HARPOON": "arrows", "BOX DRAWINGS": "box drawing", "MODIFIER": "modifiers"}  # in the name
KINDS = {"L": "other letters", "N": "numbers", "P": "punctuation", "S": "symbols"}  # by Unicode's general category


@dataclass(frozen=True)
class Glyphs:
    """Images of characters.

    Attributes:
        images: (n, 1, size, size), float32 between -1 (paper) and 1 (ink).
        labels: (n,), int64: which of ``characters``.
        faces: (n,), int64: which of ``FACES``.
        characters: one a class.
    """

    images: Tensor
    labels: Tensor
    faces: Tensor
    characters: str

    @classmethod
    def load(cls, size: int = 32) -> "Glyphs":
        """Return all 33,565 images, drawn in three seconds the first time; all callers share them.

        Raises: ValueError if matplotlib brings other typefaces than those that the data set is made of.
        """
        return drawn(size)

    @property
    def families(self) -> list[str]:
        """The coarse label of each class: its script, or what kind of sign it is."""
        return [family(character) for character in self.characters]

    def __getitem__(self, chosen: Tensor) -> "Glyphs":
        """Return some images, by a mask or by their places; the classes stay as they are."""
        return Glyphs(self.images[chosen], self.labels[chosen], self.faces[chosen], self.characters)

    def distinct(self) -> "Glyphs":
        """Return every drawing of a class once, of the first face that has it.

        Many symbols look alike to the bit in several faces: an image would find its copy, which tells nothing.
        """
        first: dict[tuple[int, bytes], int] = {}
        for place, (label, image) in enumerate(zip(self.labels.tolist(), self.images.numpy(), strict=True)):
            first.setdefault((label, image.tobytes()), place)
        return self[torch.tensor(list(first.values()))]

    def classes(self, chosen: Tensor) -> "Glyphs":
        """Return the images of some classes, labelled 0, 1, ... in the order given."""
        new = torch.full((len(self.characters),), -1)
        new[chosen] = torch.arange(len(chosen))
        part = self[new[self.labels] >= 0]
        characters = "".join(self.characters[label] for label in chosen.tolist())
        return Glyphs(part.images, new[part.labels], part.faces, characters)

    def halves(self, seed: int) -> tuple["Glyphs", "Glyphs"]:
        """Return the images of one half of the classes, drawn by the seed, and those of the other half."""
        order = permutation(len(self.characters), seed)
        first, second = order.tensor_split(2)
        return self.classes(first.sort().values), self.classes(second.sort().values)

    def by_face(self, seed: int, held_out: int = 5) -> tuple["Glyphs", "Glyphs"]:
        """Return the images in most faces, and those in so many others, drawn by the seed."""
        apart = torch.isin(self.faces, permutation(len(FACES), seed)[:held_out])
        return self[~apart], self[apart]


@cache
def drawn(size: int) -> Glyphs:
    """Draw all images of so many pixels a side."""
    check("typefaces", [path(name).read_bytes() for name in FACES if path(name).exists()])
    having = coverage()
    characters = "".join(different(having))
    check("characters", [character.encode() for character in characters])
    found = [(label, face) for label, character in enumerate(characters) for face in sorted(having[character])]
    labels, faces = torch.tensor(found).T.contiguous()
    pixels = np.empty((len(found), 1, size, size), np.uint8)
    for face, name in enumerate(FACES):
        font = typeface(name, size * 2 // 3)  # so that the tallest fit, all at one scale and on one line
        for place in (faces == face).nonzero()[:, 0].tolist():
            character = characters[labels[place]]
            pixels[place, 0] = draw(character, font, size, left=round((size - font.getlength(character)) / 2))
    inked = torch.from_numpy(pixels.any(axis=(1, 2, 3)))  # one face has a blank for one letter
    images = torch.from_numpy(pixels[inked.numpy()]).float() / 127.5 - 1
    return Glyphs(images, labels[inked], faces[inked], characters)


def permutation(count: int, seed: int) -> Tensor:
    """Return the numbers from 0 on, in an order drawn by the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def typeface(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """Return a face at so many pixels an em."""
    return ImageFont.truetype(str(path(name)), pixels, layout_engine=ImageFont.Layout.BASIC)


def draw(character: str, font: ImageFont.FreeTypeFont, size: int, left: int) -> np.ndarray:
    """Return a character as (size, size), 0 to 255 for ink; it stands on a line three quarters down."""
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).text((left, size * 3 // 4), character, fill=255, font=font, anchor="ls")
    return np.asarray(image)


def path(name: str) -> Path:
    """Return where matplotlib keeps a face."""
    return Path(mpl.get_data_path(), "fonts", "ttf", f"{name}.ttf")


def coverage() -> dict[str, set[int]]:
    """Return the faces of each character that enough of them have, in the order of Unicode."""
    having: dict[str, set[int]] = {}
    for face, name in enumerate(FACES):
        for code in FT2Font(str(path(name))).get_charmap():
            having.setdefault(chr(code), set()).add(face)
    common = (character for character, faces in having.items() if len(faces) >= LEAST)
    return {character: having[character] for character in sorted(common) if kind(character) in KINDS}


def kind(character: str) -> str:
    """Return the first letter of Unicode's general category."""
    return unicodedata.category(character)[0]


def different(characters: Iterable[str]) -> list[str]:
    """Return those that leave ink, and of those that look the same in the first face only the first."""
    font = typeface(FACES[0], 64)
    first: dict[bytes, str] = {}
    for character in characters:
        pixels = draw(character, font, 192, left=32)
        if pixels.any():
            first.setdefault(pixels.tobytes(), character)
    return list(first.values())


def check(what: str, parts: list[bytes]) -> None:
    """Raise an error unless these are the parts that the data set is made of."""
    found = (len(parts), hashlib.sha256(b"".join(parts)).hexdigest())
    if found != EXPECTED[what]:
        raise ValueError(
            f"matplotlib {version('matplotlib')} (drawn by Pillow {version('pillow')}, named by Unicode "
            f"{unicodedata.unidata_version}) brings other {what} than the glyphs are made of: number and SHA-256 are "
            f"{found}, expected {EXPECTED[what]}; matplotlib 3.7 to 3.11 has them: pip install 'matplotlib==3.11.*'"
        )


def family(character: str) -> str:
    """Return a character's script, or what kind of sign it is."""
    name = unicodedata.name(character)
    scripts = (script for script in SCRIPTS if name.startswith(script.upper()))
    signs = (sign for part, sign in SIGNS.items() if part in name)
    mathematical = "mathematics" if unicodedata.category(character) == "Sm" else KINDS[kind(character)]
    return next(scripts, next(signs, mathematical))
