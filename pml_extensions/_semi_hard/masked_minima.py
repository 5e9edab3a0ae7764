"""The negatives of anchors with few positives: one masked minimum of a row of distances for each positive.

Subtraction, threshold and minimum over the leading axis are vectorized everywhere; comparison, ``where`` and a minimum
with its index are many times slower on a CPU, so a row is cut into strips and only the winning strip is searched.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STRIPS = 64


def nearest_farther(rows: Tensor, positives: Tensor, anchors: Tensor | None) -> tuple[Tensor, Tensor]:
    """For every positive choose the nearest negative farther than it, else the farthest negative.

    Args:
        rows: distances of b anchors to all references, (b, R); overwritten.
        positives: the columns of each anchor's own class, (b, k), all of it but the anchor's own column.
        anchors: the anchors' own columns, (b,), or None if they are not among the references.

    Returns:
        the negatives' columns, (b, k), and which of them are farther than their positive, (b, k).
    """
    thresholds = rows.gather(1, positives).unsqueeze(2)
    rows.scatter_(1, positives, -torch.inf)  # never farther than a threshold, never the farthest
    if anchors is not None:
        rows.scatter_(1, anchors.unsqueeze(1), -torch.inf)
    rows = F.pad(rows, (0, -rows.shape[1] % STRIPS), value=-torch.inf)
    gaps = torch.threshold_(rows.unsqueeze(1) - thresholds, 0.0, torch.inf)
    gap, nearest = row_minimum(gaps)
    farthest = row_minimum(-rows)[1].unsqueeze(1)
    is_farther = gap < torch.inf
    return torch.where(is_farther, nearest, farthest), is_farther


def row_minimum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum along the last axis, a multiple of STRIPS long, and its index, as ``x.min(-1)`` does."""
    strips = x.view(*x.shape[:-1], STRIPS, -1)
    value, place = strips.amin(-2).min(-1)
    width = strips.shape[-1]
    column = strips.gather(-1, place[..., None, None].expand(*strips.shape[:-1], 1)).squeeze(-1)
    return value, column.argmin(-1) * width + place
