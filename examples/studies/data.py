"""The images of the studies: characters, Fashion-MNIST and scikit-learn's digits, whole, by class and by count."""

import gzip
import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

if TYPE_CHECKING:
    from glyphs import Glyphs  # it needs matplotlib, which nothing else here does

GLYPH_SIZE = 20  # pixels a side, so that all five seeds of a study take minutes
VARIABLE = "FASHION_MNIST"
FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
FILES = {  # name: size in bytes, SHA-256
    "train-images-idx3-ubyte.gz": (26421856, "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"),
    "train-labels-idx1-ubyte.gz": (29491, "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
    "t10k-images-idx3-ubyte.gz": (4422079, "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
    "t10k-labels-idx1-ubyte.gz": (5125, "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
}
HOW_TO_GET = f"""Fashion-MNIST was not found. Either of these gets it:
  apt-get install dataset-fashion-mnist                                                      (Debian, Ubuntu)
  python -c 'import torchvision; torchvision.datasets.FashionMNIST("data", download=True)'   (anywhere)
or point the environment variable {VARIABLE} to a folder that holds {", ".join(FILES)}."""


class Images(NamedTuple):
    """Images (n, 1, H, W) between -1 and 1, and their labels (n,)."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> "Images":
        return Images(self.images[index], self.labels[index])

    def classes(self, chosen: Iterable[int]) -> "Images":
        """Return the images of some classes, labelled 0, 1, ... in the order given."""
        parts = [(self.labels == label).nonzero()[:, 0] for label in chosen]
        new = [torch.full_like(part, label) for label, part in enumerate(parts)]
        return Images(self.images[torch.cat(parts)], torch.cat(new))

    def divide(self, counts: int | Mapping[int, int], seed: int) -> tuple["Images", "Images"]:
        """Return so many images of every class, drawn by the seed, and all the others."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        wanted = counts if isinstance(counts, Mapping) else dict.fromkeys(self.labels.unique().tolist(), counts)
        chosen = torch.cat([order[self.labels[order] == label][:count] for label, count in wanted.items()])
        others = torch.ones(len(self.labels), dtype=torch.bool)
        others[chosen] = False
        return self[chosen], self[others]

    def few(self, counts: int | Mapping[int, int], seed: int) -> "Images":
        """Return so many images of every class, drawn by the seed."""
        return self.divide(counts, seed)[0]


@cache
def fashion_mnist() -> tuple[Images, Images]:
    """Return the 60,000 training and the 10,000 test images (28 x 28) of ten kinds of clothing."""
    content = {name: checked(folder() / name) for name in FILES}
    images, labels, test_images, test_labels = content.values()
    return decoded(images, labels), decoded(test_images, test_labels)


def folder() -> Path:
    """Return where Fashion-MNIST is."""
    candidates = [os.environ[VARIABLE]] if VARIABLE in os.environ else FOLDERS
    for candidate in map(Path, candidates):
        if all((candidate / name).exists() for name in FILES):
            return candidate
    raise FileNotFoundError(HOW_TO_GET)


def checked(path: Path) -> bytes:
    """Return a file's unpacked content, if it is the published file."""
    packed = path.read_bytes()
    found, expected = (len(packed), hashlib.sha256(packed).hexdigest()), FILES[path.name]
    if found != expected:
        raise ValueError(
            f"{path} is not the published file: size and SHA-256 are {found}, expected {expected}; get it again"
        )
    return gzip.decompress(packed)


def decoded(images: bytes, labels: bytes) -> Images:
    """Return the images and labels of two IDX files, whose headers are 16 and 8 bytes long."""
    pixels = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())
    return Images(pixels.float() / 127.5 - 1, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(int)))


@cache
def digits(size: int = 24) -> Images:
    """Return scikit-learn's 1,797 handwritten digits."""
    data = load_digits()
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None]
    return Images(F.interpolate(images, size=size, mode="bilinear"), torch.tensor(data.target))


def zero_shot(seed: int, train_per_class: int, test_per_class: int) -> tuple[Images, Images, Images]:
    """Return training and test images of five classes of Fashion-MNIST, and test images of the other five.

    The seed draws both the classes and the images.
    """
    train, test = fashion_mnist()
    seen, unseen = halves(seed)
    return (
        train.few(dict.fromkeys(seen, train_per_class), seed).classes(seen),
        test.few(dict.fromkeys(seen, test_per_class), seed).classes(seen),
        test.few(dict.fromkeys(unseen, test_per_class), seed).classes(unseen),
    )


def zero_shot_digits(seed: int, train_per_class: int) -> tuple[Images, Images, Images]:
    """Return training images and all other images of five digits, and all images of the other five."""
    seen, unseen = halves(seed)
    return *digits(28).classes(seen).divide(train_per_class, seed), digits(28).classes(unseen)


@lru_cache(maxsize=1)
def zero_shot_glyphs(seed: int) -> tuple[Images, Images]:
    """Return all drawings of one half of the characters, and those of another quarter, each drawing once."""
    from glyphs import Glyphs

    seen, others = Glyphs.load(GLYPH_SIZE).distinct().halves(seed)
    unseen, _ = others.halves(seed)
    return Images(seen.images, seen.labels), Images(unseen.images, unseen.labels)


def common_glyphs(seed: int, first: int, count: int) -> "Glyphs":
    """Return so many characters with more than ten drawings, from a first one on in an order drawn by the seed."""
    from glyphs import Glyphs, permutation

    data = Glyphs.load(GLYPH_SIZE).distinct()
    common = (data.labels.bincount() > 10).nonzero()[:, 0]
    return data.classes(common[permutation(len(common), seed)][first : first + count])


def halves(seed: int) -> tuple[list[int], list[int]]:
    """Return five of ten classes and the other five."""
    classes = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    return classes[:5], classes[5:]
