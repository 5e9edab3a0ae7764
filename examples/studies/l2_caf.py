"""L2-CAF: do its maps find the object, and does the output follow the places that they name?

    python examples/studies/l2_caf.py            # go on with the studies: rows/l2_caf*.csv
    python examples/studies/l2_caf.py --quick    # under two minutes

(1) Objects with known boxes: a handwritten digit on clutter cut from others, a classifier and an embedder trained
here; the seed draws the network and the images. (2) Photographs that come with packages and a real ImageNet network;
a seed is a photograph. Every method explains the same images at the same layer. A random map is the floor.
"""

from functools import lru_cache

import timm
import torch
from data import digits
from map_measures import FAITHFULNESS, LOCALISATION, map_measures
from maps import CLASSIFIER, LOGIT, METHODS, Subject
from measures import accuracy
from pytorch_metric_learning.losses import SupConLoss
from runner import Measures, Setting, Study, main
from torch import Tensor, nn

CANVAS, DIGIT, SCRAP, SCRAPS = 96, 32, 12, 24


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (count, 1, 96, 96) of a digit on clutter, its class, and its box as a mask (count, 96, 96)."""
    data = digits(DIGIT)
    whole = (data.images + 1) / 2

    def draw(*size: int, below: int) -> list:
        return torch.randint(below, size, generator=generator).tolist()

    canvas, box = torch.zeros(count, 1, CANVAS, CANVAS), torch.zeros(count, CANVAS, CANVAS, dtype=torch.bool)
    chosen = draw(count, below=len(whole))
    for i, digit in enumerate(chosen):
        places, cuts = draw(SCRAPS, 2, below=CANVAS - SCRAP), draw(SCRAPS, 2, below=DIGIT - SCRAP)
        for scrap, (y, x), (row, column) in zip(draw(SCRAPS, below=len(whole)), places, cuts, strict=True):
            canvas[i, :, y : y + SCRAP, x : x + SCRAP] += whole[scrap, :, row : row + SCRAP, column : column + SCRAP]
        y, x = draw(2, below=CANVAS - DIGIT)
        canvas[i, :, y : y + DIGIT, x : x + DIGIT] = whole[digit]
        box[i, y : y + DIGIT, x : x + DIGIT] = True
    return canvas.clamp(0, 1) * 2 - 1, data.labels[chosen], box


@lru_cache(maxsize=1)
def trained(network: str, seed: int, steps: int) -> nn.Module:
    """Return a small network trained to name the digit, or to embed it near others of its class."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = timm.create_model(
        "resnet10t", in_chans=1, num_classes=10 if network == CLASSIFIER else 32, output_stride=16
    )
    loss = nn.CrossEntropyLoss() if network == CLASSIFIER else SupConLoss()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        images, labels, _ = scenes(40, generator)
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def run_digits(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return what one method's maps of digits on clutter are worth, and how good the network is."""
    model = trained(setting["network"], seed, 3 if quick else 300)
    images, labels, box = scenes(4 if quick else 64, torch.Generator().manual_seed(1000 + seed))
    torch.manual_seed(seed)
    classifies = setting["network"] == CLASSIFIER
    subject = Subject(model, images, labels if classifies else None)
    found = {"accuracy": accuracy(subject.output, labels)} if classifies else {}
    return found | map_measures(subject, setting["method"], box)


def run_photographs(setting: Setting, seed: int, quick: bool) -> Measures:  # noqa: ARG001  # quick already
    """Return what one method's map of a photograph is worth."""
    from photographs import subject  # with packages that nothing else here needs

    return map_measures(subject(setting["network"], seed), setting["method"], None)


SETTINGS = [{"network": network, "method": method} for network, methods in METHODS.items() for method in methods]
WHY = [{"network": CLASSIFIER, "method": LOGIT}]
STUDIES = (
    Study("l2_caf_photographs", SETTINGS, FAITHFULNESS, run_photographs, seeds=8),
    Study("l2_caf_why", WHY, FAITHFULNESS, run_photographs, seeds=8),
    Study("l2_caf", SETTINGS, ("accuracy", *LOCALISATION, *FAITHFULNESS), run_digits),
)

if __name__ == "__main__":
    main(*STUDIES)
