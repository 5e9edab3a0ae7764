"""Training before and after a migration from TripletMarginMiner("semihard"): MAP@R and the size of the gradient.

    OMP_NUM_THREADS=1 python tests/benchmarks/semi_hard_migration.py [--seeds 5] [--steps 200]

A small convolutional network on scikit-learn's digits, the first 1,000 to train on, the others to test; batches of 10
classes x 4 images, the same for all ways of training. The gradient is that of the embeddings, its mean length over the
training as a multiple of that before the migration.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from pml_extensions.losses import SemiHardTripletLoss

BATCH, TRAIN = 40, 1000
OPTIMIZERS = {"SGD": partial(SGD, momentum=0.9, lr=0.002), "Adam": partial(Adam, lr=0.0005)}


class Way(NamedTuple):
    """How to train: a loss of embeddings and labels, and what the learning rate is multiplied by."""

    loss: Callable[[Tensor, Tensor], Tensor]
    rate: float = 1.0


class Result(NamedTuple):
    """What a training came to."""

    map_at_r: float
    gradient: float


def mined(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the loss before the migration."""
    triplets = TripletMarginMiner(0.2, "semihard")(embeddings, labels)
    loss: Tensor = TripletMarginLoss(margin=0.2)(embeddings, labels, triplets)
    return loss


WAYS = {
    "before": Way(mined),
    "`distance=LpDistance(), reducer=AvgNonZeroReducer()`": Way(
        SemiHardTripletLoss(0.2, distance=LpDistance(), reducer=AvgNonZeroReducer())
    ),
    "the defaults": Way(SemiHardTripletLoss(0.2)),
    "the defaults, `reducer=AvgNonZeroReducer()`": Way(SemiHardTripletLoss(0.2, reducer=AvgNonZeroReducer())),
    "the defaults, twice the rate": Way(SemiHardTripletLoss(0.2), 2.0),
}


def digits() -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, 8, 8) and labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def network() -> nn.Sequential:
    """Return a network that embeds digits in 32 dimensions."""
    features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU())
    return nn.Sequential(features, nn.Flatten(), nn.Linear(288, 32))


def train(way: Way, make: Callable[..., Optimizer], seed: int, steps: int) -> Result:
    """Train and test once."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the sampler draws from it)
    images, labels = digits()
    model = network()
    optimizer = make(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= way.rate
    sampler = MPerClassSampler(labels[:TRAIN], m=4, batch_size=BATCH, length_before_new_iter=BATCH * steps)
    gradients = []
    for rows in torch.tensor(list(sampler)).split(BATCH):
        embeddings = model(images[rows])
        embeddings.retain_grad()
        optimizer.zero_grad()
        way.loss(embeddings, labels[rows]).backward()
        gradients.append(0.0 if embeddings.grad is None else embeddings.grad.norm().item())
        optimizer.step()
    knn = CustomKNN(CosineSimilarity())
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), knn_func=knn, k="max_bin_count")
    with torch.no_grad():
        accuracy = calculator.get_accuracy(model(images[TRAIN:]), labels[TRAIN:])
    return Result(accuracy["mean_average_precision_at_r"], statistics.mean(gradients))


def cell(results: list[Result], before: list[Result]) -> str:
    """Return MAP@R with its standard deviation, and the gradient as a multiple."""
    values = [one.map_at_r for one in results]
    ratio = statistics.mean(one.gradient for one in results) / statistics.mean(one.gradient for one in before)
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} | {ratio:.2f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| |" + "".join(f" {name}: MAP@R | gradient |" for name in OPTIMIZERS))
    print("|---|" + "---|---|" * len(OPTIMIZERS))
    before: dict[str, list[Result]] = {}
    for name, way in WAYS.items():
        cells = []
        for optimizer, make in OPTIMIZERS.items():
            results = [train(way, make, seed, arguments.steps) for seed in range(arguments.seeds)]
            cells.append(cell(results, before.setdefault(optimizer, results)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
