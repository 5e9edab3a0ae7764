"""Two heads: cross-entropy alone and beside a ranking loss, on the same batches, with balanced and long-tailed classes.

    python examples/studies/two_head.py            # go on with the study: rows/two_head.csv, two_head_why.csv
    python examples/studies/two_head.py --quick    # under a minute

Fashion-MNIST, few training images a class. The missing control of the paper is here: cross-entropy on the ranking
loss's batches of P classes x K images. A classifier alone retrieves by the pooled features that it reads.
"""

import statistics
import time

import timm
import torch
import torch.nn.functional as F
from data import Images, fashion_mnist
from measures import accuracy, batches, embed, retrieval
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from runner import Measures, Setting, Study, main
from torch import Tensor, nn

from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead

BALANCED, LONG_TAILED = "balanced", "long-tailed"
SHUFFLED, P_X_K = "cross-entropy, shuffled", "cross-entropy, P x K"
SEMI_HARD, HARD = "two heads, semi-hard", "two heads, hard"
BATCH, PER_CLASS = 32, 4
RARE = "accuracy, rare half"
MEASURES = ("accuracy", RARE, "R@1", "MAP@R", "R@1, pooled", "MAP@R, pooled", "CPU ms a step")


def images(classes: str, seed: int) -> tuple[Images, Images]:
    """Return training images, 30 of each class or from 100 down to 5, and 200 test images of each.

    The seed draws the images and the order of the classes, from the most frequent to the rarest.
    """
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    counts = {c: 30 if classes == BALANCED else round(100 * 0.72**place) for place, c in enumerate(order)}
    train, test = fashion_mnist()
    return train.few(counts, seed).classes(order), test.few(200, seed).classes(order)


def shuffled(data: Images, steps: int, size: int = BATCH) -> list[Images]:
    """Return batches of images drawn without regard to their classes."""
    epochs = -(-steps * size // len(data.labels))
    order = torch.cat([torch.randperm(len(data.labels)) for _ in range(epochs)])
    return [data[chosen] for chosen in order[: steps * size].split(size)]


def train(model: TwoHead, training: list[Images], setting: Setting) -> float:
    """Train with AdamW and one cycle of the learning rate; return the processor's milliseconds of a median step."""
    hard = setting["method"] == HARD
    loss = TwoHeadLoss(TripletMarginLoss(margin=0.2) if hard else SemiHardTripletLoss(), None, setting["weight"])
    miner = BatchHardMiner() if hard else None
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=len(training))
    times = []
    for x, labels in training:
        start = time.process_time()
        if setting["weight"]:
            outputs = model(x)
            value = loss(outputs, labels, miner(outputs.embeddings, labels) if miner else None)
        else:
            value = F.cross_entropy(model.model(x), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        times.append(time.process_time() - start)
        schedule.step()
    return 1000 * statistics.median(times)


class Pooled(nn.Module):
    """The features that a timm classifier reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled features of images."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


@torch.no_grad()
def evaluate(model: TwoHead, test: Images, weight: float) -> Measures:
    """Return accuracies, and retrieval by the embedding, if it was trained, and by the pooled features."""
    pooled = retrieval(embed(Pooled(model.model), test.images), test.labels)
    outputs = [model.eval()(part) for part in test.images.split(250)]
    logits, embeddings = (torch.cat(part) for part in zip(*outputs, strict=True))
    own = retrieval(embeddings, test.labels) if weight else pooled
    rare = test.labels >= 5
    found = {
        "accuracy": accuracy(logits, test.labels),
        RARE: accuracy(logits[rare], test.labels[rare]),
    }
    return {**found, **own, **{f"{name}, pooled": value for name, value in pooled.items()}}


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the measures of one training."""
    data, test = images(setting["classes"], seed)
    model = TwoHead(timm.create_model("test_resnet", in_chans=1, num_classes=10), 64)
    steps = 4 if quick else setting["steps"]
    training = shuffled(data, steps) if setting["method"] == SHUFFLED else batches(data, PER_CLASS, BATCH, steps)
    milliseconds = train(model, training, setting)
    return {**evaluate(model, test, setting["weight"]), "CPU ms a step": milliseconds}


def setting(classes: str, method: str, steps: int = 150, weight: float = 1.0) -> Setting:
    """Return a point of the grid; cross-entropy alone is the weight zero."""
    weight = weight if method in {SEMI_HARD, HARD} else 0.0
    return {"classes": classes, "method": method, "steps": steps, "weight": weight}


MAIN = Study(
    "two_head",
    [setting(classes, method) for classes in (BALANCED, LONG_TAILED) for method in (SHUFFLED, P_X_K, SEMI_HARD, HARD)],
    MEASURES,
    run,
)
WHY = Study(  # if the ranking loss does not pay: is the training too short, or its weight too large?
    "two_head_why",
    [setting(BALANCED, method, steps=600) for method in (P_X_K, HARD)]
    + [setting(BALANCED, method, weight=0.1) for method in (SEMI_HARD, HARD)],
    MEASURES,
    run,
)
STUDIES = (MAIN, WHY)

if __name__ == "__main__":
    main(*STUDIES)
