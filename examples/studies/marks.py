"""L2-CAF with a known answer: two characters differ by one mark; does the map for the pair point at it?

    python examples/studies/marks.py            # go on with the study: rows/marks.csv
    python examples/studies/marks.py --quick    # under a minute

A network learns to retrieve one half of the characters. Of the other half come pairs such as e and é, c and ç, o and ø:
the second is the first and a mark, in the same typeface and place, so that their drawings tell where the mark is. Each
map explains how like the marked character is to the plain one; where it is least, the network sees what speaks against
it. A seed takes about two minutes of one core.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, Occlusion
from data import Images
from glyphs import Glyphs
from measures import batches, embed, retrieval
from pytorch_metric_learning.losses import ContrastiveLoss
from runner import Measures, Study, main
from svmax import train
from torch import Tensor, nn

from pml_extensions.attr import L2CAF

SIZE, STRIDE, STEPS, BATCH, RATE = 48, 8, 200, 72, 0.1
INK, TAKEN, LEAST = 0.5, 0.1, 8  # what counts as ink; how much of it a mark may take away; pixels of a mark
STROKES = (" WITH STROKE", " WITH MIDDLE TILDE", " WITH HOOK", " WITH TAIL", " WITH DESCENDER")


@dataclass(frozen=True)
class Pairs:
    """Marked characters, the plain ones that they are made of, and the marks.

    Attributes:
        marked: (n, 1, size, size).
        plain: (n, 1, size, size).
        mark: (n, size, size), whether a pixel has ink in the first and not in the second.
    """

    marked: Tensor
    plain: Tensor
    mark: Tensor

    def cells(self) -> tuple[Tensor, Tensor]:
        """Return which cells (n, h, w) of the map hold the better part of the mark, and which other ones hold ink."""
        shares = F.avg_pool2d(self.mark[:, None].float(), STRIDE)[:, 0]
        ink = F.max_pool2d(self.marked, STRIDE)[:, 0] > 0
        marked = shares >= shares.amax((1, 2), keepdim=True) / 2
        return marked, ink & (shares == 0)


def plain_of(character: str) -> str | None:
    """Return the character without its mark: by Unicode's decomposition, or by its name."""
    parts = unicodedata.decomposition(character).split()
    if len(parts) == 2 and all(part.isalnum() for part in parts) and unicodedata.combining(chr(int(parts[1], 16))):
        return chr(int(parts[0], 16))
    name = unicodedata.name(character, "")
    stroke = next((stroke for stroke in STROKES if name.endswith(stroke)), None)
    if stroke is None:
        return None
    try:
        return unicodedata.lookup(name.removesuffix(stroke))
    except KeyError:
        return None


def pairs(data: Glyphs) -> Pairs:
    """Return all pairs of a data set whose drawings in one typeface differ by what the mark adds."""
    place = {key: n for n, key in enumerate(zip(data.labels.tolist(), data.faces.tolist(), strict=True))}
    label = {character: n for n, character in enumerate(data.characters)}
    found = [
        (n, place[label[plain], face])
        for (of, face), n in place.items()
        if (plain := plain_of(data.characters[of])) in label and (label[plain], face) in place
    ]
    marked, plain = (data.images[torch.tensor(side)] for side in zip(*found, strict=True))
    change = (marked - plain)[:, 0] / 2
    mark, taken = change > INK, change < -INK
    added = mark.sum((1, 2))
    clean = (added >= LEAST) & (taken.sum((1, 2)) <= TAKEN * added)
    return Pairs(marked[clean], plain[clean], mark[clean])


def network() -> nn.Module:
    """Return the network, with a map of an eighth of the image's side."""
    return timm.create_model("test_resnet", in_chans=1, num_classes=64, output_stride=STRIDE)


