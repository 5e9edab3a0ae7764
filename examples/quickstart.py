"""Train small retrieval networks on real images, with and without the parts of pml_extensions.

The images are scikit-learn's handwritten digits. Run from the root: python examples/quickstart.py
Each part prints a table and writes a figure into DIR.
"""

import argparse
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl
import numpy as np
import timm
import torch
import torch.nn.functional as F
from attention_maps import figure, panels
from pytorch_metric_learning import losses, samplers, trainers
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from pml_extensions.evolution import KELS, KnowledgeEvolution
from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer, effective_rank, mean_singular_value

mpl.use("Agg")
from matplotlib import pyplot as plt

IMAGE_SIZE = 24
EMBEDDING_SIZE = 64
LEARNING_RATE = 0.1
ITERATIONS = 60
BATCH_SIZE = 80
PER_CLASS = 16
SEEDS = 3


@dataclass
class Digits:
    """Images and labels of ten classes."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> "Digits":
        """Return scikit-learn's digits as images of one channel between -1 and 1."""
        digits = load_digits()
        images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32).unsqueeze(1)
        images = F.interpolate(images, size=IMAGE_SIZE, mode="bilinear")
        return cls(images, torch.tensor(digits.target))

    def classes(self, first: int, last: int) -> TensorDataset:
        """Return the images of some classes."""
        chosen = (self.labels >= first) & (self.labels <= last)
        return TensorDataset(self.images[chosen], self.labels[chosen])

    def few(self, per_class: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
        """Return so many images of every class to train on, and the others to test with."""
        indices = train_test_split(
            torch.arange(len(self.labels)), train_size=10 * per_class, stratify=self.labels, random_state=seed
        )
        train, test = (TensorDataset(self.images[index], self.labels[index]) for index in indices)
        return train, test


def set_seed(seed: int) -> None:
    """Seed the generators that pytorch-metric-learning's sampler and the model's initialisation draw from."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Return the unit-length embeddings of images."""
    model.eval()
    return F.normalize(torch.cat([model(chunk) for chunk in images.split(256)]))


def retrieval(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Return recall at 1 and MAP@R, each image searched for among all the others."""
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), knn_func=CustomKNN(CosineSimilarity())
    )
    accuracy = calculator.get_accuracy(embeddings, labels)
    return {"R@1": accuracy["precision_at_1"], "MAP@R": accuracy["mean_average_precision_at_r"]}


@dataclass
class Run:
    """What one training gave: the measures on unseen classes, and the singular values of every batch's embeddings."""

    measures: dict[str, float]
    spectra: list[Tensor] = field(default_factory=list)


def train_retrieval(digits: Digits, loss: nn.Module, seed: int) -> Run:
    """Train a small network with a metric loss by pytorch-metric-learning's own trainer, and measure it."""
    set_seed(seed)
    model = timm.create_model("resnet10t", in_chans=1, num_classes=EMBEDDING_SIZE)
    seen, unseen = digits.classes(0, 4), digits.classes(5, 9)
    labels = seen.tensors[1]
    spectra: list[Tensor] = []
    batch: list[Tensor] = []
    model.register_forward_hook(lambda _module, _inputs, output: batch.append(F.normalize(output.detach())))
    trainers.MetricLossOnly(
        models={"trunk": model},
        optimizers={"trunk_optimizer": torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)},
        batch_size=BATCH_SIZE,
        loss_funcs={"metric_loss": loss},
        dataset=seen,
        sampler=samplers.MPerClassSampler(
            labels, m=PER_CLASS, batch_size=BATCH_SIZE, length_before_new_iter=len(labels)
        ),
        iterations_per_epoch=ITERATIONS,
        dataloader_num_workers=0,
        end_of_iteration_hook=lambda _trainer: spectra.append(torch.linalg.svdvals(batch.pop())),
    ).train()
    images, labels = unseen.tensors
    embeddings = embed(model, images)
    measures = retrieval(embeddings, labels)
    measures["mean singular value"] = mean_singular_value(embeddings).item()
    measures["effective rank"] = effective_rank(embeddings).item()
    return Run(measures, spectra)


def print_table(title: str, rows: dict[str, list[Run]]) -> None:
    """Print the mean and the standard deviation of every measure over the seeds."""
    print(f"\n{title}; mean ± standard deviation of {SEEDS} seeds")
    names = list(next(iter(rows.values()))[0].measures)
    print(f"{'':<24}" + "".join(f"{name:>22}" for name in names))
    for row, runs in rows.items():
        cells = ([run.measures[name] for run in runs] for name in names)
        print(f"{row:<24}" + "".join(f"{f'{mean(cell):.3f} ± {stdev(cell):.3f}':>22}" for cell in cells))


def svmax(digits: Digits, seeds: range, out: Path) -> None:
    """Contrastive training at a large learning rate, without and with the SVMax regularizer."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "contrastive": losses.ContrastiveLoss,
        "contrastive + SVMax": lambda: losses.ContrastiveLoss(
            embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=1.0
        ),
    }
    runs = {kind: [train_retrieval(digits, make(), seed) for seed in seeds] for kind, make in kinds.items()}
    print_table(f"SVMax: retrieval of unseen classes, learning rate {LEARNING_RATE}", runs)

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (kind, of_kind) in zip(axes, runs.items(), strict=True):
        spectra = torch.stack([torch.stack(run.spectra) for run in of_kind]).mean(0)
        for index in (0, 1, 2, 4, 8, 16, 32, EMBEDDING_SIZE - 1):
            axis.semilogy(spectra[:, index], color=plt.cm.viridis(index / EMBEDDING_SIZE), label=index + 1)
        axis.set(title=kind, xlabel="iteration", ylim=(1e-4, None))
    axes[0].set_ylabel("singular value of a batch")
    axes[1].legend(title="largest = 1", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(out / "svmax.png", dpi=120)
    print(f"figure: {out / 'svmax.png'}")


def train_classifier(digits: Digits, loss: TwoHeadLoss, seed: int) -> Run:
    """Train a classifier with a second head on few images in a plain loop, and measure both heads."""
    set_seed(seed)
    train, test = digits.few(per_class=20, seed=seed)
    model = TwoHead(timm.create_model("resnet10t", in_chans=1, num_classes=10), EMBEDDING_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = samplers.MPerClassSampler(train.tensors[1], m=4, batch_size=40, length_before_new_iter=40 * 50)
    for images, labels in tqdm(DataLoader(train, batch_size=40, sampler=sampler)):
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    images, labels = test.tensors
    with torch.no_grad():
        logits, embeddings = model.eval()(images)
        if not loss.metric_weight:  # the second head was not trained: retrieve by what the classifier reads
            embeddings = model.forward_head(model.forward_features(images), pre_logits=True)
    return Run({"accuracy": (logits.argmax(1) == labels).float().mean().item(), **retrieval(embeddings, labels)})


def two_head(digits: Digits, seeds: range, out: Path) -> None:  # noqa: ARG001
    """A classifier without and with the loss of a second head, on the same batches."""
    kinds = {"cross-entropy": 0.0, "two heads, semi-hard": 1.0}
    runs = {
        kind: [train_classifier(digits, TwoHeadLoss(metric_weight=weight), seed) for seed in seeds]
        for kind, weight in kinds.items()
    }
    print_table("Two heads: classification and retrieval of new images, 20 training images a class", runs)


def epochs(model: nn.Module, train: TensorDataset, count: int, seed: int) -> None:
    """Train a classifier with a fresh optimiser and schedule."""
    loader = DataLoader(train, batch_size=50, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    model.train()
    for _ in tqdm(range(count)):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def classified(model: nn.Module, test: TensorDataset) -> Run:
    """Return the accuracy and the size of a classifier."""
    images, labels = test.tensors
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
    return Run({"accuracy": accuracy, "M parameters": sum(p.numel() for p in model.parameters()) / 1e6})


def knowledge_evolution(digits: Digits, seeds: range, out: Path) -> None:  # noqa: ARG001
    """Generations with the kernel-level split against one training of as many epochs; the slim network within."""
    generations, per_generation = 5, 8
    split = KELS(0.5, example_input=torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE))
    runs: dict[str, list[Run]] = {"one long training": [], "KELS, dense": [], "KELS, slim": []}
    for seed in seeds:
        train, test = digits.few(per_class=20, seed=seed)
        set_seed(seed)
        model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
        evolving = copy.deepcopy(model)
        epochs(model, train, generations * per_generation, seed)
        runs["one long training"].append(classified(model, test))
        evolution = KnowledgeEvolution(evolving, split, seed=seed)
        for _ in evolution.generations(generations):
            epochs(evolving, train, per_generation, seed)
        runs["KELS, dense"].append(classified(evolving, test))
        runs["KELS, slim"].append(classified(evolution.slim(), test))
    print_table("Knowledge Evolution: digits, 20 training images a class, as many epochs for both", runs)


def attention(digits: Digits, seeds: range, out: Path) -> None:  # noqa: ARG001
    """Attention maps of a real ImageNet network, beside Grad-CAM."""
    figure(panels()).savefig(out / "attention_maps.png", dpi=90)
    print(f"\nL2-CAF figure: {out / 'attention_maps.png'}")


PARTS: tuple[Callable[[Digits, range, Path], None], ...] = (svmax, two_head, knowledge_evolution, attention)


def main() -> None:
    """Run every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figures (default: out)")
    parser.add_argument("--seed", type=int, default=0, help="first of the seeds (default: 0)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("PML").setLevel(logging.WARNING)
    digits = Digits.load()
    for part in PARTS:
        part(digits, range(arguments.seed, arguments.seed + SEEDS), arguments.out)


if __name__ == "__main__":
    main()
