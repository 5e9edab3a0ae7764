"""Knowledge Evolution on few typefaces a character: what do the resets do, and what does the schedule?

    python examples/studies/evolution_glyphs.py            # go on with the study: rows/evolution_glyphs.csv
    python examples/studies/evolution_glyphs.py --quick    # a minute

Fifty characters in three typefaces each, to be recognised in the others. Every method trains for 120 epochs in all: one
training; or four generations of 15 epochs, which is enough for nearly no error on the training images, and a last one
of 60. Restarts without a reset have the generations' schedule and keep every weight. A run takes about 19 s.
"""

import timm
from data import Images, common_glyphs
from knowledge_evolution import ALONE, GENERATIONS, LONG, RESTARTS, SPLITS, Task, logits, slim_alone, train
from measures import accuracy
from runner import Measures, Setting, Study, main
from torch import nn

from pml_extensions.evolution import KnowledgeEvolution

CLASSES, FACES = 50, 3
LONG_LAST, ONE = "long last", "one"
SCHEDULES = {LONG_LAST: (15, 15, 15, 15, 60), ONE: (120,)}  # epochs
FITTED = "training accuracy 1"
SIZES = ("dense", "slim", "anew")
MEASURES = (FITTED, *(f"{size} {generation}" for size in SIZES for generation in range(1, 6)))


def few_faces(seed: int, epochs: int) -> Task:
    """Tell characters apart; the seed draws them and their typefaces."""
    drawn = common_glyphs(seed, 0, CLASSES)
    training, test = Images(drawn.images, drawn.labels).divide(FACES, seed)
    return Task(training, CLASSES, nn.CrossEntropyLoss(), lambda m: accuracy(logits(m, test), test.labels), epochs)


def evolve(model: nn.Module, task: Task, method: str, seed: int, epochs: tuple[int, ...]) -> Measures:
    """Return the accuracy after each generation, of the network and, with KELS, of the slim network within."""
    evolution = KnowledgeEvolution(model, SPLITS[method](seed), seed=seed) if method in SPLITS else None
    found = {}
    for index, _ in enumerate(evolution.generations(len(epochs)) if evolution else epochs):
        train(model, task, epochs[index])
        generation = index + 1 if len(epochs) > 1 else GENERATIONS
        found[f"dense {generation}"] = task.score(model)
        if generation == 1:
            found[FITTED] = accuracy(logits(model, task.train), task.train.labels)
        if method == "KELS":
            found[f"slim {generation}"] = task.score(evolution.slim())
            found[f"anew {generation}"] = task.score(evolution.slim(task.train.images.split(50)))
    return found


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the accuracies of one method."""
    epochs = tuple(1 for _ in SCHEDULES[setting["schedule"]]) if quick else SCHEDULES[setting["schedule"]]
    task = few_faces(seed, -(-sum(epochs) // GENERATIONS))
    model = timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES)
    if setting["method"] == ALONE:
        return slim_alone(model, task)
    return evolve(model, task, setting["method"], seed, epochs)


METHODS = {LONG: ONE, **dict.fromkeys((RESTARTS, "WELS", "later layers", "KELS"), LONG_LAST), ALONE: ONE}
STUDIES = (
    Study(
        "evolution_glyphs",
        [{"method": method, "schedule": schedule} for method, schedule in METHODS.items()],
        MEASURES,
        run,
    ),
)

if __name__ == "__main__":
    main(*STUDIES)
