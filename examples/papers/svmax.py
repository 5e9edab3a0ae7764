"""SVMax on retrieval: vanilla, spread-out and SVMax by loss and learning rate (arXiv:2103.02770).

    python examples/papers/svmax.py --data cub --root DIR --dry-run
    python examples/papers/svmax.py --data cub --root DIR --seed 0 --only 0.01
    torchrun --nproc-per-node=4 examples/papers/svmax.py --data sop --root DIR

GoogLeNet with a 128-d embedding, batches of 144, SGD with momentum 0.9, a learning rate that is constant for half of
the steps and then falls linearly to 1e-7; 5,000 steps, on Stanford Online Products 20,000. R@1 and NMI of classes that
were not trained.
"""

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from measures import outputs_of, retrieval
from networks import pretrained, to_input
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import (
    AngularLoss,
    BaseMetricLossFunction,
    ContrastiveLoss,
    NPairsLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from readers import RETRIEVAL, Images
from rows import Measures
from session import Session, add_training_options, chosen, command_line, session
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchvision import transforms
from training import Checkpoint, Training, dry_run, p_by_k, seed_everything, shared_loss, shared_miner, train

from pml_extensions.regularizers import SVMaxRegularizer

DIMENSIONS = 128
SQUARED = LpDistance(power=2)
LOSSES: dict[
    str, tuple[Callable[..., BaseMetricLossFunction], int, float]
] = {  # loss, images a class, weight of a term
    "contrastive": (lambda **term: ContrastiveLoss(neg_margin=1, **term), 4, 1.0),
    "N-pairs": (NPairsLoss, 2, 1.0),
    "hard triplets": (lambda **term: TripletMarginLoss(0.2, distance=SQUARED, reducer=MeanReducer(), **term), 6, 0.1),
    "angular": (lambda **term: AngularLoss(alpha=45, **term), 2, 2.0),
}
RUNS = list(product(LOSSES, ("vanilla", "spread-out", "SVMax"), ("0.01", "0.001", "0.0001")))


def as_published(options: argparse.Namespace) -> dict[str, Any]:
    """Return the published settings."""
    return {"model": "googlenet", "batch_size": 144, "steps": 20000 if options.data == "sop" else 5000}


class SpreadOut(BaseMetricLossFunction):
    """m1^2 + max(0, m2 - 1/d), moments of inner products between unit vectors of two classes (arXiv:1708.06320)."""

    def compute_loss(self, embeddings: Tensor, labels: Tensor, *_: object) -> dict[str, dict[str, object]]:
        """Return the term in the form that the host's reducers take."""
        unit = F.normalize(embeddings)
        inner = (unit @ unit.T)[labels[:, None] != labels]
        term = inner.mean().square() + F.relu(inner.square().mean() - 1 / unit.shape[1])
        return {"loss": {"losses": term, "indices": None, "reduction_type": "already_reduced"}}


def criterion(name: str, method: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of this process's embeddings and labels, in the batch of all processes."""
    make, _, weight = LOSSES[name]
    term = {"embedding_regularizer": SVMaxRegularizer(), "embedding_reg_weight": weight} if method == "SVMax" else {}
    loss = shared_loss(make(**term))
    miner = shared_miner(BatchHardMiner(distance=SQUARED)) if name == "hard triplets" else None
    spread = shared_loss(SpreadOut()) if method == "spread-out" else None

    def total(embeddings: Tensor, labels: Tensor) -> Tensor:
        embeddings = embeddings.float()
        value = loss(embeddings, labels, miner(embeddings, labels) if miner else None)
        return value + weight * spread(embeddings, labels) if spread else value

    return total


def network(now: Session) -> nn.Module:
    """Return the network with a new last layer, the embedding."""
    seed_everything(now.options.seed, "network")
    model = pretrained(now.options.model, now.options.weights, DIMENSIONS)
    if isinstance(getattr(model, "dropout", None), nn.Dropout):
        model.dropout = nn.Identity()  # the embedding reads the pooled features as they are
    return model.to(now.machine.device)


def schedule(steps: int, rate: float) -> Callable[[int], float]:
    """Return the learning rate's factor by step: 1 for half of the steps, then falling to a rate of 1e-7."""
    half = steps / 2
    return lambda step: 1 - max(0.0, step - half) / half * (1 - 1e-7 / rate)


def training(now: Session, loss: str, method: str, rate: str) -> Training:
    """Return the training of a run."""
    options, model = now.options, network(now)
    optimizer = torch.optim.SGD(model.parameters(), float(rate), momentum=0.9)
    resize, augment = transforms.Resize((256, 256)), [transforms.RandomCrop(224), transforms.RandomHorizontalFlip()]
    return Training(
        model=model,
        loss=criterion(loss, method),
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, schedule(options.steps, float(rate))),
        images=now.data.train,
        transform=transforms.Compose([resize, *augment, to_input(model)]),
        test_transform=transforms.Compose([resize, transforms.CenterCrop(224), to_input(model)]),
        batches=p_by_k(now.data.train.labels, options.batch_size, LOSSES[loss][1], options.seed),
        steps=options.steps,
        seed=options.seed,
    )


def test(now: Session, this: Training, images: Images) -> Callable[[], Measures]:
    """Embed the images, in all processes, and return what measures them, in one."""
    embeddings = outputs_of(now, this.model, images, this.test_transform)
    return lambda: retrieval(embeddings, images, now.options.seed)


def main() -> None:
    """Train what is missing of the table, and print it."""
    parser = command_line(__doc__, RETRIEVAL)
    add_training_options(parser)
    parser.add_argument("--steps", type=int, help="another number than the published one")
    with session(parser, RETRIEVAL, as_published) as now:
        runs = {", ".join(run): run for run in chosen(RUNS, now.options.only)}
        missing = {name: run for name, run in runs.items() if name not in now.rows}
        for _, per_class, _ in (LOSSES[loss] for loss, *_ in runs.values()):  # all of them, before hours of the first
            p_by_k(now.data.train.labels, now.options.batch_size, per_class, now.options.seed)
        if now.options.dry_run:
            this = training(now, *next(iter(runs.values())))
            dry_run(now, this, len(missing) * this.steps, lambda some: test(now, this, some), len(missing))
            return
        for name, run in missing.items():
            this, checkpoint = training(now, *run), Checkpoint(now, name)
            checkpoint.restore(model=this.model)
            checkpoint.resume(this)
            train(now, this, checkpoint, name)
            now.record(name, test(now, this, now.data.test))
        now.show({name: now.rows[name] for name in runs if now.is_first})


if __name__ == "__main__":
    main()
