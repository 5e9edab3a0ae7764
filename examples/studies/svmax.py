"""SVMax: retrieval of classes never seen, over losses, learning rates and regularizers; and the weight's choice.

    python examples/studies/svmax.py            # go on with the study: rows/svmax*.csv
    python examples/studies/svmax.py --quick    # two minutes

Fashion-MNIST, five classes to train on and the other five to test with, drawn by the seed. The schedule is the paper's:
a constant learning rate for half of the steps, then falling to zero.
"""

import spread
import timm
import torch
from data import zero_shot, zero_shot_digits
from measures import batches, embed, retrieval
from pytorch_metric_learning.losses import ContrastiveLoss, NPairsLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from runner import Measures, Setting, Study, main
from torch import nn

from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.regularizers import effective_rank

RATES = (0.01, 0.1, 1.0)
PUBLISHED_WEIGHT = {"contrastive": 1.0, "N-pairs": 1.0, "triplet, semi-hard": 0.1, "triplet, hard": 0.1}
STEPS = 80
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0)
MEASURES = ("R@1", "MAP@R", "effective rank")
LOSSES = {
    "contrastive": ContrastiveLoss,
    "N-pairs": NPairsLoss,
    "triplet, semi-hard": SemiHardTripletLoss,
    "triplet, hard": lambda **kwargs: TripletMarginLoss(margin=0.2, **kwargs),
}


REGULARIZERS = {
    name: spread.REGULARIZERS[name] for name in ("none", "SVMax, exponential", "SVMax, linear", "VICReg's terms")
}


def train(model: nn.Module, setting: Setting, training: list, loss: nn.Module, miner: nn.Module | None) -> None:
    """Train on all batches with SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=setting["learning rate"], momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 2 - 2 * step / len(training)))
    for images, labels in training:
        embeddings = model(images)
        optimizer.zero_grad()
        loss(embeddings, labels, miner(embeddings, labels) if miner else None).backward()
        optimizer.step()
        schedule.step()


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the measures of one training, on new classes."""
    if setting.get("data") == "digits":
        data, _, unseen = zero_shot_digits(seed, train_per_class=100)
    else:
        data, _, unseen = zero_shot(seed, train_per_class=200, test_per_class=200)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=32)
    regularizer = REGULARIZERS[setting["regularizer"]]()
    loss = LOSSES[setting["loss"]](embedding_regularizer=regularizer, embedding_reg_weight=setting["weight"])
    miner = BatchHardMiner() if setting["loss"] == "triplet, hard" else None
    train(
        model,
        setting,
        batches(data, per_class=8, size=40, steps=4 if quick else setting.get("steps", STEPS)),
        loss,
        miner,
    )
    embeddings = embed(model, unseen.images)
    return {**retrieval(embeddings, unseen.labels), "effective rank": effective_rank(embeddings).item()}


def setting(loss: str, regularizer: str, rate: float, weight: float) -> Setting:
    """Return a point of the grid; without a regularizer its weight does not matter."""
    weight = 0.0 if regularizer == "none" else weight
    return {"loss": loss, "regularizer": regularizer, "learning rate": rate, "weight": weight}


GRID = Study(
    "svmax",
    [setting(loss, name, rate, PUBLISHED_WEIGHT[loss]) for rate in RATES for loss in LOSSES for name in REGULARIZERS],
    MEASURES,
    run,
)
WEIGHT = Study(
    "svmax_weight",
    [
        setting(loss, name, 0.1, weight)
        for loss in ("contrastive", "triplet, hard")
        for name in REGULARIZERS
        if name != "none"
        for weight in WEIGHTS
        if weight != PUBLISHED_WEIGHT[loss]  # those rows are in the first study
    ],
    MEASURES,
    run,
)
WHY = Study(  # why recall gains less than the paper's: the images, or too short a training?
    "svmax_why",
    [
        {"data": data, "steps": steps, **setting(loss, name, 1.0, PUBLISHED_WEIGHT[loss])}
        for data, steps in (("digits", STEPS), ("Fashion-MNIST", 4 * STEPS))
        for loss in ("contrastive", "N-pairs")
        for name in ("none", "SVMax, exponential")
    ],
    MEASURES,
    run,
)
STUDIES = (GRID, WEIGHT, WHY)

if __name__ == "__main__":
    main(*STUDIES)
