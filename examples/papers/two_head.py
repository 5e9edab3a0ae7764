"""Two heads on classification: semi-hard and hard triplets beside cross-entropy, and a control (arXiv:1901.08616).

    python examples/papers/two_head.py --data cars --root DIR --dry-run
    python examples/papers/two_head.py --data cars --root DIR --seed 0
    torchrun --nproc-per-node=4 examples/papers/two_head.py --data nabirds --root DIR

A pretrained ResNet-50 and a 256-d embedding of its flattened last feature map; batches of 8 classes x 4 images, SGD
with momentum 0.9, a learning rate that falls linearly from 0.01 to 0 over 40,000 steps; the short side between 350 and
512 pixels, a crop of 224, a flip. The paper trains cross-entropy on shuffled batches; the same on the batches of the
triplets is the control for their effect.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measures import accuracy, outputs_of
from networks import pretrained, to_input
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from readers import CLASSIFICATION, Images, aircraft_trainval
from rows import Measures
from session import Session, add_training_options, chosen, command_line, session
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchvision import transforms
from torchvision.transforms.v2 import RandomShortestSize
from training import Checkpoint, Training, dry_run, p_by_k, seed_everything, shared_loss, shared_miner, shuffled, train

from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead, TwoHeadOutput

READERS = {**CLASSIFICATION, "aircraft": aircraft_trainval}
SHUFFLED, CONTROL = "cross-entropy, shuffled", "cross-entropy, P x K"
SEMI_HARD, HARD = "two heads, semi-hard", "two heads, hard"
RUNS = [(SHUFFLED,), (CONTROL,), (SEMI_HARD,), (HARD,)]
MARGIN, TEST_EVERY = 0.2, 1000
SQUARED = LpDistance(power=2)


def as_published(_: argparse.Namespace) -> dict[str, Any]:
    """Return the published settings."""
    return {"model": "resnet50.tv_in1k", "batch_size": 32, "steps": 40000}


def criterion(name: str) -> Callable[[Any, Tensor], Tensor]:
    """Return the loss of this process's outputs and labels, its triplets in the batch of all processes."""
    if name in {SHUFFLED, CONTROL}:
        return lambda logits, labels: F.cross_entropy(logits.float(), labels)
    hard = TripletMarginLoss(MARGIN, distance=SQUARED, reducer=MeanReducer())
    loss = TwoHeadLoss(shared_loss(SemiHardTripletLoss(MARGIN) if name == SEMI_HARD else hard))
    miner = shared_miner(BatchHardMiner(distance=SQUARED)) if name == HARD else None

    def total(outputs: TwoHeadOutput, labels: Tensor) -> Tensor:
        triplets = miner(outputs.embeddings, labels) if miner else None
        return loss(TwoHeadOutput(outputs.logits.float(), outputs.embeddings), labels, triplets)

    return total


def training(now: Session, name: str) -> Training:
    """Return the training of a run."""
    options, labels = now.options, now.data.train.labels
    seed_everything(options.seed, "network")
    classifier = pretrained(options.model, options.weights, now.data.counts.train_classes)
    two = TwoHead(classifier, 256, "flatten", (3, 224, 224)) if name in {SEMI_HARD, HARD} else classifier
    model = two.to(now.machine.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    augment = [RandomShortestSize(range(350, 513)), transforms.RandomCrop(224), transforms.RandomHorizontalFlip()]
    batches = (
        shuffled(len(labels), options.batch_size, options.seed)
        if name == SHUFFLED
        else p_by_k(labels, options.batch_size, 4, options.seed)
    )
    return Training(
        model=model,
        loss=criterion(name),
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, lambda step: 1 - step / options.steps),
        images=now.data.train,
        transform=transforms.Compose([*augment, to_input(classifier)]),
        test_transform=transforms.Compose([transforms.Resize(350), transforms.CenterCrop(224), to_input(classifier)]),
        batches=batches,
        steps=options.steps,
        seed=options.seed,
        tested=classifier,
    )


def test(now: Session, this: Training, images: Images) -> Callable[[], Measures]:
    """Classify the images, in all processes, and return what measures it, in one."""
    logits = outputs_of(now, this.tested, images, this.test_transform)
    return lambda: {"accuracy": accuracy(logits, images.labels)}


def marks(steps: int, every: int) -> list[int]:
    """Return the steps after which the network is tested."""
    return [*range(every, steps, every), steps]


def row(name: str, step: int) -> str:
    """Return the name of a test's row."""
    return f"{name}, step {step:,}"


def main() -> None:
    """Train what is missing of the table, and print it."""
    parser = command_line(__doc__, READERS)
    add_training_options(parser)
    parser.add_argument("--steps", type=int, help="another number than the published one")
    parser.add_argument(
        "--select-on-test",
        action="store_true",
        help=f"report the best of the test accuracies every {TEST_EVERY:,} steps, as the authors do, not the last",
    )
    with session(parser, READERS, as_published) as now:
        options = now.options
        names = [name for (name,) in chosen(RUNS, options.only)]
        tests = marks(options.steps, TEST_EVERY if options.select_on_test else options.steps)
        missing = [name for name in names if any(row(name, step) not in now.rows for step in tests)]
        if options.dry_run:
            this, number = training(now, SEMI_HARD), len(missing) * len(tests)
            dry_run(now, this, len(missing) * this.steps, lambda some: test(now, this, some), number)
            return
        for name in missing:
            this, checkpoint = training(now, name), Checkpoint(now, name)
            checkpoint.restore(model=this.model)
            checkpoint.resume(this)
            for step in (step for step in tests if row(name, step) not in now.rows):
                train(now, this, checkpoint, name, until=step)
                now.record(row(name, step), test(now, this, now.data.test))
        if now.is_first:
            now.show(
                {
                    name: max((now.rows[row(name, step)] for step in tests), key=lambda measures: measures["accuracy"])
                    for name in names
                }
            )


if __name__ == "__main__":
    main()
