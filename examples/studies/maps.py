"""Attention maps, L2-CAF's and its rivals': what each is asked to explain, and how each is found.

All maps lie on the grid of the network's last feature map; methods that attribute to pixels are pooled to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from captum.attr import LayerActivation, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from pml_extensions.attr import L2CAF, last_feature_layer


@dataclass
class Subject:
    """What a map should explain: the logit of each image's class, or an embedding's likeness to itself.

    Attributes:
        model: a classifier or an embedder, in evaluation mode.
        images: (N, C, H, W).
        targets: classes (N,) of a classifier; None for an embedder.
        output: the logits or embeddings of the images as they are.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor | None
    output: Tensor = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.output = self.model(self.images)

    @cached_property
    def layer(self) -> nn.Module:
        """The last layer with a feature map."""
        return last_feature_layer(self.model, self.images[:1])

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Height and width of the feature map."""
        return tuple(self.activation(self.images[:1]).shape[2:])

    def activation(self, images: Tensor) -> Tensor:
        """Return the feature maps."""
        return LayerActivation(self.model, self.layer).attribute(images)

    def score(self, images: Tensor) -> Tensor:
        """Return one value an image, which may be a changed one."""
        output = self.model(images)
        if self.targets is None:
            return F.cosine_similarity(output, self.output)
        return output.gather(1, self.targets[:, None])[:, 0]

    def slope(self, images: Tensor) -> Tensor:
        """Return the score for gradients: a cosine to itself is at its maximum, where its gradient is zero."""
        return self.score(images) if self.targets is not None else (self.model(images) * self.output).sum(1)

    def pooled(self, attribution: Tensor) -> Tensor:
        """Return pixels' attributions on the feature map's grid."""
        return F.adaptive_avg_pool2d(attribution.abs().sum(1, keepdim=True), self.grid)


def oblivious(subject: Subject, images: Tensor) -> Tensor:
    """L2-CAF of the whole output."""
    return L2CAF(subject.model, subject.layer).attribute(images)


def of_class(subject: Subject, images: Tensor) -> Tensor:
    """L2-CAF of the class."""
    return L2CAF(subject.model, subject.layer).attribute(images, subject.targets)


def of_logit(subject: Subject, images: Tensor) -> Tensor:
    """L2-CAF of the class's logit alone: the published objective without the other logits."""

    def minus_logit(output: Tensor, _original: Tensor) -> Tensor:
        return -output.gather(1, subject.targets[:, None])[:, 0]

    return L2CAF(subject.model, subject.layer).attribute(images, objective=minus_logit)


def positive_part(subject: Subject, images: Tensor) -> Tensor:
    """L2-CAF of the class, without the places that count against it."""
    return L2CAF(subject.model, subject.layer).attribute(images, subject.targets, signed=True).relu()


def grad_cam(subject: Subject, images: Tensor) -> Tensor:
    """Captum's Grad-CAM."""
    return LayerGradCam(subject.slope, subject.layer).attribute(images).relu().detach()


@torch.enable_grad()
def layer_cam(subject: Subject, images: Tensor) -> Tensor:
    """LayerCAM (Jiang et al., 2021): the activation weighted by its own positive gradient."""
    found: list[Tensor] = []
    handle = subject.layer.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        total = subject.slope(images.clone().requires_grad_()).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(total, found[0])
    return (gradient.relu() * found[0]).sum(1, keepdim=True).relu().detach()


def eigen_cam(subject: Subject, images: Tensor) -> Tensor:
    """EigenCAM (Muhammad and Yeasin, 2020): the activation's first principal component over places."""
    activation = subject.activation(images).flatten(2)
    centred = activation - activation.mean(2, keepdim=True)
    first = torch.linalg.svd(centred, full_matrices=False)[2][:, :1]
    sign = (first * activation.mean(1, keepdim=True)).sum(2, keepdim=True).sign()
    return (first * sign).relu().unflatten(2, subject.grid)


def saliency(subject: Subject, images: Tensor) -> Tensor:
    """Captum's gradient of the input."""
    return subject.pooled(Saliency(subject.slope).attribute(images.requires_grad_()))


def occlusion(subject: Subject, images: Tensor) -> Tensor:
    """Captum's occlusion: one run of the network a window of an eighth of the image's side."""
    window = (images.shape[1], images.shape[-1] // 8, images.shape[-1] // 8)
    return subject.pooled(Occlusion(subject.slope).attribute(images, sliding_window_shapes=window, strides=window))


def random(subject: Subject, images: Tensor) -> Tensor:
    """The floor: a map that knows nothing of the network."""
    return torch.rand(len(images), 1, *subject.grid)


GRAD_CAM, OCCLUSION, RANDOM = "LayerGradCam", "Occlusion", "random"
CLASSIFIER, EMBEDDER = "classifier", "embedder"
OF_OUTPUT: dict[str, Callable[[Subject, Tensor], Tensor]] = {
    "L2-CAF, oblivious": oblivious,
    GRAD_CAM: grad_cam,
    "LayerCAM": layer_cam,
    "EigenCAM": eigen_cam,
    "Saliency": saliency,
    OCCLUSION: occlusion,
    RANDOM: random,
}
OF_CLASS = {"L2-CAF, class": of_class, "L2-CAF, class, positive part": positive_part}
METHODS = {CLASSIFIER: OF_CLASS | OF_OUTPUT, EMBEDDER: OF_OUTPUT}
LOGIT = "L2-CAF, logit alone"
FUNCTIONS = METHODS[CLASSIFIER] | {LOGIT: of_logit}
