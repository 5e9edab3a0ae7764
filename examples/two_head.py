"""Train a classifier with a second, embedding head, beside its controls, on scikit-learn's handwritten digits.

    python examples/two_head.py [--seeds 3] [--steps 150] [--out out]

Four ways of training the same network for as many steps, on few images, balanced and imbalanced: cross-entropy on
shuffled batches; cross-entropy on batches of P classes x K images, the control that tells the batches' effect from
the loss's; and two heads on the same batches, with semi-hard and with hard triplets. Prints a table and draws the
test embeddings; for the classifiers alone the embedding is the pooled feature that they read.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead

CLASSES = 10
WAYS = ("cross-entropy, shuffled", "cross-entropy, P x K", "two heads, semi-hard", "two heads, hard")
METRICS = ("accuracy", "R@1", "NMI")


def digits(imbalanced: bool) -> tuple[TensorDataset, Tensor, Tensor]:
    """Return 30 training images a class, or from 60 down to 4, and the other images with their labels."""
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, size=32)
    labels = torch.tensor(data.target)
    kept = []
    for c in range(CLASSES):
        count = round(60 * 0.74**c) if imbalanced else 30
        kept.append((labels == c).nonzero().squeeze(1)[:count])
    train = torch.cat(kept)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[train] = False
    return TensorDataset(images[train], labels[train]), images[rest], labels[rest]


def train(way: str, data: TensorDataset, steps: int, seed: int) -> TwoHead:
    """Return the trained model."""
    np.random.seed(seed)  # noqa: NPY002 (pytorch-metric-learning's sampler draws from it)
    torch.manual_seed(seed)
    model = TwoHead(timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES), 64)
    labels = data.tensors[1]
    shuffled = RandomSampler(data, replacement=True, num_samples=32 * steps)
    balanced = MPerClassSampler(labels, 4, batch_size=32, length_before_new_iter=32 * steps)
    loader = DataLoader(data, 32, sampler=shuffled if "shuffled" in way else balanced)
    metric = TripletMarginLoss(margin=0.2) if "hard" in way.split() else None
    miner = BatchHardMiner() if metric else None
    loss = TwoHeadLoss(metric)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for images, target in loader:
        if "two heads" in way:
            outputs = model(images)
            value = loss(outputs, target, miner(outputs.embeddings, target) if miner else None)
        else:
            value = F.cross_entropy(model.model(images), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def evaluate(way: str, model: TwoHead, images: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """Return the test embeddings, and accuracy, R@1 and NMI."""
    logits, embeddings = model(images)
    if "two heads" not in way:
        embeddings = F.normalize(model.forward_head(model.forward_features(images), pre_logits=True), dim=1)
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)
    clusters = KMeans(CLASSES, n_init=3, random_state=0).fit_predict(embeddings.numpy())
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    recall = (labels[nearest] == labels).float().mean().item()
    return embeddings, [accuracy, recall, float(normalized_mutual_info_score(labels.numpy(), clusters))]


def draw(found: dict[str, Tensor], labels: Tensor, title: str, path: Path) -> None:
    """Draw the embeddings of each way of training in their first two principal axes."""
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.4), layout="constrained")
    for axis, (way, embeddings) in zip(axes, found.items(), strict=True):
        x, y = PCA(2).fit_transform(embeddings.numpy()).T
        axis.scatter(x, y, c=labels, cmap="tab10", s=4, linewidths=0)
        axis.set(title=way, xticks=[], yticks=[])
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run all seeds of all ways in both settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for setting in ("balanced", "imbalanced"):
        data, images, labels = digits(imbalanced=setting == "imbalanced")
        print(f"\n| {setting}, {arguments.seeds} seeds, mean ± standard deviation | {' | '.join(METRICS)} |")
        print("|---|" + "---|" * len(METRICS), flush=True)
        found = {}
        for way in WAYS:
            rows = []
            for seed in range(arguments.seeds):
                model = train(way, data, arguments.steps, seed)
                found[way], scores = evaluate(way, model, images, labels)
                rows.append(scores)
            cells = [
                f"{statistics.mean(column):.3f} ± {statistics.stdev(column):.3f}" for column in zip(*rows, strict=True)
            ]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
        draw(found, labels, f"Test embeddings, {setting} training classes", arguments.out / f"two_head_{setting}.png")


if __name__ == "__main__":
    main()
