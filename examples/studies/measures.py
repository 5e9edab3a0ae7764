"""What the studies measure: retrieval by pytorch-metric-learning's AccuracyCalculator, accuracy, effective rank."""

import torch
import torch.nn.functional as F
from data import Images
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor, nn

RECALL, MAP = "precision_at_1", "mean_average_precision_at_r"


def calculator() -> AccuracyCalculator:
    """Return pytorch-metric-learning's calculator with its search in torch."""
    return AccuracyCalculator(include=(RECALL, MAP), k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))


def retrieval(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Return recall at 1 and MAP@R in percent, each image searched for among all the others."""
    found = calculator().get_accuracy(embeddings, labels)
    return {"R@1": 100 * found[RECALL], "MAP@R": 100 * found[MAP]}


def neighbour_accuracy(queries: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor) -> float:
    """Return how often, in percent, the nearest reference has the query's label."""
    found = calculator().get_accuracy(queries, labels, references, reference_labels)
    return 100 * found[RECALL]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers, in percent."""
    return 100 * (logits.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Return a network's unit-length embeddings of images, in evaluation mode.

    A training that diverged leaves numbers that are none: its embeddings count as one point, which retrieves by chance.
    """
    model.eval()
    return F.normalize(torch.cat([model(chunk) for chunk in images.split(250)])).nan_to_num(0)


def batches(data: Images, per_class: int, size: int, steps: int) -> list[Images]:
    """Return batches of P classes x K images, by pytorch-metric-learning's sampler."""
    sampler = MPerClassSampler(data.labels, per_class, batch_size=size, length_before_new_iter=size * steps)
    return [data[chosen] for chosen in torch.tensor(list(sampler)).split(size)]
