"""The negatives of anchors with many positives: one sort of each row of distances, however many they are.

A distance, its column and whether that is a positive are packed into one integer, so that sorting integers orders all.
Each row is sorted from near to far; at equal distance negatives come before positives, hence the first negative after a
positive is the nearest one strictly farther. All anchors at hand are of one class: one row tells which are positives.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_extensions._semi_hard.block_sums import is_transformed
from pml_extensions._semi_hard.masked_minima import farthest, preferred

BITS = (1 << 31) - 1  # all bits of a number of 32 but its sign
LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # where the halves of a number of 64 bits lie


def nearest_farther_of_class(rows: Tensor, own_class: Tensor, anchors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """For every positive choose the nearest negative farther than it, else the farthest negative.

    Args:
        rows: distances of b anchors of one class to all references, (b, R).
        own_class: the columns of that class, (r,); there are others.
        anchors: the anchors' own columns, (b,), or None if they are not among the references.

    Returns:
        the columns of each anchor's positives, from near to far, (b, k), their negatives' columns, (b, k), and which of
        these are farther than the positive, (b, k).
    """
    columns = preferred(rows.shape[1], rows.device)
    halves = sorted_rows(rows, columns, own_class, anchors)
    codes = halves[:, LOW::2].contiguous()
    is_positive = codes < 0
    positives, negatives = places(is_positive), places(~is_positive)
    line, place = (torch.arange(size, device=rows.device) for size in positives.shape)
    nearer = (positives - place).sub_(line.unsqueeze(1) * rows.shape[1])  # so many negatives come before each positive
    last = negatives.shape[1] - 1
    chosen = lookup(columns, lookup(codes, negatives).gather(1, nearer.clamp_max(last)))
    tied = lookup(halves, 2 * negatives[:, -2:] + HIGH)
    tied = ((tied[:, 0] == tied[:, -1]) & (nearer[:, -1] > last)).nonzero().squeeze(1)
    if len(tied):  # several negatives are the farthest
        fallback = farthest(rows.index_select(0, tied).index_fill_(1, own_class, -torch.inf)).unsqueeze(1)
        chosen[tied] = torch.where(nearer[tied] > last, fallback, chosen[tied])
    return lookup(columns, ~lookup(codes, positives)), chosen, nearer <= last


def sorted_rows(rows: Tensor, columns: Tensor, own_class: Tensor, anchors: Tensor | None) -> Tensor:
    """Return each row sorted from near to far, two integers for each of its numbers, (b, 2 R).

    HIGH is in the order of the numbers; LOW says which it was: a negative's place in ``columns``, the complement of a
    positive's.
    """
    code = torch.empty_like(columns)
    code[columns] = torch.arange(len(columns), device=columns.device)
    code = code.index_copy_(0, own_class, ~code[own_class]).int()
    keys = torch.empty(*rows.shape, 2, dtype=torch.int32, device=rows.device)
    keys[..., LOW] = code
    keys[..., HIGH] = near_first(rows)
    if anchors is not None:  # an anchor's own column becomes its nearest negative, which no positive is nearer than
        line = torch.arange(len(anchors), device=rows.device)
        keys[line, anchors, LOW] = ~code[anchors]
        keys[line, anchors, HIGH] = ~BITS
    return sort_keys(keys.view(torch.int64).squeeze(2)).view(torch.int32)


def near_first(rows: Tensor) -> Tensor:
    """Return integers of 32 bits in the order of the numbers of each row."""
    if rows.dtype != torch.float32:
        values, order = rows.sort(1)
        steps = F.pad(values[:, 1:] != values[:, :-1], (1, 0)).cumsum(1, dtype=torch.int32)
        return torch.empty_like(steps).scatter_(1, order, steps)
    bits = (rows + 0.0).view(torch.int32)  # there is no negative zero in a sum with zero
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(BITS))  # in the order of the floats that they are the bits of


def sort_keys(keys: Tensor) -> Tensor:
    """Sort each row of integers; on a CPU by numpy in as many threads as torch uses, several times faster there."""
    if not in_numpy(keys):
        return keys.sort(1).values
    threads = torch.get_num_threads()
    if threads == 1:
        keys.numpy().sort(1)
        return keys
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.sort(1), (part.numpy() for part in keys.chunk(threads))))
    return keys


def places(mask: Tensor) -> Tensor:
    """Return where a matrix is true, as often in each row, numbered row by row; on a CPU by numpy, ten times faster."""
    if not in_numpy(mask):
        return mask.flatten().nonzero().view(len(mask), -1)
    return torch.from_numpy(np.flatnonzero(mask.numpy())).view(len(mask), -1)


def in_numpy(tensor: Tensor) -> bool:
    """Return whether numpy can work on a tensor's memory."""
    return tensor.device.type == "cpu" and not is_transformed()


def lookup(table: Tensor, where: Tensor) -> Tensor:
    """Return ``table.flatten()[where]``, for which a list of places is several times quicker than a matrix of them."""
    return table.flatten().index_select(0, where.flatten()).view_as(where)
