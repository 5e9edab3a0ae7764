"""The data sets of the papers, read from one's own copy of their published files; nothing is downloaded.

A reader takes the folder (for a CSV, the file) and returns the images to train and to test on. What is missing, broken
or too few is an error that says which file, and where to get it.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "CLASSIFICATION",
    "RETRIEVAL",
    "Counts",
    "Data",
    "Images",
    "Reader",
    "aircraft_trainval",
    "load_image",
    "read",
]

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the file


@dataclass(frozen=True)
class Images:
    """Some images of a data set.

    Attributes:
        paths: their files.
        labels: the class of each.
        boxes: where the object is in each, or None.
        query: whether each one is searched with in a test of retrieval, and
        gallery: whether it may be found; None if all are both.
    """

    paths: Sequence[Path]
    labels: Sequence[Any]
    boxes: Sequence[Box] | None = None
    query: Sequence[bool] | None = None
    gallery: Sequence[bool] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, chosen: Iterable[bool]) -> "Images":
        """Return those that are chosen."""
        places = [place for place, this in enumerate(chosen) if this]
        columns = (None if column is None else [column[place] for place in places] for column in vars(self).values())
        return Images(*columns)


@dataclass(frozen=True)
class Counts:
    """How many images and classes there are to train and to test on."""

    train_images: int
    train_classes: int
    test_images: int
    test_classes: int

    @classmethod
    def of(cls, train: Images, test: Images) -> "Counts":
        """Count."""
        return cls(len(train), len(set(train.labels)), len(test), len(set(test.labels)))

    def __str__(self) -> str:
        return (
            f"{self.train_images:,} training images of {self.train_classes:,} classes, "
            f"{self.test_images:,} test images of {self.test_classes:,}"
        )


@dataclass(frozen=True)
class Data:
    """A data set, with the published counts (None for one's own data) and where it is published."""

    name: str
    train: Images
    test: Images
    published: Counts | None = None
    source: str = ""

    @property
    def counts(self) -> Counts:
        """What there is."""
        return Counts.of(self.train, self.test)

    @property
    def is_published(self) -> bool:
        """Whether this is a published data set, whole."""
        return self.counts == self.published


Reader = Callable[[Path], Data]

CUB = "https://www.vision.caltech.edu/datasets/cub_200_2011 (CUB_200_2011.tgz)"
NABIRDS = "https://dl.allaboutbirds.org/nabirds (nabirds.tar.gz)"
CARS = "the copies that https://github.com/pytorch/vision/issues/7545 names (the authors' page is gone)"
SOP = "the link in https://github.com/rksltnl/Deep-Metric-Learning-CVPR16 (Stanford_Online_Products.zip)"
FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102 (102flowers.tgz, imagelabels.mat, setid.mat)"
AIRCRAFT = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft (fgvc-aircraft-2013b.tar.gz)"
DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs (images.tar, lists.tar)"


def read(reader: Reader, root: Path, other_counts: bool = False) -> Data:
    """Return the data set, all of whose files are there.

    Raises:
        FileNotFoundError: if the folder, a list or an image is missing.
        ValueError: if a list cannot be read, or if there are other counts than the published ones, unless
            ``other_counts``.
    """
    if not root.exists():
        raise FileNotFoundError(
            f"--root {root} is not there; pass the folder that holds the data set (of a CSV, the file)"
        )
    data = reader(root)
    missing = [path for path in (*data.train.paths, *data.test.paths) if not path.is_file()]
    if missing:
        fetch = f"; get them from {data.source}" if data.source else "; paths are relative to the CSV file's folder"
        raise FileNotFoundError(f"{len(missing):,} images of {data.name} are missing, the first {missing[0]}{fetch}")
    if not data.test:
        raise ValueError(f"{root} has no images to test on")
    if data.published and not data.is_published and not other_counts:
        raise ValueError(
            f"{data.name} should have {data.published}; {root} has {data.counts}. Unpack it again from {data.source}; "
            "or pass --other-counts to go on with what there is, without the published figures beside the result"
        )
    return data


def load_image(path: Path, small: bool = False) -> Image.Image:
    """Return an image file's image, RGB; ``small`` decodes the whole file, too, but faster and to any size."""
    try:
        with Image.open(path) as file:
            if small:
                file.draft("RGB", (64, 64))
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); unpack it again from where it came") from error


