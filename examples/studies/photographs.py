"""Photographs that come with packages, and what a map of them should explain of a network with ImageNet weights."""

import matplotlib.cbook
import numpy as np
import skimage.data
import torch
from imagenet import Embedder, lite0
from maps import CLASSIFIER, Subject
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

PHOTOGRAPHS = (
    skimage.data.coffee,
    skimage.data.chelsea,
    lambda: skimage.data.stereo_motorcycle()[0],
    skimage.data.astronaut,
    skimage.data.rocket,
    lambda: load_sample_image("flower.jpg"),
    lambda: load_sample_image("china.jpg"),
    lambda: np.array(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))),
)


def photograph(number: int) -> Tensor:
    """Return one of the eight photographs, (1, 3, 224, 224) in [-1, 1]."""
    image = Image.fromarray(PHOTOGRAPHS[number]()).convert("RGB").resize((224, 224))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def subject(network: str, number: int) -> Subject:
    """Return a photograph, and the network that names what is on it or, by its pooled features, embeds it."""
    model, images = lite0(), photograph(number)
    if network == CLASSIFIER:
        return Subject(model, images, model(images).argmax(1))
    return Subject(Embedder(model).eval(), images, None)
