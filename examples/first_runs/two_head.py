"""Two heads: recognition of characters in typefaces never seen, and retrieval, from one pass of one network."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from first_runs.runs import Run
from first_runs.seeding import set_seed
from first_runs.svmax import retrieval
from pytorch_metric_learning.samplers import MPerClassSampler
from studies.glyphs import Glyphs, permutation
from torch import Tensor

from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead

SHUFFLED, P_X_K, TWO = "cross-entropy, shuffled", "cross-entropy, P x K", "two heads, P x K"
SIZE, CLASSES, EMBEDDING_SIZE = 24, 60, 64
BATCH_SIZE, PER_CLASS = 64, 4
STEPS, LEARNING_RATE = 150, 3e-3
TITLE = f"Two heads: {CLASSES} characters in typefaces never seen"


def images(seed: int) -> tuple[Glyphs, Glyphs]:
    """Return characters in ten typefaces, and the same in the other five, drawn by the seed."""
    data = Glyphs.load(SIZE).distinct()
    many = (data.labels.bincount() > 10).nonzero()[:, 0]
    return data.classes(many[permutation(len(many), seed)[:CLASSES]]).by_face(seed)


def batches(method: str, labels: Tensor) -> Sequence[Tensor]:
    """Return the places of each batch's images: of P classes x K images, or drawn without regard to classes."""
    if method == SHUFFLED:
        return torch.randint(len(labels), (STEPS, BATCH_SIZE)).unbind()
    sampler = MPerClassSampler(labels, PER_CLASS, BATCH_SIZE, length_before_new_iter=BATCH_SIZE * STEPS)
    return torch.tensor(list(sampler)).split(BATCH_SIZE)


def train(method: str, seen: Glyphs, seed: int) -> TwoHead:
    """Return a classifier with a second head, which only one method trains."""
    set_seed(seed)
    network = timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES)
    model = TwoHead(network, EMBEDDING_SIZE).to(memory_format=torch.channels_last)
    loss = TwoHeadLoss(metric_weight=float(method == TWO))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for batch in batches(method, seen.labels):
        optimizer.zero_grad()
        loss(model(seen.images[batch]), seen.labels[batch]).backward()
        optimizer.step()
        schedule.step()
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


def run(seed: int, folder: Path) -> list[Run]:  # noqa: ARG001 (it draws nothing)
    """Train without and with the second loss on the same batches, and without on shuffled ones."""
    seen, unseen = images(seed)
    models = {method: train(method, seen, seed) for method in (SHUFFLED, P_X_K, TWO)}
    return [Run(method, seed, measured(model, method, unseen)) for method, model in models.items()]
