"""How far apart embeddings are, by any distance of pytorch-metric-learning, in the form that suits it best."""

import torch
from pytorch_metric_learning.distances import (
    BaseDistance,
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
    SNRDistance,
)
from torch import Tensor, nn

from pml_extensions._host import is_as_shipped
from pml_extensions._semi_hard.euclidean import Euclidean, is_euclidean
from pml_extensions._semi_hard.shipped import Shipped
from pml_extensions._semi_hard.whole_matrix import WholeMatrix

Dissimilarity = Shipped | WholeMatrix


def dissimilarity(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> Dissimilarity:
    """Return the dissimilarity between ``embeddings`` (B, d) and ``ref_emb`` (R, d), the same object or another."""
    dtype = precision(distance, torch.promote_types(embeddings.dtype, ref_emb.dtype))
    x = embeddings.to(dtype)
    y = x if ref_emb is embeddings else ref_emb.to(dtype)
    if not is_shipped(distance):
        return WholeMatrix(distance, x, y)
    return (Euclidean if is_euclidean(distance) else Shipped)(distance, x, y)


def is_shipped(distance: BaseDistance) -> bool:
    """Return whether a distance is one of the host's own, as it comes."""
    return bool(is_as_shipped(distance, LpDistance, CosineSimilarity, DotProductSimilarity, SNRDistance))


def precision(distance: BaseDistance, dtype: torch.dtype) -> torch.dtype:
    """Return what embeddings of ``dtype`` are computed in: float32 or wider, unless the distance has narrow tensors."""
    own = [*distance.parameters(), *distance.buffers()] if isinstance(distance, nn.Module) else []
    widths = [one.dtype.itemsize for one in own if one.is_floating_point()]
    return dtype if widths and max(widths) < 4 else torch.promote_types(dtype, torch.float32)
