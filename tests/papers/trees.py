"""Small data sets of noise, in the folders and lists of the published ones."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def birds(folder: Path, classes, each: int = 4) -> Path:
    """CUB-200-2011 or NABirds: every class has ``each`` images, half of them to train on."""
    rows = [(f"id-{c}-{i}", c, f"{c:03}.Bird/Bird_{c}_{i}.jpg", i % 2) for c in classes for i in range(each)]
    for number, (_, _, file, _) in enumerate(rows):
        draw(folder / "images" / file, number)
    write(folder / "images.txt", (f"{key} {file}" for key, _, file, _ in rows))
    write(folder / "image_class_labels.txt", (f"{key} {c}" for key, c, _, _ in reversed(rows)))
    write(folder / "train_test_split.txt", (f"{key} {train}" for key, _, _, train in rows))
    write(folder / "bounding_boxes.txt", (f"{key} 10.0 5.0 20.0 15.0" for key, *_ in rows))
    return folder


def cars(root: Path, classes=range(97, 101), each: int = 2) -> Path:
    folder = root / "stanford_cars"
    kinds = [
        ("bbox_x1", "i4"),
        ("bbox_y1", "i4"),
        ("bbox_x2", "i4"),
        ("bbox_y2", "i4"),
        ("class", "i4"),
        ("fname", "O"),
    ]
    for part, name in (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat")):
        rows = [(5, 6, 30, 25, c, f"{c}_{i}.jpg") for c in classes for i in range(each)]
        for number, row in enumerate(rows):
            draw(folder / part / row[5], number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        savemat(folder / name, {"annotations": np.array(rows, dtype=kinds)})
    return root


def sop(root: Path, classes: int = 4, each: int = 2) -> Path:
    folder = root / "Stanford_Online_Products"
    for part, first in (("train", 1), ("test", 1 + classes)):
        rows = [(c, f"chair_final/{c}_{i}.JPG") for c in range(first, first + classes) for i in range(each)]
        for number, (_, file) in enumerate(rows):
            draw(folder / file, number)
        lines = (f"{n} {c} 1 {file}" for n, (c, file) in enumerate(rows, 1))
        write(folder / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *lines])
    return root


def aircraft(root: Path, classes: int = 4, each: int = 4) -> Path:
    folder = root / "fgvc-aircraft-2013b" / "data"
    names = [f"Type {c}" for c in range(classes)]
    write(folder / "variants.txt", names)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for p, part in enumerate(lists):
        for c, name in enumerate(names):
            for i in range(each):
                key = f"{p}{c}{i:05}"
                draw(folder / "images" / f"{key}.jpg", len(lists[part]) + 1000 * p)
                lists[part].append(f"{key} {name}")
    for part, lines in {**lists, "trainval": lists["train"] + lists["val"]}.items():
        write(folder / f"images_variant_{part}.txt", lines)
    return root


def flowers(root: Path, classes: int = 3) -> Path:
    """Two images a class to train on, one to validate, two to test."""
    folder = root / "flowers-102"
    parts = {"trnid": 2, "valid": 1, "tstid": 2}
    labels, ids = [], {name: [] for name in parts}
    for name, each in parts.items():
        for c in range(1, classes + 1):
            for _ in range(each):
                labels.append(c)
                ids[name].append(len(labels))
                draw(folder / "jpg" / f"image_{len(labels):05}.jpg", len(labels))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    savemat(folder / "setid.mat", {name: np.array([found], dtype=np.uint16) for name, found in ids.items()})
    return root


def dogs(root: Path, classes: int = 3, each: int = 2) -> Path:
    for part in ("train", "test"):
        files = [f"n0{c}-Dog/n0{c}_{part}_{i}.jpg" for c in range(1, classes + 1) for i in range(each)]
        for number, file in enumerate(files):
            draw(root / "Images" / file, number)
        column = np.empty((len(files), 1), dtype=object)
        column[:, 0] = files
        labels = np.repeat(np.arange(1, classes + 1), each)[:, None]
        savemat(root / f"{part}_list.mat", {"file_list": column, "annotation_list": column, "labels": labels})
    return root


def table(root: Path, lines, header: str = "label,path,split") -> Path:
    """A CSV of one's own; every named image is drawn."""
    path = root / "own.csv"
    write(path, [header, *lines])
    for number, line in enumerate(lines):
        draw(root / line.split(",")[1], number)
    return path