# Published data sets --------------------------------------------------------------------------------------------------


def cub_by_class(root: Path) -> Data:
    """CUB-200-2011 for retrieval: classes 1 to 100 to train on, 101 to 200 to test on."""
    images = birds(folder_in(root, "CUB_200_2011", CUB), CUB)
    return Data("CUB-200-2011", *halves(images, 100), Counts(5864, 100, 5924, 100), CUB)


def cub(root: Path) -> Data:
    """CUB-200-2011 for classification, by its own lists."""
    folder = folder_in(root, "CUB_200_2011", CUB)
    return Data("CUB-200-2011", *birds_by_lists(folder, CUB), Counts(5994, 200, 5794, 200), CUB)


def nabirds(root: Path) -> Data:
    """NABirds, by its own lists."""
    folder = folder_in(root, "nabirds", NABIRDS)
    return Data("NABirds", *birds_by_lists(folder, NABIRDS), Counts(23929, 555, 24633, 555), NABIRDS)


def cars_by_class(root: Path) -> Data:
    """Cars-196 for retrieval: classes 1 to 98 to train on, 99 to 196 to test on."""
    parts = [list(map(list, (part.paths, part.labels, part.boxes))) for part in cars_by_lists(root)]
    both = Images(*(one + other for one, other in zip(*parts, strict=True)))
    return Data("Cars-196", *halves(both, 98), Counts(8054, 98, 8131, 98), CARS)


def cars(root: Path) -> Data:
    """Cars-196 for classification, by its own lists."""
    return Data("Cars-196", *numbered(*cars_by_lists(root)), Counts(8144, 196, 8041, 196), CARS)


def sop(root: Path) -> Data:
    """Stanford Online Products, by its own lists: no class is in both."""
    folder = folder_in(root, "Stanford_Online_Products", SOP)
    parts = []
    for name in ("Ebay_train.txt", "Ebay_test.txt"):  # with a line of headings: image_id class_id super_class_id path
        rows = table(folder / name, SOP, columns=4)[1:]
        parts.append(Images([folder / path for *_, path in rows], [integer(row[1], folder / name) for row in rows]))
    return Data("Stanford Online Products", *map(alone, parts), Counts(59551, 11318, 60502, 11316), SOP)


def flowers(root: Path) -> Data:
    """Flowers-102, its list of ten training images a class and its test list, through torchvision."""
    from torchvision.datasets import Flowers102

    parts = [of_torchvision(Flowers102, root, "flowers-102", FLOWERS, split) for split in ("train", "test")]
    return Data("Flowers-102", *numbered(*parts), Counts(1020, 102, 6149, 102), FLOWERS)


def aircraft(root: Path) -> Data:
    """FGVC-Aircraft by variant, its training and its test list, through torchvision."""
    return aircraft_lists(root, "train", Counts(3334, 100, 3333, 100))


def aircraft_trainval(root: Path) -> Data:
    """FGVC-Aircraft by variant, its training and validation lists together and its test list, through torchvision."""
    return aircraft_lists(root, "trainval", Counts(6667, 100, 3333, 100))


def aircraft_lists(root: Path, split: str, counts: Counts) -> Data:
    """Return FGVC-Aircraft with one of its lists to train on."""
    from torchvision.datasets import FGVCAircraft

    parts = [of_torchvision(FGVCAircraft, root, "fgvc-aircraft-2013b", AIRCRAFT, name) for name in (split, "test")]
    return Data("FGVC-Aircraft", *numbered(*parts), counts, AIRCRAFT)


def dogs(root: Path) -> Data:
    """Stanford Dogs, by its own lists."""
    parts = []
    for name in ("train_list.mat", "test_list.mat"):
        files, labels = matlab(root / name, DOGS, "file_list", "labels")
        parts.append(Images([root / "Images" / str(file) for file in files], [int(label) for label in labels]))
    return Data("Stanford Dogs", *numbered(*parts), Counts(12000, 120, 8580, 120), DOGS)


# One's own data -------------------------------------------------------------------------------------------------------


def a_folder(root: Path) -> Data:
    """All images in a folder and the folders in it, without classes: to look at, not to train on."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    return Data(root.name, Images([], []), Images(paths, [0] * len(paths)))


def own_to_look_at(path: Path) -> Data:
    """The validation images of one's own data."""
    return Data(path.name, Images([], []), alone(own(path)[1]))


