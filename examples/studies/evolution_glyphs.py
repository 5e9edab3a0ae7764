"""Knowledge Evolution on few typefaces a character: what do the resets do, and what does the schedule?

    python examples/studies/evolution_glyphs.py            # go on with the study: rows/evolution_glyphs*.csv
    python examples/studies/evolution_glyphs.py --quick    # two minutes

Fifty characters in three typefaces each, to be recognised in the others. Every method trains for 120 epochs in all, a
first generation of 24 of them to nearly no error on its images. Restarts without a reset have the generations' schedule
and keep every weight; in "long last" the last generation has half of all epochs. Label smoothing is a rival of the
resets: a second file has some methods with it. Single trainings move with the number of threads: a third has some on
two. A run takes about 8 s of one core.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import timm
import torch
from data import Images, common_glyphs
from knowledge_evolution import ALONE, LONG, RESTARTS, SPLITS, Task, logits, slim_alone, train
from measures import accuracy
from runner import Measures, Setting, Study, main
from torch import nn

from pml_extensions.evolution import KnowledgeEvolution

CLASSES, FACES = 50, 3
EQUAL, LONG_LAST, ONE = "equal", "long last", "one"
SCHEDULES = {EQUAL: (24, 24, 24, 24, 24), LONG_LAST: (15, 15, 15, 15, 60), ONE: (120,)}  # epochs
FITTED = "training accuracy 1"
SIZES = ("dense", "slim", "anew")
MEASURES = (FITTED, *(f"{size} {generation}" for size in SIZES for generation in range(1, 6)))


def few_faces(seed: int, epochs: int, smoothing: float) -> Task:
    """Tell characters apart; the seed draws them and their typefaces."""
    drawn = common_glyphs(seed, 0, CLASSES)
    training, test = Images(drawn.images, drawn.labels).divide(FACES, seed)
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    return Task(training, CLASSES, loss, lambda m: accuracy(logits(m, test), test.labels), epochs)


def evolve(model: nn.Module, task: Task, method: str, seed: int, epochs: tuple[int, ...]) -> Measures:
    """Return the accuracy after each generation, of the network and, with KELS, of the slim network within."""
    evolution = KnowledgeEvolution(model, SPLITS[method](seed), seed=seed) if method in SPLITS else None
    found = {}
    for index, _ in enumerate(evolution.generations(len(epochs)) if evolution else epochs):
        train(model, task, epochs[index])
        generation = index + 1 if len(epochs) > 1 else len(SCHEDULES[EQUAL])
        found[f"dense {generation}"] = task.score(model)
        if generation == 1:
            found[FITTED] = accuracy(logits(model, task.train), task.train.labels)
        if method == "KELS":
            found[f"slim {generation}"] = task.score(evolution.slim())
            found[f"anew {generation}"] = task.score(evolution.slim(task.train.images.split(50)))
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the accuracies of one method."""
    epochs = tuple(1 for _ in SCHEDULES[setting["schedule"]]) if quick else SCHEDULES[setting["schedule"]]
    task = few_faces(seed, epochs[0], setting.get("label smoothing", 0.0))
    model = timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES)
    with threads(setting["threads"]):
        if setting["method"] == ALONE:
            return slim_alone(model, task)
        return evolve(model, task, setting["method"], seed, epochs)


def setting(method: str, schedule: str, threads: int = 1) -> Setting:
    """Return a point of the grid."""
    return {"method": method, "schedule": schedule, "threads": threads}


RESETS = ("KELS",)
STUDIES = (
    Study(
        "evolution_glyphs",
        [setting(LONG, ONE), setting(ALONE, EQUAL)]
        + [setting(method, LONG_LAST) for method in (RESTARTS, *RESETS)]
        + [setting(method, EQUAL) for method in (RESTARTS, "KELS")],
        MEASURES,
        run,
    ),
    Study(
        "evolution_glyphs_smooth",
        [
            {**setting(method, schedule), "label smoothing": 0.1}
            for method, schedule in ((LONG, ONE), ("KELS", LONG_LAST))
        ],
        MEASURES,
        run,
    ),
    Study(
        "evolution_glyphs_threads",
        [setting(LONG, ONE, 2), setting("KELS", LONG_LAST, 2)],
        MEASURES,
        run,
    ),
)

if __name__ == "__main__":
    main(*STUDIES)
