"""Knowledge Evolution on few images: generations with partial resets against one long training of as many epochs.

    python examples/knowledge_evolution.py                    # classify digits from 10 training images a class
    python examples/knowledge_evolution.py --task retrieval   # embed digits with a loss of pytorch-metric-learning
    python examples/knowledge_evolution.py --quick            # under a minute, too short to show anything

Controls train exactly as many epochs: one long training; generations whose weights are never reset (a fresh optimiser
and schedule each, no more); and, beside the slim network that KELS holds, a network of the slim size trained alone.
What a reset is worth is its distance from them. The slim network is measured as published (with the statistics that its
batch norms had in the dense one), with these estimated anew on the training images, and then fine-tuned for one
generation's epochs.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import TripletMarginLoss
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, LaterLayers

GENERATIONS, BATCH = 5, 50
AS_PUBLISHED, ANEW, TUNED = ", slim, as published", ", slim, statistics anew", ", slim, then fine-tuned"
METHODS: dict[str, Callable[[int], object] | None] = {  # how the weights are split; None trains on without a reset
    "restarts, no reset": None,
    "WELS 0.5": lambda seed: WELS(0.5, seed=seed),
    "later layers": lambda _: LaterLayers("layer4"),
    "KELS 0.5": lambda _: KELS(0.5, example_input=torch.zeros(2, 1, 16, 16)),
}


@dataclass(frozen=True)
class Task:
    """What is learnt from which images, and how it is measured."""

    outputs: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    measure: str


def digits(classes: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Return the digits of some classes at 16 x 16 pixels (n, 1, 16, 16), and their labels (n,)."""
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, size=16, mode="bilinear")
    labels = torch.tensor(data.target)
    chosen = torch.isin(labels, torch.tensor(list(classes)))
    return images[chosen], labels[chosen]


def few_per_class(labels: Tensor, seed: int, count: int = 10) -> Tensor:
    """Return a mask that chooses ``count`` samples of every class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[order[labels[order] == label][:count]] = True
    return chosen


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers, in percent."""
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """Return the share of embeddings, in percent, whose nearest other embedding has the same label."""
    similarity = CosineSimilarity()(embeddings).fill_diagonal_(-2)
    return 100 * (labels[similarity.argmax(1)] == labels).float().mean().item()


def classification(seed: int) -> Task:
    """Tell the ten digits apart; the seed chooses the training images."""
    images, labels = digits(range(10))
    train = few_per_class(labels, seed)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Task(10, images[train], labels[train], images[~train], labels[~train], loss, accuracy, "test accuracy, %")


def retrieval(seed: int) -> Task:
    """Embed digits so that the nearest is of the same class: train on 0 to 4, test on 5 to 9."""
    images, labels = digits(range(5))
    train = few_per_class(labels, seed)
    loss = TripletMarginLoss(margin=0.2)
    return Task(64, images[train], labels[train], *digits(range(5, 10)), loss, recall_at_1, "R@1 on new classes, %")


def batches(task: Task, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch of training images and labels."""
    for chosen in torch.randperm(len(task.train_labels), generator=generator).split(BATCH):
        yield task.train_images[chosen], task.train_labels[chosen]


def train(model: nn.Module, task: Task, epochs: int, generator: torch.Generator) -> None:
    """Train with a fresh optimiser and a fresh schedule: any training loop would do."""
    steps = epochs * (len(task.train_labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for images, labels in batches(task, generator):
            optimizer.zero_grad()
            task.loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task) -> float:
    """Return the score on the test images."""
    model.eval()
    return task.score(torch.cat([model(images) for images in task.test_images.split(256)]), task.test_labels)


def fresh(task: Task, seed: int) -> nn.Module:
    """Return an untrained network."""
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", in_chans=1, num_classes=task.outputs)


def evolve(task: Task, split: object | None, generations: int, epochs: int, seed: int) -> dict[str, list[float]]:
    """Return the score after each generation: of the network and, where the split has one, of its slim network."""
    model, generator = fresh(task, seed), torch.Generator().manual_seed(seed)
    evolution = KnowledgeEvolution(model, split, seed=seed) if split else None
    scores: dict[str, list[float]] = {}
    for _ in evolution.generations(generations) if evolution else range(generations):
        train(model, task, epochs, generator)
        scores.setdefault("", []).append(evaluate(model, task))
        if isinstance(split, KELS):
            for name, data in ((AS_PUBLISHED, None), (ANEW, batches(task, torch.Generator().manual_seed(seed)))):
                slim = evolution.slim(data)
                scores.setdefault(name, []).append(evaluate(slim, task))
    if isinstance(split, KELS):
        train(slim, task, epochs, generator)
        scores[TUNED] = [evaluate(slim, task)]
    return scores


def train_slim_alone(task: Task, split: KELS, epochs: int, seed: int) -> list[float]:
    """Return the score of a network of the slim size, initialised as such and trained alone."""
    model = split.slim(fresh(task, seed))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    train(model, task, epochs, torch.Generator().manual_seed(seed))
    return [evaluate(model, task)]


def mean_and_spread(values: tuple[float, ...]) -> str:
    """Return the mean and, of several values, their standard deviation."""
    spread = f" ± {statistics.stdev(values):3.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):5.1f}{spread}"


def main() -> None:
    """Run all methods on some seeds, print the table and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["classification", "retrieval"], default="classification")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs a generation")
    parser.add_argument("--figure", type=Path, help="where to save the figure")
    arguments = parser.parse_args()
    make_task = {"classification": classification, "retrieval": retrieval}[arguments.task]
    seeds, epochs = (range(1), 2) if arguments.quick else (range(3), 30)

    scores: dict[str, list[list[float]]] = {}
    for seed in seeds:
        task = make_task(seed)
        one = evolve(task, None, 1, GENERATIONS * epochs, seed)[""]
        scores.setdefault("one long training", []).append(one)
        for name, split in METHODS.items():
            for suffix, run in evolve(task, split and split(seed), GENERATIONS, epochs, seed).items():
                scores.setdefault(name + suffix, []).append(run)
        alone = train_slim_alone(task, METHODS["KELS 0.5"](seed), GENERATIONS * epochs, seed)
        scores.setdefault("slim size, alone", []).append(alone)

    print(f"{task.measure}: mean ± standard deviation over {len(seeds)} seeds, {epochs} epochs a generation")
    for name, runs in scores.items():
        print(f"{name:>30}  " + "  ".join(map(mean_and_spread, zip(*runs, strict=True))))
    if arguments.figure:
        draw(scores, task.measure, epochs).savefig(arguments.figure, dpi=120)


def draw(scores: dict[str, list[list[float]]], measure: str, epochs: int) -> plt.Figure:
    """Draw the mean score by generation with its range over the seeds, full size and slim; one training is a line."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    for colour, (name, runs) in enumerate(scores.items()):
        axes = panels[int("slim" in name)]
        by_generation = torch.tensor(runs).expand(-1, GENERATIONS)
        x = range(1, GENERATIONS + 1)
        style = "--" if len(runs[0]) == 1 else "o-"
        axes.plot(x, by_generation.mean(0), style, color=f"C{colour}", label=name)
        low, high = by_generation.aminmax(dim=0)
        axes.fill_between(x, low, high, color=f"C{colour}", alpha=0.12, linewidth=0)
    for axes, title, columns in zip(panels, ("the network", "a network of the slim size"), (2, 1), strict=True):
        axes.set(title=title, xlabel=f"generation ({epochs} epochs each)", ylabel=measure, xticks=list(x))
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}  # not over the data
        axes.legend(frameon=False, fontsize="small", ncols=columns, **below)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
