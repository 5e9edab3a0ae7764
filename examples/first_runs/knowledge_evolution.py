"""Knowledge Evolution: one training in generations gives a network and, within it, one of a quarter of its size."""

import copy
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from first_runs.runs import Run
from first_runs.seeding import set_seed
from studies.glyphs import Glyphs, permutation
from torch import Tensor, nn

from pml_extensions.evolution import KELS, KnowledgeEvolution

SIZE, CLASSES, FACES, BATCH_SIZE = 20, 40, 3, 40
GENERATIONS = (45, 45, 45, 45, 180)  # steps: what follows the last reset needs time to anneal
STEPS, LEARNING_RATE = sum(GENERATIONS), 0.1
TITLE = f"Knowledge Evolution: {CLASSES} characters, {FACES} drawings of each to train on, as many steps"

Images = tuple[Tensor, Tensor]


def images(seed: int) -> tuple[Images, Images]:
    """Return some characters in few typefaces to train on, drawn by the seed, and in the others to test with."""
    data = Glyphs.load().distinct()
    many = (data.labels.bincount() > 10).nonzero()[:, 0]
    drawn = data.classes(many[permutation(len(many), seed)[:CLASSES]])
    order = permutation(len(drawn.labels), seed)
    few = torch.cat([order[drawn.labels[order] == label][:FACES] for label in range(CLASSES)])
    rest = order[torch.isin(order, few, invert=True)]
    small = F.interpolate(drawn.images, SIZE, mode="area")
    return (small[few], drawn.labels[few]), (small[rest], drawn.labels[rest])


def batches(data: Images, steps: int) -> Iterator[Images]:
    """Draw batches, epoch by epoch."""
    images, labels = data
    epochs = -(-steps * BATCH_SIZE // len(labels))
    order = torch.cat([torch.randperm(len(labels)) for _ in range(epochs)])
    for batch in order[: steps * BATCH_SIZE].split(BATCH_SIZE):
        yield images[batch], labels[batch]


def train(model: nn.Module, data: Images, steps: int) -> None:
    """Train a classifier with a fresh optimiser and schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for x, labels in batches(data, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels, label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measured(model: nn.Module, test: Images) -> dict[str, float]:
    """Return the accuracy and the size of a classifier."""
    accuracy = (model.eval()(test[0]).argmax(1) == test[1]).float().mean().item()
    return {"accuracy, %": 100 * accuracy, "1000 parameters": sum(p.numel() for p in model.parameters()) / 1e3}


def run(seed: int, folder: Path) -> list[Run]:  # noqa: ARG001 (it draws nothing)
    """Train in generations, and as many steps in one go: a network of the full size, and one of the slim size."""
    training, test = images(seed)
    set_seed(seed)
    long = timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES).to(memory_format=torch.channels_last)
    evolving = copy.deepcopy(long)
    evolution = KnowledgeEvolution(evolving, KELS(0.5, example_input=training[0][:2]), seed=seed)
    alone = evolution.slim()
    alone.init_weights()
    train(long, training, STEPS)
    train(alone, training, STEPS)
    for generation in evolution.generations(len(GENERATIONS)):
        train(evolving, training, GENERATIONS[generation.index])
    slim = evolution.slim(batches(training, steps=20))
    found = {"one training": long, "in generations": evolving, "its slim network": slim, "slim size alone": alone}
    return [Run(method, seed, measured(model, test)) for method, model in found.items()]
