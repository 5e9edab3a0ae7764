"""A timm classifier that also returns an embedding, from the same pass through its trunk.

Source: Taha, Chen, Misu, Shrivastava and Davis, "Boosting Standard Classification Architectures Through a Ranking
Regularizer", WACV 2020, arXiv:1901.08616, figure 2. The paper's embedding reads the flattened last feature map
(``pooling="flatten"``); by default ours reads it pooled as the classifier reads it, 49 times fewer weights at 7 x 7.
"""

import inspect
import re
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pml_extensions._settings import check_integer

__all__ = ["TwoHead", "TwoHeadOutput"]


class TwoHeadOutput(NamedTuple):
    """What a two-head model returns.

    Attributes:
        logits: (B, classes), as the classifier alone would return them.
        embeddings: (B, d), of unit length, float32 or wider.
    """

    logits: Tensor
    embeddings: Tensor


class TwoHead(nn.Module):
    """Give a timm classifier a second head, an embedding of its last feature map.

    The classifier itself stays as it is, in the attribute ``model``: drop the wrapper and there it is. What the wrapper
    does not have is looked up there (``get_classifier``, ``reset_classifier``, ``set_grad_checkpointing``, ...).

    Args:
        model: a timm model with ``forward_features`` and ``forward_head``, and a classifier.
        embedding_size: the embedding's dimension, d.
        pooling: what the embedding reads: "avg", the features that the classifier reads, pooled as the model pools by
            default (average, class token, ...); or "flatten", the whole last feature map, as in the paper.
        input_size: (C, H, W) of the images that will come. Only "flatten" needs it, and takes that of the model's
            pretrained configuration by default.

    Shape:
        images (B, C, H, W); returns a named tuple of logits (B, classes) and embeddings (B, d).

    Raises:
        TypeError: ``model`` has no feature map or no classifier to put an embedding beside.
        ValueError: for an unknown ``pooling``, an ``embedding_size`` below one, or an ``input_size`` that is not of
            three numbers.

    Examples:
        >>> import timm
        >>> logits, embeddings = TwoHead(timm.create_model("resnet18"), 64).eval()(torch.randn(2, 3, 32, 32))
        >>> logits.shape, embeddings.shape
        (torch.Size([2, 1000]), torch.Size([2, 64]))
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        embedding_size: int = 256,
        pooling: str = "avg",
        input_size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        check_classifier(model)
        if pooling not in {"avg", "flatten"}:
            raise ValueError(f'pooling must be "avg" or "flatten", got {pooling!r}')
        check_integer("embedding_size", embedding_size, least=1)
        self.model = model
        self.pooling = pooling
        self._normalizes_in_head = normalizes_in_head(model)
        like = next(model.parameters())
        width = self._width(input_size)
        self.embedding = nn.Linear(width, embedding_size, device=like.device, dtype=like.dtype)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"pooling={self.pooling!r}"

    def forward(self, images: Tensor) -> TwoHeadOutput:
        """Return logits and embeddings of ``images``."""
        features = self.model.forward_features(images)
        if self.pooling == "flatten":
            logits, pooled = self.model.forward_head(features), flattened(features)
        elif self._normalizes_in_head:
            pooled = self.model.forward_head(features, pre_logits=True)
            logits = self.model.get_classifier()(pooled)
        else:
            logits, pooled = self.model.forward_head(features), self.model.forward_head(features, pre_logits=True)
        embeddings = self.embedding(pooled.flatten(1))
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        return TwoHeadOutput(logits, F.normalize(embeddings.to(wide), dim=1))

    def no_weight_decay(self) -> set[str]:
        """Return the names of the model's parameters that take no weight decay, as they are called here."""
        names = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {f"model.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the model's parameter groups for layer-wise learning rates; the embedding falls in the head's."""
        groups = self.model.group_matcher(coarse=coarse)
        return {
            name: within_model(spec) if isinstance(spec, str) else [(within_model(one), suffix) for one, suffix in spec]
            for name, spec in groups.items()
        }

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("__"):
                raise
            return getattr(self.model, name)

    def _width(self, input_size: tuple[int, int, int] | None) -> int:
        if self.pooling == "avg":
            return int(self.model.head_hidden_size)
        input_size = input_size or self.model.pretrained_cfg["input_size"]
        check_input_size(input_size)
        like = next(self.model.parameters())
        modes = {module: module.training for module in self.model.modules()}
        try:
            with torch.no_grad():
                features = self.model.eval().forward_features(like.new_zeros(1, *input_size))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return flattened(features).shape[1]


def flattened(features: Any) -> Tensor:
    """Return the last feature map, or the last maps of a model with several branches, as rows."""
    maps = features if isinstance(features, list | tuple) else [features]
    return torch.cat([one.flatten(1) for one in maps], dim=1)


def normalizes_in_head(model: Any) -> bool:
    """Return whether pre-logits pass a batch norm of the head, whose statistics must see each batch once.

    So it is in efficientvit_mit, cpubone and lowformer, whose heads begin with a convolution called ``in_conv``; there
    the classifier reads the pre-logits as they are.
    """
    parts = [getattr(owner, "in_conv", None) for owner in (model, getattr(model, "head", None))]
    modules = (module for part in parts if isinstance(part, nn.Module) for module in part.modules())
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in modules)


def check_classifier(model: Any) -> None:
    """Raise if ``model`` is not a timm classifier with a feature map."""
    needed = ("forward_features", "forward_head", "get_classifier")
    missing = [name for name in needed if not callable(getattr(model, name, None))]
    if missing:
        raise TypeError(
            f"model must be a timm classifier, got {type(model).__name__} without {', '.join(missing)}; "
            "create it with timm.create_model"
        )
    if "pre_logits" not in inspect.signature(model.forward_head).parameters:
        raise TypeError(f"model must be able to return pre-logits, but {type(model).__name__}.forward_head is not")
    if not getattr(model, "num_classes", 0):
        raise TypeError(f"model must have a classifier, got {type(model).__name__} with num_classes=0")


def check_input_size(input_size: Any) -> None:
    """Raise unless ``input_size`` is (C, H, W)."""
    if not isinstance(input_size, tuple | list):
        raise TypeError(f"input_size must be (C, H, W), got {type(input_size).__name__}")
    if len(input_size) != 3:
        raise ValueError(f"input_size must be (C, H, W), got {input_size}")


def within_model(pattern: str) -> str:
    """Return the pattern that matches ``model.NAME`` where ``pattern`` matches NAME from its start."""
    unanchored = re.sub(r"(?<![\[\\])\^", "", pattern)
    return rf"model\.(?:{unanchored})"
