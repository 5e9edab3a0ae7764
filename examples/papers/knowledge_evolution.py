"""Knowledge Evolution on classification from scratch: dense and slim by generation, and controls (arXiv:2103.05152).

    python examples/papers/knowledge_evolution.py --data aircraft --root DIR --dry-run
    python examples/papers/knowledge_evolution.py --data flowers --root DIR --seed 0 --only "KELS 0.5"
    torchrun --nproc-per-node=2 examples/papers/knowledge_evolution.py --data aircraft --root DIR

ResNet-18, KELS at 0.5, five generations of 200 epochs each, batches of 32, SGD with momentum 0.9 and weight decay 1e-4
on all parameters, learning rate 0.256 after five epochs of warm-up, then a cosine by epoch, label smoothing 0.1. The
slim network is tested as published, and with the statistics of its batch norms estimated anew on training images.

Controls that the published log lacks: one training of as many epochs, a network of the slim size trained alone for as
many, and generations that reset the later layers instead.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from measures import accuracy, outputs_of
from networks import to_input
from readers import CLASSIFICATION, Images
from session import Session, add_training_options, chosen, command_line, session
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchvision import transforms
from training import Checkpoint, Training, dry_run, load, seed_everything, seed_of, shuffled, steps_an_epoch, train

from pml_extensions.evolution import KELS, KnowledgeEvolution, LaterLayers

GENERATIONS, WARM_UP, RATE = 5, 5, 0.256
KELS_RUN, LONG, SLIM, LATER = "KELS 0.5", "one long training", "slim size, alone", "later layers"
RUNS = [(KELS_RUN,), (LONG,), (SLIM,), (LATER,)]
ARGUMENTS = {"resnet18": {"zero_init_last": False}}  # timm starts the last norm of each block at zero


def as_published(_: argparse.Namespace) -> dict[str, Any]:
    """Return the published settings."""
    return {"model": "resnet18", "batch_size": 32, "epochs": 200}


def start(now: Session, name: str) -> KnowledgeEvolution:
    """Return an evolution of a network, all of whose weights are drawn as published."""
    options = now.options
    seed_everything(options.seed, "network")
    arguments = {"num_classes": now.data.counts.train_classes, **ARGUMENTS.get(options.model, {})}
    model, kels = timm.create_model(options.model, **arguments), KELS(0.5)
    if name == SLIM:
        model = kels.slim(model)
    split = LaterLayers("layer4") if name == LATER else kels
    evolution = KnowledgeEvolution(model.to(now.machine.device), split, seed=options.seed)
    evolution.start()
    return evolution


def schedule(epochs: int, steps: int) -> Callable[[int], float]:
    """Return the learning rate's factor by step: a warm-up, then a cosine, both constant within an epoch."""

    def factor(step: int) -> float:
        epoch = step // steps
        if epoch < WARM_UP:
            return (epoch + 1) / WARM_UP
        return (1 + math.cos(math.pi * (epoch - WARM_UP) / max(1, epochs - WARM_UP))) / 2

    return factor


def training(now: Session, model: nn.Module, epochs: int, generation: int = 0) -> Training:
    """Return the training of a generation, with a fresh optimiser and schedule."""
    options, images = now.options, now.data.train
    steps = steps_an_epoch(len(images), options.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    augment = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    return Training(
        model=model,
        loss=lambda logits, labels: loss(logits.float(), labels),
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, schedule(epochs, steps)),
        images=images,
        transform=transforms.Compose([*augment, to_input(model)]),
        test_transform=transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), to_input(model)]),
        batches=shuffled(len(images), options.batch_size, seed_of(options.seed, "generation", generation)),
        steps=epochs * steps,
        seed=seed_of(options.seed, "generation", generation),
    )


def test(now: Session, this: Training, model: nn.Module, images: Images) -> float:
    """Return the accuracy on the images, of all processes."""
    return accuracy(outputs_of(now, model, images, this.test_transform), images.labels)


def evolve(now: Session, name: str) -> None:
    """Train the generations that are missing, and test each."""
    evolution, checkpoint = start(now, name), Checkpoint(now, name)
    checkpoint.restore(model=evolution.model, evolution=evolution)
    for generation in evolution.generations(GENERATIONS):
        this = training(now, evolution.model, now.options.epochs, generation.index)
        checkpoint.resume(this, generation.index)
        title = row(name, generation.index)
        train(now, this, checkpoint, title, stage=generation.index, evolution=evolution)
        networks = {"dense": evolution.model}
        if name == KELS_RUN:
            batches = load(now, this.images, this.transform, this.draws(now.machine, 0, 50))
            networks |= {"slim, as published": evolution.slim(), "slim, statistics anew": evolution.slim(batches)}
        found = {which: test(now, this, network, now.data.test) for which, network in networks.items()}
        now.record(title, lambda found=found: found)


def train_once(now: Session, name: str) -> None:
    """Train for the epochs of all generations, and test."""
    evolution, checkpoint = start(now, name), Checkpoint(now, name)
    this = training(now, evolution.model, GENERATIONS * now.options.epochs)
    checkpoint.restore(model=this.model)
    checkpoint.resume(this)
    train(now, this, checkpoint, name)
    found = test(now, this, this.model, now.data.test)
    now.record(name, lambda: {"slim, trained as such" if name == SLIM else "dense": found})


def row(name: str, generation: int) -> str:
    """Return the name of a generation's row."""
    return f"{name}, generation {generation + 1}"


def rows_of(name: str) -> list[str]:
    """Return the names of a run's rows."""
    return [row(name, index) for index in range(GENERATIONS)] if name in {KELS_RUN, LATER} else [name]


def main() -> None:
    """Train what is missing of the table, and print it."""
    parser = command_line(__doc__, CLASSIFICATION)
    add_training_options(parser)
    parser.add_argument("--epochs", type=int, help="another number than the published one, of a generation")
    with session(parser, CLASSIFICATION, as_published) as now:
        names = [name for (name,) in chosen(RUNS, now.options.only)]
        missing = [name for name in names if rows_of(name)[-1] not in now.rows]
        if now.options.dry_run:
            model = start(now, names[0]).model
            this = training(now, model, now.options.epochs)
            tests = sum(map(len, map(rows_of, missing)))
            dry_run(
                now, this, len(missing) * GENERATIONS * this.steps, lambda some: test(now, this, model, some), tests
            )
            return
        for name in missing:
            (evolve if name in {KELS_RUN, LATER} else train_once)(now, name)
        now.show({line: now.rows[line] for name in names for line in rows_of(name) if now.is_first})


if __name__ == "__main__":
    main()
