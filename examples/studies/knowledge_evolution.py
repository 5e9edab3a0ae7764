"""Knowledge Evolution on few images: accuracy by generation, dense and slim, beside controls of the same compute.

    python examples/studies/knowledge_evolution.py            # go on with the study: rows/evolution*.csv
    python examples/studies/knowledge_evolution.py --quick    # two minutes

Every method trains for the same number of epochs in all. The controls: one long training; generations whose weights are
never reset (only the optimiser and its schedule start afresh); and a network of the slim size, trained alone with as
many multiplications as the others. "strong" adds label smoothing and augmentation. The slim network of KELS is measured
as published, with the statistics of its norms anew, and then fine-tuned for one generation's epochs.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import timm
import torch
from data import Images, digits, fashion_mnist, zero_shot
from measures import accuracy, embed, retrieval
from runner import Measures, Setting, Study, main
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torchvision.transforms import v2

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, LastLayer, LaterLayers
from pml_extensions.losses import SemiHardTripletLoss

GENERATIONS = 5
LONG, RESTARTS, ALONE = "one long training", "restarts, no reset", "slim size, alone"
PUBLISHED, MORE_GENERATIONS, LONGER = "KELS, published start", "KELS, 10 short generations", "KELS, 3 times as long"
SCRIPT = "KELS, published script"
KERNELS = KELS(0.5, example_input=torch.zeros(2, 1, 28, 28))
SPLITS = {
    "WELS": lambda seed: WELS(0.5, seed=seed),
    "KELS": lambda _: KERNELS,
    "later layers": lambda _: LaterLayers("layer4"),
    "last layer": lambda _: LastLayer(),
}
METHODS = (LONG, RESTARTS, *SPLITS, ALONE)
WHY = (PUBLISHED, MORE_GENERATIONS, LONGER)
SIZES = ("dense", "slim", "anew")  # anew: the slim network with the statistics of its norms estimated anew
COLUMNS = [f"{size} {generation}" for size in SIZES for generation in range(1, GENERATIONS + 1)]
COLUMNS += [f"tuned {GENERATIONS}"]
COUNTS = (1, 2, 5, 10, 50)  # batches that the statistics are estimated from
AUGMENT = v2.Compose([v2.RandomCrop(28, padding=3, fill=-1), v2.RandomHorizontalFlip(), v2.RandomErasing()])


@dataclass(frozen=True)
class Recipe:
    """How a generation is trained: SGD, and a cosine schedule after so many epochs of linear warm-up."""

    batch: int = 40
    rate: float = 0.05
    nesterov: bool = True
    warm_up: int = 0

    def schedule(self, optimizer: torch.optim.Optimizer, epochs: int, batches: int) -> LRScheduler:
        """Return the schedule of a generation, step by step."""
        warm = self.warm_up * batches
        cosine = CosineAnnealingLR(optimizer, epochs * batches - warm)
        return SequentialLR(optimizer, [LinearLR(optimizer, 1 / warm, 1, warm), cosine], [warm]) if warm else cosine


PUBLISHED_RECIPE = Recipe(batch=32, rate=0.256, nesterov=False, warm_up=5)


@dataclass(frozen=True)
class Task:
    """What is learnt from which images, how long, and how it is measured."""

    train: Images
    outputs: int
    loss: nn.Module
    score: Callable[[nn.Module], float]
    epochs: int
    augment: bool = False
    recipe: Recipe = Recipe()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of training batches."""
        for chosen in torch.randperm(len(self.train.labels)).split(self.recipe.batch):
            images, labels = self.train[chosen]
            yield torch.stack([AUGMENT(image) for image in images]) if self.augment else images, labels


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
    recipe = task.recipe
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=1e-4, nesterov=recipe.nesterov
    )
    schedule = recipe.schedule(optimizer, epochs, -(-len(task.train.labels) // recipe.batch))
    model.train()
    for _ in range(epochs):
        for images, labels in task.batches():
            optimizer.zero_grad()
            task.loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()


def evolve(model: nn.Module, task: Task, method: str, seed: int, generations: int) -> Measures:
    """Return the score after each fifth of the training, of the network and, with KELS, of the slim network within."""
    name = method.partition(",")[0]
    evolution = KnowledgeEvolution(model, SPLITS[name](seed), seed=seed) if name in SPLITS else None
    if evolution and method in {PUBLISHED, SCRIPT}:
        evolution.start()
    measures = {}
    for index, _ in enumerate(evolution.generations(generations) if evolution else range(generations), 1):
        train(model, task, task.epochs)
        fifth, rest = divmod(index * GENERATIONS, generations)
        if not rest:
            measures[f"dense {fifth}"] = task.score(model)
            if name == "KELS":
                measures[f"slim {fifth}"] = task.score(evolution.slim())
                measures[f"anew {fifth}"] = task.score(evolution.slim(task.batches()))
    if name == "KELS":
        slim = evolution.slim(task.batches())
        train(slim, task, task.epochs)
        measures[f"tuned {GENERATIONS}"] = task.score(slim)
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


def run_published(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the scores of KELS with the published script's optimiser, schedule, loss and start, on digits."""
    train_images, test = digits(28).divide(setting["images a class"], seed)
    epochs = 6 if quick else setting["epochs a generation"]
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    score = lambda model: accuracy(logits(model, test), test.labels)  # noqa: E731
    task = Task(train_images, 10, loss, score, epochs, recipe=PUBLISHED_RECIPE)
    return evolve(timm.create_model("test_resnet", in_chans=1, num_classes=10), task, SCRIPT, seed, GENERATIONS)


def run_batches(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the scores after the last generation of KELS, with statistics of so many batches."""
    task = classification(setting, seed, 1 if quick else setting["epochs a generation"])
    model = timm.create_model("test_resnet", in_chans=1, num_classes=task.outputs)
    evolution = KnowledgeEvolution(model, KERNELS, seed=seed)
    for _ in evolution.generations(GENERATIONS):
        train(model, task, task.epochs)
    endless = itertools.chain.from_iterable(task.batches() for _ in itertools.count())
    scores = {f"batches: {count}": task.score(evolution.slim(endless, batches=count)) for count in COUNTS}
    return {"dense": task.score(model), "as published": task.score(evolution.slim()), **scores}


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
    Study(  # how much data do the statistics need?
        "evolution_batches",
        [setting("KELS", "classification", 20, 20), setting("KELS", "classification", 100, 8)],
        ["dense", "as published", *(f"batches: {count}" for count in COUNTS)],
        run_batches,
    ),
    Study(  # does the slim network catch up by itself where generations are longer? 143 epochs are 1,001 steps
        "evolution_published",
        [{"images a class": 20, "epochs a generation": 143, "method": SCRIPT}],
        COLUMNS,
        run_published,
        seeds=range(3),
    ),
)

if __name__ == "__main__":
    main(*STUDIES)
