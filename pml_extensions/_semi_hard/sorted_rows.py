"""The negatives of anchors with many positives: one sort of each row of distances, however many they are.

A distance (float32) and its column are packed into one integer, the distance in the upper half, so that sorting
integers orders both. Each row is sorted from far to near; at equal distance positives come before negatives, hence the
last negative before a positive is the nearest one strictly farther.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

COLUMN = (1 << 31) - 1  # the bits of a key that hold the column; bit 31 marks a negative, the distance lies above
FIRST, LAST = -(1 << 63), (1 << 63) - 1


class SortedRows(NamedTuple):
    """Rows of distances sorted from far to near, (b, R) each; only the entries of positives are meaningful.

    Attributes:
        columns: each entry's column.
        negatives: the column of its negative: the nearest farther one, or the farthest where there is none.
        is_positive: whether the entry is a positive.
        is_farther: whether its negative is farther than it.
    """

    columns: Tensor
    negatives: Tensor
    is_positive: Tensor
    is_farther: Tensor


def sort_rows(rows: Tensor, is_negative: Tensor, anchors: Tensor | None) -> SortedRows:
    """Sort rows of distances and find every positive's negative.

    Args:
        rows: distances of b anchors to all references, (b, R); overwritten. Every row has a negative.
        is_negative: (b, R).
        anchors: the anchors' own columns, (b,), or None if they are not among the references.
    """
    if anchors is not None:  # an anchor's own column becomes its nearest negative, which no positive is nearer than
        rows.scatter_(1, anchors.unsqueeze(1), -torch.inf)
        is_negative = is_negative.scatter(1, anchors.unsqueeze(1), value=True)
    keys = sort_keys(pack(rows, is_negative))
    mask = (keys << 32) >> 63  # -1 for a negative, 0 for a positive
    latest = (keys & mask | FIRST & ~mask).cummax(1).values
    is_farther = latest != FIRST
    if not is_farther.all():
        farthest = (keys & mask | LAST & ~mask).amin(1, keepdim=True)
        latest = torch.where(is_farther, latest, farthest)
    return SortedRows(keys & COLUMN, latest & COLUMN, mask == 0, is_farther)


def pack(rows: Tensor, is_negative: Tensor) -> Tensor:
    """Return keys that sort from far to near, each with its column and whether that is a negative."""
    bits = (0.0 - rows).float().view(torch.int32)  # 0 - x, unlike -x, has no negative zero
    bits = bits ^ ((bits >> 31) & COLUMN)  # integers in the order of the floats that they are the bits of
    columns = torch.arange(rows.shape[1], device=rows.device)
    return (bits.long() << 32) | (is_negative.long() << 31) | columns


def sort_keys(keys: Tensor) -> Tensor:
    """Sort each row of integers; on a CPU by numpy in as many threads as torch uses, several times faster there."""
    if keys.device.type != "cpu":
        return keys.sort(1).values
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.sort(1), (part.numpy() for part in keys.chunk(threads))))
    return keys
