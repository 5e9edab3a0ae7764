"""What a trained network is worth on the test images."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from readers import Images
from rows import Measures
from session import Machine, Session
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional as F
from training import autocast, load


@torch.no_grad()
def outputs_of(session: Session, model: nn.Module, images: Images, transform: Callable[[Any], Tensor]) -> Tensor:
    """Return what a model says of all images (n, d), float32 on the CPU; the processes share the images out."""
    machine, size = session.machine, session.options.batch_size
    own = list(range(machine.rank, len(images), machine.world))
    draws = [[(place, 0) for place in own[first : first + size]] for first in range(0, len(own), size)]
    parts = []
    model.eval()
    for batch, _ in load(session, images, transform, draws):
        with autocast(session):
            parts.append(model(batch).float().cpu())
    return interleaved(torch.cat(parts) if parts else None, machine)


def interleaved(part: Any, machine: Machine) -> Tensor:
    """Return the rows of all processes, of which each has every n-th; None for no row."""
    if machine.world == 1:
        return part
    parts: list[Any] = [None] * machine.world
    dist.all_gather_object(parts, part)
    parts = [part for part in parts if part is not None]
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, rows in enumerate(parts):
        whole[rank :: machine.world] = rows
    return whole


def accuracy(logits: Tensor, labels: Sequence[int]) -> float:
    """Return the share of right answers, in percent."""
    return 100 * (logits.argmax(1) == torch.tensor(labels)).float().mean().item()


def retrieval(embeddings: Tensor, images: Images, seed: int) -> Measures:
    """Return R@1, and NMI with as many k-means clusters as there are classes, of embeddings (n, d), in percent."""
    labels = torch.tensor(images.labels)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "NMI"),
        k=1,
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity(), batch_size=1024),
        kmeans_func=lambda points, k: KMeans(k, n_init=1, max_iter=20, random_state=seed).fit_predict(points.numpy()),
    )
    embeddings = F.normalize(embeddings.nan_to_num())  # a network that diverged retrieves by chance
    query, gallery = (
        torch.ones(len(images), dtype=torch.bool) if column is None else torch.tensor(column)
        for column in (images.query, images.gallery)
    )
    among = bool(gallery[query].all())  # else no image that is searched with is in the gallery: the reader saw to it
    found = torch.cat([query.nonzero(), (gallery & ~query).nonzero()])[:, 0] if among else gallery.nonzero()[:, 0]
    with warnings.catch_warnings():  # of a network that collapsed, k-means finds fewer clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        measured = calculator.get_accuracy(embeddings[query], labels[query], embeddings[found], labels[found], among)
    return {"R@1": 100 * measured["precision_at_1"], "NMI": 100 * measured["NMI"]}