def own_by_class(path: Path) -> Data:
    """One's own data for retrieval."""
    train, test = map(alone, own(path))
    query, gallery = ([True] * len(test) if flags is None else flags for flags in (test.query, test.gallery))
    both = [found for searched, found in zip(query, gallery, strict=True) if searched]
    if test and not (any(query) and any(gallery)):
        raise ValueError(f"{path}: is_query and is_gallery must each be True in some of the validation rows")
    if any(both) and not all(both):
        raise ValueError(
            f"{path}: {sum(both):,} of {len(both):,} images to search with are in the gallery, too; all or none may be"
        )
    return Data(path.name, train, test)


def own_by_lists(path: Path) -> Data:
    """One's own data for classification: what is tested are classes that were trained."""
    return Data(path.name, *numbered(*own(path)))


def own(path: Path) -> tuple[Images, Images]:
    """Return the rows to train and to validate on of a CSV in open-metric-learning's format.

    Columns: ``label``, ``path`` (absolute, or relative to the CSV file's folder) and ``split``, train or validation.
    Where there are ``is_query`` and ``is_gallery``, they say of each validation row whether it is searched with and
    whether it may be found, True or False. Where there are ``x_1``, ``x_2``, ``y_1`` and ``y_2`` they are the left,
    right, top and bottom of the object, in pixels.
    """
    if path.is_dir():
        raise ValueError(f"--root {path} is a folder; for --data csv pass the CSV file itself")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), set(reader.fieldnames or ())
    if lacking := {"label", "path", "split"} - columns:
        raise ValueError(f"{path} lacks the column {min(lacking)!r}; it has {', '.join(sorted(columns))}")
    for line, row in enumerate(rows, 2):
        if not row["label"] or not row["path"]:
            raise ValueError(f"{path}, line {line}: label and path must not be empty")
        if row["split"] not in {"train", "validation"}:
            raise ValueError(f"{path}, line {line}: split must be train or validation, got {row['split']!r}")
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "validation"))
    sides = [name for name in ("x_1", "y_1", "x_2", "y_2") if name in columns]
    parts = [
        Images(
            [path.parent / row["path"] for row in part],
            [row["label"] for row in part],
            [tuple(real(row[side], path) for side in sides) for row in part] if len(sides) == 4 else None,
        )
        for part in (train, test)
    ]
    query, gallery = (
        [flag(row[name], f"{path}, {name}") for row in test] if name in columns else None
        for name in ("is_query", "is_gallery")
    )
    return parts[0], replace(parts[1], query=query, gallery=gallery)


RETRIEVAL: dict[str, Reader] = {"cub": cub_by_class, "cars": cars_by_class, "sop": sop, "csv": own_by_class}
CLASSIFICATION: dict[str, Reader] = {
    "cars": cars,
    "flowers": flowers,
    "dogs": dogs,
    "aircraft": aircraft,
    "nabirds": nabirds,
    "cub": cub,
    "csv": own_by_lists,
}
LOOKING: dict[str, Reader] = {"images": a_folder, "csv": own_to_look_at, "cub": cub, "nabirds": nabirds, "cars": cars}


# What they have in common ---------------------------------------------------------------------------------------------


def folder_in(root: Path, name: str, source: str) -> Path:
    """Return the folder of that name in ``root``, or ``root`` itself if that is its name."""
    if (root / name).is_dir():
        return root / name
    if root.name != name or not root.is_dir():
        raise FileNotFoundError(f"{root} holds no folder {name}; unpack it there from {source}")
    return root


def birds(folder: Path, source: str) -> Images:
    """Return all images of a folder with the lists of Caltech's and Cornell's birds, with their boxes if there are."""
    path = folder / "image_class_labels.txt"
    classes = keyed(path, source)
    boxes = keyed(folder / "bounding_boxes.txt", source) if (folder / "bounding_boxes.txt").exists() else None
    files = keyed(folder / "images.txt", source)
    corners = None
    if boxes is not None:
        sides = [list(map(float, looked_up(boxes, key, folder / "bounding_boxes.txt"))) for key in files]
        corners = [(x, y, x + width, y + height) for x, y, width, height in sides]
    labels = [integer(looked_up(classes, key, path)[0], path) for key in files]
    return Images([folder / "images" / path for (path,) in files.values()], labels, corners)


