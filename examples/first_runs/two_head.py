"""Two heads: recognition of characters in typefaces never seen, and retrieval, from one pass of one network."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from first_runs.runs import Advance, Part, Run
from first_runs.seeding import set_seed
from first_runs.svmax import retrieval
from pytorch_metric_learning.samplers import MPerClassSampler
from studies.glyphs import Glyphs, permutation

from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead

WEIGHTS = {"cross-entropy": 0.0, "two heads, semi-hard": 1.0}
CLASSES, EMBEDDING_SIZE = 100, 64
BATCH_SIZE, PER_CLASS = 64, 4
STEPS, LEARNING_RATE = 150, 3e-3


def images(seed: int) -> tuple[Glyphs, Glyphs]:
    """Return characters in ten typefaces, and the same in the other five, drawn by the seed."""
    data = Glyphs.load().distinct()
    many = (data.labels.bincount() > 10).nonzero()[:, 0]
    return data.classes(many[permutation(len(many), seed)[:CLASSES]]).by_face(seed)


def train(weight: float, seen: Glyphs, seed: int, advance: Advance) -> TwoHead:
    """Return a classifier with a second head, trained on batches of P classes x K images."""
    set_seed(seed)
    model = TwoHead(timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES), EMBEDDING_SIZE)
    loss = TwoHeadLoss(metric_weight=weight)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    sampler = MPerClassSampler(seen.labels, PER_CLASS, BATCH_SIZE, length_before_new_iter=BATCH_SIZE * STEPS)
    for batch in torch.tensor(list(sampler)).split(BATCH_SIZE):
        optimizer.zero_grad()
        loss(model(seen.images[batch]), seen.labels[batch]).backward()
        optimizer.step()
        schedule.step()
        advance(1 / STEPS)
    return model.eval()


@torch.no_grad()
def measured(model: TwoHead, weight: float, unseen: Glyphs) -> dict[str, float]:
    """Return the accuracy of the logits, and retrieval by the second head or, untrained, by what the first reads."""
    features = model.forward_features(unseen.images)
    logits, embeddings = model.forward_head(features), model.forward_head(features, pre_logits=True)
    if weight:
        embeddings = model(unseen.images).embeddings
    accuracy = 100 * (logits.argmax(1) == unseen.labels).float().mean().item()
    return {"accuracy, %": accuracy, **retrieval(embeddings, unseen.labels)}


def run(seeds: Sequence[int], folder: Path, advance: Advance) -> list[Run]:  # noqa: ARG001 (it draws nothing)
    """Train without and with the second loss on the same batches."""
    share = 1 / (len(WEIGHTS) * len(seeds))
    runs = []
    for seed in seeds:
        seen, unseen = images(seed)
        for method, weight in WEIGHTS.items():
            model = train(weight, seen, seed, lambda part: advance(part * share))
            runs.append(Run(method, seed, measured(model, weight, unseen)))
    return runs


TWO_HEADS = Part(
    "two_head", f"Two heads: {CLASSES} characters in typefaces never seen, the same batches for both", 34, run
)
