"""All together: does a retrieval network with these tools close the gap to a classification network?

    python examples/studies/all_together.py            # go on with the study: rows/all_together*.csv
    python examples/studies/all_together.py --quick    # under a minute

Few images of each class to train on: 150 characters, or five classes of clothes or digits. Every method sees the same
batches of P classes x K images and trains the same network for as many steps; measured are retrieval of as many classes
never seen, and accuracy on new images of the seen ones: by the classifier, where there is one, and by the nearest
training image. On characters, where evolution_glyphs.py has Knowledge Evolution, a run takes about 20 s of one core.
"""

from collections.abc import Iterable

import timm
import torch
from data import Images, zero_shot, zero_shot_digits
from measures import accuracy, batches, neighbour_accuracy, retrieval
from runner import Measures, Setting, Study, main
from torch import Tensor, nn
from two_head import BALANCED
from two_head_glyphs import images as characters

from pml_extensions.evolution import KELS, KnowledgeEvolution
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

GENERATIONS, IMAGES = 3, 40
GLYPHS = "characters"
BATCHES = {GLYPHS: (4, 64, 80), "Fashion-MNIST": (8, 40, 80), "digits": (8, 40, 80)}  # K, P x K, steps a generation
METHODS = {  # which parts a method has
    "cross-entropy": {"classifier"},
    "triplet, semi-hard": {"metric"},
    "triplet + SVMax": {"metric", "SVMax"},
    "two heads": {"classifier", "metric"},
    "triplet + KE": {"metric", "KE"},
    "two heads + SVMax": {"classifier", "metric", "SVMax"},
    "all": {"classifier", "metric", "SVMax", "KE"},
}
MEASURES = ("R@1, new classes", "MAP@R, new classes", "accuracy, classifier", "accuracy, nearest image")


def images(name: str, seed: int) -> tuple[Images, Images, Images]:
    """Return few training images of some classes, other images of these classes, and images of as many others."""
    if name == GLYPHS:
        return characters({"classes": BALANCED}, seed)
    if name == "Fashion-MNIST":
        return zero_shot(seed, IMAGES, 200)
    return zero_shot_digits(seed, IMAGES)


class Loss(nn.Module):
    """The loss of a method's parts, of the outputs of a two-head network."""

    def __init__(self, parts: set[str]) -> None:
        super().__init__()
        regularizer = SVMaxRegularizer() if "SVMax" in parts else None
        self.metric = SemiHardTripletLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.1)
        self.both = TwoHeadLoss(self.metric, metric_weight=float("metric" in parts))
        self.classifies = "classifier" in parts

    def forward(self, outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return self.both(outputs, labels) if self.classifies else self.metric(outputs[1], labels)


def train(model: nn.Module, loss: nn.Module, training: Iterable[Images], steps: int) -> None:
    """Train with a fresh optimiser and a fresh schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for x, labels in training:
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def outputs(model: TwoHead, x: Tensor, parts: set[str]) -> tuple[Tensor, Tensor]:
    """Return logits and what a user would retrieve by: the trained embedding, or else the classifier's features."""
    model.eval()
    logits, embeddings = (torch.cat(part) for part in zip(*map(model, x.split(250)), strict=True))
    if "metric" not in parts:
        features = [model.forward_head(model.forward_features(part), pre_logits=True) for part in x.split(250)]
        embeddings = nn.functional.normalize(torch.cat(features))
    return logits, embeddings


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the measures of one training."""
    parts = METHODS[setting["method"]]
    data, seen, unseen = images(setting["data"], seed)
    model = TwoHead(timm.create_model("test_resnet", in_chans=1, num_classes=int(data.labels.max()) + 1), 64)
    per_class, size, steps = BATCHES[setting["data"]]
    loss, steps = Loss(parts), 3 if quick else steps
    training = batches(data, per_class, size, GENERATIONS * steps)
    if "KE" in parts:
        evolution = KnowledgeEvolution(model, KELS(0.5, example_input=data.images[:2]), seed=seed)
        for generation in evolution.generations(GENERATIONS):
            train(model, loss, training[generation.index * steps :][:steps], steps)
    else:
        train(model, loss, training, len(training))
    logits, embeddings = outputs(model, seen.images, parts)
    found = {"accuracy, classifier": accuracy(logits, seen.labels)} if "classifier" in parts else {}
    references = outputs(model, data.images, parts)[1]
    found["accuracy, nearest image"] = neighbour_accuracy(embeddings, seen.labels, references, data.labels)
    new = retrieval(outputs(model, unseen.images, parts)[1], unseen.labels)
    return {**{f"{name}, new classes": value for name, value in new.items()}, **found}


STUDIES = tuple(
    Study(name, [{"data": data, "method": method} for method in methods], MEASURES, run)
    for name, data, methods in (
        ("all_together_glyphs", GLYPHS, [name for name, parts in METHODS.items() if "KE" not in parts]),
        ("all_together", "Fashion-MNIST", METHODS),
        ("all_together_digits", "digits", METHODS),
    )
)

if __name__ == "__main__":
    main(*STUDIES)
