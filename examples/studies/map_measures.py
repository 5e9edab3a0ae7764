"""How good is an attention map: does it find the object, does the output follow it, does it hold under noise?

All measures are in percent: of the maps, of the score of the images as they are, of an empty map's infidelity, or of
the map's own norm.
"""

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from captum.metrics import infidelity, sensitivity_max
from maps import FUNCTIONS, OCCLUSION, RANDOM, Subject
from torch import Tensor

STEPS, NOISE = 16, 0.1
LOCALISATION = ("points into the box", "mass in the box")
FAITHFULNESS = ("insertion", "deletion", "infidelity", "sensitivity")


def map_measures(subject: Subject, method: str, box: Tensor | None) -> dict[str, float]:
    """Return the means over the images of what can be measured of a method's maps; boxes are masks (N, H, W)."""
    maps = FUNCTIONS[method](subject, subject.images.clone())
    upsampled = LayerAttribution.interpolate(maps, tuple(subject.images.shape[2:]), "bilinear")
    found = localisation(upsampled[:, 0], box) if box is not None else {}
    found |= insertion_deletion(subject, upsampled)
    found["infidelity"] = unfaithfulness(subject, upsampled)
    if method not in {RANDOM, OCCLUSION}:  # nothing to move; and as many runs again for every window
        found["sensitivity"] = unsteadiness(subject, method)
    return found


def localisation(maps: Tensor, box: Tensor) -> dict[str, float]:
    """Return, in percent, how many maps have their highest place in the box, and how much of them lies in it."""
    points = box.flatten(1).gather(1, maps.flatten(1).argmax(1)[:, None])
    inside = (maps * box).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-12)
    return dict(zip(LOCALISATION, (100 * points.float().mean().item(), 100 * inside.mean().item()), strict=True))


@torch.no_grad()
def insertion_deletion(subject: Subject, maps: Tensor) -> dict[str, float]:
    """Return the mean score while places are put into a blurred image, best first, and while they are blurred away.

    Both in percent of the score of the images as they are.
    """
    images = subject.images
    blurred = F.avg_pool2d(F.pad(images, [24] * 4, mode="reflect"), 49, stride=1)
    rank = maps.flatten(1).argsort(1, descending=True).argsort(1).view_as(maps) / maps[0].numel()
    whole = subject.score(images).mean()

    def mean_score(best: Tensor, others: Tensor) -> float:
        shown = [torch.where(rank < step / STEPS, best, others) for step in range(STEPS + 1)]
        scores = torch.stack([subject.score(changed).mean() for changed in shown])
        return 100 * (scores.mean() / whole).item()

    return {"insertion": mean_score(images, blurred), "deletion": mean_score(blurred, images)}


def unfaithfulness(subject: Subject, maps: Tensor) -> float:
    """Return captum's infidelity (normalised, Gaussian noise) in percent of an empty map's: what stays unexplained."""

    def noisy(images: Tensor) -> tuple[Tensor, Tensor]:
        noise = NOISE * torch.randn_like(images)
        return noise, images - noise

    def of(heat: Tensor) -> float:
        torch.manual_seed(0)
        images, count = subject.images, len(subject.images)
        each = infidelity(
            subject.score, noisy, images, heat, n_perturb_samples=8, max_examples_per_batch=count, normalize=True
        )
        return each.mean().item()

    whole = maps.expand_as(subject.images)
    return 100 * of(whole) / of(torch.zeros_like(whole))


def unsteadiness(subject: Subject, method: str) -> float:
    """Return captum's largest change of a map under small noise on its image, in percent of the map's norm."""
    torch.manual_seed(0)
    each = sensitivity_max(
        lambda inputs: (FUNCTIONS[method](subject, inputs[0].clone()),),
        subject.images,
        n_perturb_samples=4,
        max_examples_per_batch=len(subject.images),
    )
    return 100 * each.mean().item()
