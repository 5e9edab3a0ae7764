"""Two heads among many characters: recognition in typefaces never seen, and retrieval of characters never seen.

    python examples/studies/two_head_glyphs.py            # go on with the study: rows/two_head_glyphs.csv
    python examples/studies/two_head_glyphs.py --quick    # under a minute

Characters with more than ten drawings; the seed draws those to learn, as many others to retrieve, and five typefaces
to recognise in. Four training images a class, or from ten down to one, as many in all. A run takes about 6 s of one
core.
"""

import timm
import torch
from data import Images, common_glyphs
from measures import accuracy, batches, embed, retrieval
from runner import Measures, Setting, Study, main
from torch import Tensor, nn
from two_head import BALANCED, LONG_TAILED, P_X_K, RARE, SEMI_HARD, SHUFFLED, Pooled, shuffled, train

from pml_extensions.models import TwoHead

CLASSES = 150
STEPS, BATCH, PER_CLASS = 200, 64, 4
METHODS = (P_X_K, SEMI_HARD, SHUFFLED)
READINGS = ("embedding", "pooled", "logits")
MEASURES = ("accuracy", RARE, *(f"{m}, {reading}" for m in ("R@1", "MAP@R") for reading in READINGS), "CPU ms a step")


def images(setting: Setting, seed: int) -> tuple[Images, Images, Images]:
    """Return training images, images of the same characters in other typefaces, and images of other characters.

    The classes are ordered from the most frequent to the rarest.
    """
    train, test = (Images(part.images, part.labels) for part in common_glyphs(seed, 0, CLASSES).by_face(seed))
    new = common_glyphs(seed, CLASSES, CLASSES)
    wanted = {label: images_of(label / CLASSES, setting["classes"]) for label in range(CLASSES)}
    return train.few(wanted, seed), test, Images(new.images, new.labels)


def images_of(place: float, classes: str) -> int:
    """Return how many training images a class has, four or from ten down to one, by its place between 0 and 1."""
    return 4 if classes == BALANCED else round(10 * 0.1**place)


class Reading(nn.Module):
    """What one retrieves by: the second head's embedding, or the first head's logits."""

    def __init__(self, model: TwoHead, which: str) -> None:
        super().__init__()
        self.model = model
        self.which = {"embedding": "embeddings", "logits": "logits"}[which]

    def forward(self, x: Tensor) -> Tensor:
        """Return one of the two outputs."""
        return getattr(self.model(x), self.which)


@torch.no_grad()
def evaluate(model: TwoHead, test: Images, new: Images, weight: float) -> Measures:
    """Return accuracies in new typefaces, and retrieval of new characters by all that a user could read."""
    model.eval()
    logits = torch.cat([model.model(part) for part in test.images.split(250)])
    rare = test.labels >= logits.shape[1] // 2
    found = {"accuracy": accuracy(logits, test.labels), RARE: accuracy(logits[rare], test.labels[rare])}
    readings = {"pooled": Pooled(model.model), "logits": Reading(model, "logits")}
    if weight:
        readings["embedding"] = Reading(model, "embedding")
    for name, reading in readings.items():
        found |= {f"{m}, {name}": value for m, value in retrieval(embed(reading, new.images), new.labels).items()}
    return found


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the measures of one training."""
    data, test, new = images(setting, seed)
    if quick:
        new = new[torch.arange(1000)]
    classifier = timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES)
    model = TwoHead(classifier.to(memory_format=torch.channels_last), 64)
    steps = 2 if quick else STEPS
    training = shuffled(data, steps, BATCH) if setting["method"] == SHUFFLED else batches(data, PER_CLASS, BATCH, steps)
    spent = train(model, training, {**setting, "weight": float(setting["method"] == SEMI_HARD)})
    return {**evaluate(model, test, new, setting["method"] == SEMI_HARD), "CPU ms a step": spent}


STUDIES = (
    Study(
        "two_head_glyphs",
        [{"classes": kind, "method": method} for kind in (BALANCED, LONG_TAILED) for method in METHODS],
        MEASURES,
        run,
    ),
)

if __name__ == "__main__":
    main(*STUDIES)
