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
    rows = in_strips(rows)
    gap, nearest = row_minimum(torch.threshold_(rows.unsqueeze(1) - thresholds, 0.0, torch.inf))
    is_farther = gap < torch.inf
    return torch.where(is_farther, nearest, row_minimum(-rows)[1].unsqueeze(1)), is_farther


def farthest(rows: Tensor) -> Tensor:
    """Return the column of the largest number of each row, (b,)."""
    return row_minimum(-in_strips(rows))[1]


def in_strips(rows: Tensor) -> Tensor:
    """Return ``rows`` with as many columns as STRIPS divides; those added are never the largest."""
    return F.pad(rows, (0, -rows.shape[1] % STRIPS), value=-torch.inf)


def row_minimum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum along the last axis, a multiple of STRIPS long, and its ``preferred`` index."""
    strips = x.view(*x.shape[:-1], STRIPS, -1)
    value, place = strips.amin(-2).min(-1)
    width = strips.shape[-1]
    column = strips.gather(-1, place[..., None, None].expand(*strips.shape[:-1], 1)).squeeze(-1)
    return value, column.argmin(-1) * width + place


def preferred(columns: int, device: torch.device) -> Tensor:
    """Return all columns in the order in which ``row_minimum`` prefers them if their values are equal."""
    width = -(-columns // STRIPS)
    order = torch.arange(STRIPS * width, device=device).view(STRIPS, width).T.flatten()
    return order[order < columns]
