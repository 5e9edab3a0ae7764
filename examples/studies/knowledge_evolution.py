"""Knowledge Evolution on few images: accuracy by generation, dense and slim, beside controls of the same compute.

    python examples/studies/knowledge_evolution.py            # go on with the study: docs/results/evolution*.csv
    python examples/studies/knowledge_evolution.py --quick    # two minutes

Every method trains for the same number of epochs in all. The controls: one long training; generations whose weights are
never reset (only the optimiser and its schedule start afresh); and a network of the slim size, trained alone with as
many multiplications as the others. "strong" adds label smoothing and augmentation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from data import Images, fashion_mnist, zero_shot
from measures import accuracy, embed, retrieval
from runner import Measures, Setting, Study, main
from torch import nn
from torchvision.transforms import v2

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, LastLayer, LaterLayers
from pml_extensions.losses import SemiHardTripletLoss

GENERATIONS, BATCH = 5, 40
LONG, RESTARTS, ALONE = "one long training", "restarts, no reset", "slim size, alone"
KERNELS = KELS(0.5, example_input=torch.zeros(2, 1, 28, 28))
SPLITS = {
    "WELS": lambda seed: WELS(0.5, seed=seed),
    "KELS": lambda _: KERNELS,
    "later layers": lambda _: LaterLayers("layer4"),
    "last layer": lambda _: LastLayer(),
}
METHODS = (LONG, RESTARTS, *SPLITS, ALONE)
COLUMNS = [f"{size} {generation}" for size in ("dense", "slim") for generation in range(1, GENERATIONS + 1)]
AUGMENT = v2.Compose([v2.RandomCrop(28, padding=3, fill=-1), v2.RandomHorizontalFlip(), v2.RandomErasing()])


@dataclass(frozen=True)
class Task:
    """What is learnt from which images, how long, and how it is measured."""

    train: Images
    outputs: int
    loss: nn.Module
    score: Callable[[nn.Module], float]
    epochs: int
    augment: bool = False


def classification(setting: Setting, seed: int, epochs: int) -> Task:
    """Tell ten kinds of clothing apart; the seed draws the training images."""
    train, test = fashion_mnist()
    test = test.few(100, seed)
    strong = setting["regularization"] == "strong"
    loss = nn.CrossEntropyLoss(label_smoothing=0.1 if strong else 0.0)
    score = lambda model: accuracy(logits(model, test), test.labels)  # noqa: E731
    return Task(train.few(setting["images a class"], seed), 10, loss, score, epochs, strong)


def retrieval_of_new_classes(setting: Setting, seed: int, epochs: int) -> Task:
    """Embed so that the nearest image is of the same class, in classes never seen; the score is R@1."""
    train, _, unseen = zero_shot(seed, setting["images a class"], 200)
    score = lambda model: retrieval(embed(model, unseen.images), unseen.labels)["R@1"]  # noqa: E731
    return Task(train, 32, SemiHardTripletLoss(), score, epochs, setting["regularization"] == "strong")


@torch.no_grad()
def logits(model: nn.Module, test: Images) -> torch.Tensor:
    """Return a classifier's logits in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in test.images.split(250)])


def train(model: nn.Module, task: Task, epochs: int) -> None:
    """Train with a fresh optimiser and a fresh schedule: any training loop would do."""
    steps = epochs * (len(task.train.labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(task.train.labels)).split(BATCH):
            images, labels = task.train[chosen]
            images = torch.stack([AUGMENT(image) for image in images]) if task.augment else images
            optimizer.zero_grad()
            task.loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()


def evolve(model: nn.Module, task: Task, method: str, seed: int, generations: int) -> Measures:
    """Return the score after each generation, of the network and, with KELS, of the slim network within."""
    evolution = KnowledgeEvolution(model, SPLITS[method](seed), seed=seed) if method in SPLITS else None
    measures = {}
    for index, _ in enumerate(evolution.generations(generations) if evolution else range(generations), 1):
        train(model, task, task.epochs)
        measures[f"dense {index}"] = task.score(model)
        if method == "KELS":
            measures[f"slim {index}"] = task.score(evolution.slim())
    return measures


def slim_alone(model: nn.Module, task: Task) -> Measures:
    """Return the score of a network of the slim size, trained from scratch with the others' multiplications."""
    sizes = KERNELS.compare(model)
    slim = KERNELS.slim(model)
    for module in slim.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    train(slim, task, round(GENERATIONS * task.epochs * sizes.dense_operations / sizes.slim_operations))
    return {f"slim {GENERATIONS}": task.score(slim)}


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the scores of one method."""
    make = {"classification": classification, "retrieval": retrieval_of_new_classes}[setting["task"]]
    task = make(setting, seed, 1 if quick else setting["epochs a generation"])
    model = timm.create_model("test_resnet", in_chans=1, num_classes=task.outputs)
    if setting["method"] == ALONE:
        return slim_alone(model, task)
    if setting["method"] == LONG:
        train(model, task, GENERATIONS * task.epochs)
        return {f"dense {GENERATIONS}": task.score(model)}
    return evolve(model, task, setting["method"], seed, GENERATIONS)


def grid(methods: tuple[str, ...], task: str, images: int, regularization: str, epochs: int) -> list[Setting]:
    """Return the settings of some methods on one task."""
    base = {"task": task, "images a class": images, "regularization": regularization}
    return [{**base, "method": method, "epochs a generation": epochs} for method in methods]


FEWER = (LONG, RESTARTS, "KELS", "later layers", ALONE)
STUDIES = (
    Study("evolution", grid(METHODS, "classification", 20, "plain", 20), COLUMNS, run),
    Study("evolution_strong", grid(METHODS, "classification", 20, "strong", 20), COLUMNS, run),
    Study("evolution_retrieval", grid(FEWER, "retrieval", 20, "plain", 20), COLUMNS, run, seeds=3),
    Study("evolution_more_images", grid(FEWER, "classification", 100, "plain", 8), COLUMNS, run, seeds=3),
)

if __name__ == "__main__":
    main(*STUDIES)
