"""Knowledge Evolution on few images: accuracy by generation, dense and slim, beside controls of the same compute.

    python examples/studies/knowledge_evolution.py            # go on with the study: rows/evolution*.csv
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
PUBLISHED, MORE_GENERATIONS, LONGER = "KELS, published start", "KELS, 10 short generations", "KELS, 3 times as long"
KERNELS = KELS(0.5, example_input=torch.zeros(2, 1, 28, 28))
SPLITS = {
    "WELS": lambda seed: WELS(0.5, seed=seed),
    "KELS": lambda _: KERNELS,
    "later layers": lambda _: LaterLayers("layer4"),
    "last layer": lambda _: LastLayer(),
}
METHODS = (LONG, RESTARTS, *SPLITS, ALONE)
WHY = (PUBLISHED, MORE_GENERATIONS, LONGER)
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
    """Return the score after each fifth of the training, of the network and, with KELS, of the slim network within."""
    name = method.partition(",")[0]
    evolution = KnowledgeEvolution(model, SPLITS[name](seed), seed=seed) if name in SPLITS else None
    if evolution and method == PUBLISHED:
        evolution.start()
    measures = {}
    for index, _ in enumerate(evolution.generations(generations) if evolution else range(generations), 1):
        train(model, task, task.epochs)
        fifth, rest = divmod(index * GENERATIONS, generations)
        if not rest:
            measures[f"dense {fifth}"] = task.score(model)
            if name == "KELS":
                measures[f"slim {fifth}"] = task.score(evolution.slim())
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
    return evolve(model, task, setting["method"], seed, setting["generations"])


def setting(
    method: str, task: str, images: int, epochs: int, regularization: str = "plain", *, generations: int = GENERATIONS
) -> Setting:
    """Return a point of the grid."""
    return {
        "task": task,
        "images a class": images,
        "regularization": regularization,
        "method": method,
        "generations": generations,
        "epochs a generation": epochs,
    }


FEWER = (LONG, RESTARTS, "KELS", "later layers", ALONE)
STUDIES = (
    Study("evolution", [setting(m, "classification", 20, 20) for m in METHODS], COLUMNS, run),
    Study("evolution_strong", [setting(m, "classification", 20, 20, "strong") for m in METHODS], COLUMNS, run),
    Study("evolution_retrieval", [setting(m, "retrieval", 20, 20) for m in FEWER], COLUMNS, run),
    Study("evolution_more_images", [setting(m, "classification", 100, 8) for m in FEWER], COLUMNS, run),
    Study(  # why the slim network does not catch up: its start, the number of generations, or their length?
        "evolution_why",
        [
            setting(PUBLISHED, "classification", 20, 20),
            setting(MORE_GENERATIONS, "classification", 20, 10, generations=10),
            setting(LONGER, "classification", 20, 60),
        ],
        COLUMNS,
        run,
    ),
)

if __name__ == "__main__":
    main(*STUDIES)
