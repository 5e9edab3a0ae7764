"""What the loops here train on and report: scikit-learn's handwritten digits, no download."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return 320 images (1, 16, 16) with their labels to train on, and 200 others."""
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images[:, None] / 8 - 1, dtype=torch.float32), size=16)
    labels = torch.tensor(data.target)
    return TensorDataset(images[:320], labels[:320]), TensorDataset(images[320:520], labels[320:520])


@torch.no_grad()
def report(name: str, model: nn.Module, test: TensorDataset, generations: int) -> None:
    """Print the accuracy of the logits, and the recall at 1 of the embeddings among the test images."""
    images, labels = (tensor.to(next(model.parameters()).device) for tensor in test.tensors)
    logits, embeddings = model.eval()(images)
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)
    accuracy = (logits.argmax(1) == labels).float().mean()
    recall = (labels[nearest] == labels).float().mean()
    print(f"{name}: accuracy {accuracy:.3f}, R@1 {recall:.3f} after {generations} generations")