def birds_by_lists(folder: Path, source: str) -> tuple[Images, Images]:
    """Return those to train and those to test on, by the suggested split."""
    images, path = birds(folder, source), folder / "train_test_split.txt"
    split = keyed(path, source)
    train = [looked_up(split, key, path)[0] == "1" for key in keyed(folder / "images.txt", source)]
    return numbered(images.where(train), images.where(not this for this in train))


def cars_by_lists(root: Path) -> tuple[Images, Images]:
    """Return the training and the test images of Cars-196, in the layout that torchvision expects."""
    folder = folder_in(root, "stanford_cars", CARS)
    lists = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    parts = []
    for images, name in lists.items():
        (rows,) = matlab(folder / name, CARS, "annotations")
        sides = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
        parts.append(
            Images(
                [folder / images / str(row["fname"]) for row in rows],
                [int(row["class"]) for row in rows],
                [tuple(float(row[side]) for side in sides) for row in rows],
            )
        )
    return parts[0], parts[1]


def of_torchvision(dataset: Callable[..., Any], root: Path, name: str, source: str, split: str) -> Images:
    """Return a part of a data set that torchvision reads."""
    folder = folder_in(root, name, source)
    try:
        found = dataset(folder.parent, split=split)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(f"{folder} is not whole ({error}); unpack it again from {source}") from error
    return Images([Path(path) for path in found._image_files], found._labels)  # noqa: SLF001 (it has no public name)


def halves(images: Images, last: int) -> tuple[Images, Images]:
    """Return the images of the classes up to the last to train on, and the others."""
    train = [label <= last for label in images.labels]
    return alone(images.where(train)), alone(images.where(not this for this in train))


def numbered(train: Images, test: Images) -> tuple[Images, Images]:
    """Return both with the training labels numbered from 0."""
    place = {label: number for number, label in enumerate(sorted(set(train.labels)))}
    if new := sorted(set(test.labels) - place.keys()):
        raise ValueError(f"{len(new)} classes are to be tested that are not trained, the first {new[0]!r}")
    first, second = (replace(part, labels=[place[label] for label in part.labels]) for part in (train, test))
    return first, second


def alone(images: Images) -> Images:
    """Return the images with their own labels numbered from 0."""
    return numbered(images, images)[0]


def lines_of(path: Path, source: str) -> list[str]:
    """Return a list's lines that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get it from {source}")
    return [line for line in path.read_text().splitlines() if line.strip()]


def table(path: Path, source: str, columns: int | None = None) -> list[list[str]]:
    """Return a list's lines, divided at spaces."""
    rows = [line.split() for line in lines_of(path, source)]
    for line, row in enumerate(rows, 1):
        if columns and len(row) != columns:
            raise ValueError(
                f"{path}, line {line}: expected {columns} columns, got {len(row)}; get it again from {source}"
            )
    return rows


def keyed(path: Path, source: str) -> dict[str, list[str]]:
    """Return a list's lines by their first column."""
    return {key: rest for key, *rest in table(path, source)}


def looked_up(rows: dict[str, list[str]], key: str, path: Path) -> list[str]:
    """Return the columns of an image."""
    if key not in rows:
        raise ValueError(f"{path} has no line for image {key}, which images.txt names; unpack the data set again")
    return rows[key]


def real(text: str, path: Path) -> float:
    """Return a coordinate."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: expected a coordinate in pixels, got {text!r}") from None


def integer(text: str, path: Path) -> int:
    """Return a class number."""
    if not text.isdigit():
        raise ValueError(f"{path}: expected a class number, got {text!r}")
    return int(text)


def flag(text: str, where: str) -> bool:
    """Return a truth value."""
    if text not in {"True", "False"}:
        raise ValueError(f"{where}: expected True or False in the validation rows, got {text!r}")
    return text == "True"


def matlab(path: Path, source: str, *names: str) -> list[Any]:
    """Return variables of a MATLAB file, as arrays of one axis."""
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get it from {source}")
    try:
        found = loadmat(path, squeeze_me=True)
    except Exception as error:  # any bytes may be in it, and scipy has no one error for that
        raise ValueError(f"{path} cannot be read as a MATLAB file ({error}); get it again from {source}") from error
    if lacking := [name for name in names if name not in found]:
        raise ValueError(f"{path} holds no variable {lacking[0]!r}; get it again from {source}")
    return [np.atleast_1d(found[name]) for name in names]
