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
from torch import Tensor

from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead

SHUFFLED, P_X_K, TWO = "cross-entropy, shuffled", "cross-entropy, P x K", "two heads, P x K"
CLASSES, EMBEDDING_SIZE = 100, 64
BATCH_SIZE, PER_CLASS = 64, 4
STEPS, LEARNING_RATE = 150, 3e-3


def images(seed: int) -> tuple[Glyphs, Glyphs]:
    """Return characters in ten typefaces, and the same in the other five, drawn by the seed."""
    data = Glyphs.load().distinct()
    many = (data.labels.bincount() > 10).nonzero()[:, 0]
    return data.classes(many[permutation(len(many), seed)[:CLASSES]]).by_face(seed)


def batches(method: str, labels: Tensor) -> Sequence[Tensor]:
    """Return the places of each batch's images: of P classes x K images, or drawn without regard to classes."""
    if method == SHUFFLED:
        return torch.randint(len(labels), (STEPS, BATCH_SIZE)).unbind()
    sampler = MPerClassSampler(labels, PER_CLASS, BATCH_SIZE, length_before_new_iter=BATCH_SIZE * STEPS)
    return torch.tensor(list(sampler)).split(BATCH_SIZE)


def train(method: str, seen: Glyphs, seed: int, advance: Advance) -> TwoHead:
    """Return a classifier with a second head, which only one method trains."""
    set_seed(seed)
    model = TwoHead(timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES), EMBEDDING_SIZE)
    loss = TwoHeadLoss(metric_weight=float(method == TWO))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for batch in batches(method, seen.labels):
        optimizer.zero_grad()
        loss(model(seen.images[batch]), seen.labels[batch]).backward()
        optimizer.step()
        schedule.step()
        advance(1 / STEPS)
    return model.eval()


@torch.no_grad()
def measured(model: TwoHead, method: str, unseen: Glyphs) -> dict[str, float]:
    """Return the accuracy of the logits, and retrieval by the second head or, untrained, by what the first reads."""
    features = model.forward_features(unseen.images)
    logits, embeddings = model.forward_head(features), model.forward_head(features, pre_logits=True)
    if method == TWO:
        embeddings = model(unseen.images).embeddings
    accuracy = 100 * (logits.argmax(1) == unseen.labels).float().mean().item()
    return {"accuracy, %": accuracy, **retrieval(embeddings, unseen.labels)}


def run(seeds: Sequence[int], folder: Path, advance: Advance) -> list[Run]:  # noqa: ARG001 (it draws nothing)
    """Train without and with the second loss on the same batches, and without on shuffled ones."""
    methods = (SHUFFLED, P_X_K, TWO)
    share = 1 / (len(methods) * len(seeds))
    runs = []
    for seed in seeds:
        seen, unseen = images(seed)
        for method in methods:
            model = train(method, seen, seed, lambda part: advance(part * share))
            runs.append(Run(method, seed, measured(model, method, unseen)))
    return runs


TWO_HEADS = Part("two_head", f"Two heads: {CLASSES} characters in typefaces never seen", 34, run)