def likeness(model: nn.Module, reference: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the inner product of embeddings with the plain characters', of unit length."""
    unit = F.normalize(reference)

    def score(images: Tensor) -> Tensor:
        return (model(images) * unit.repeat(len(images) // len(unit), 1)).sum(1)

    return score


def towards(reference: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the objective that goes along the difference of two embeddings, from the image's own to the reference."""
    unit = F.normalize(reference)

    def objective(output: Tensor, original: Tensor) -> Tensor:
        return (output * (F.normalize(original) - unit.to(original))).sum(1)

    return objective


def maps(model: nn.Module, images: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Return signed maps (n, h, w) by method; what speaks against the likeness is least."""
    explain, score = L2CAF(model, model.layer4), likeness(model, reference)
    window = (1, STRIDE, STRIDE)
    occluded = Occlusion(score).attribute(images, window, window, baselines=-1)
    found = {
        PAIR: explain.attribute(images, reference=reference, signed=True),
        DIFFERENCE: explain.attribute(images, objective=towards(reference), signed=True),
        ALONE: explain.attribute(images, signed=True),
        GRAD_CAM: LayerGradCam(score, model.layer4).attribute(images),
        OCCLUSION: F.avg_pool2d(occluded, STRIDE),
        RANDOM: torch.rand(len(images), 1, SIZE // STRIDE, SIZE // STRIDE),
    }
    return {name: heat[:, 0].detach() for name, heat in found.items()}


def pointed(heat: Tensor, mark: Tensor) -> float:
    """Return how often, in percent, the map is least in a cell of the mark."""
    return 100 * mark.flatten(1).gather(1, heat.flatten(1).argmin(1, keepdim=True)).float().mean().item()


def separation(heat: Tensor, mark: Tensor, rest: Tensor) -> float:
    """Return the chance, in percent, that a cell of the mark is below another one with ink, averaged over pairs."""
    shares = []
    for values, own, other in zip(heat, mark, rest, strict=True):
        if other.any():
            below = values[own][:, None] - values[other]
            shares.append(((below < 0).float() + (below == 0).float() / 2).mean())
    return 100 * torch.stack(shares).mean().item()


def run(setting: dict[str, str], seed: int, quick: bool) -> Measures:  # noqa: ARG001 (one setting)
    """Return the measures of one training."""
    seen, unseen = Glyphs.load(SIZE).distinct().halves(seed)
    model = network()
    training = batches(Images(seen.images, seen.labels), per_class=4, size=BATCH, steps=2 if quick else STEPS)
    train(model, {"learning rate": RATE}, training, ContrastiveLoss(), None)
    known = pairs(unseen)
    few = torch.randperm(len(known.mark))[: 50 if quick else 400]
    known = Pairs(known.marked[few], known.plain[few], known.mark[few])
    some = unseen[unseen.labels % (40 if quick else 4) == 0]
    found = retrieval(embed(model, some.images), some.labels)
    with torch.no_grad():
        reference = torch.cat([model(part) for part in known.plain.split(100)])
        own = torch.cat([model(part) for part in known.marked.split(100)])
    found = {"R@1": found["R@1"], "pairs": len(few), "likeness": F.cosine_similarity(own, reference).mean().item()}
    mark, rest = known.cells()
    parts = [maps(model, *both) for both in zip(known.marked.split(100), reference.split(100), strict=True)]
    for name in parts[0]:
        heat = torch.cat([part[name] for part in parts])
        found |= {f"pointed, {name}": pointed(heat, mark), f"separation, {name}": separation(heat, mark, rest)}
    return found


PAIR, ALONE, DIFFERENCE = "L2-CAF of the pair", "L2-CAF of the image alone", "L2-CAF of the difference"
GRAD_CAM, OCCLUSION, RANDOM = "Grad-CAM of the inner product", "occlusion", "random"
METHODS = (PAIR, DIFFERENCE, GRAD_CAM, OCCLUSION, ALONE, RANDOM)
MEASURES = ("R@1", "pairs", "likeness", *(f"{what}, {name}" for what in ("pointed", "separation") for name in METHODS))
STUDIES = (Study("marks", [{"loss": "contrastive"}], MEASURES, run),)

if __name__ == "__main__":
    main(*STUDIES)
