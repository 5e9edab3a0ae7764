"""Who is a positive of whom, from the labels alone."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """The references sorted by label, and for each anchor the run of its own label in them.

    Attributes:
        order: the references sorted by label, (R,).
        first: where each anchor's label begins in ``order``, (B,).
        size: how many references have each anchor's label, itself included, (B,).
        positives: how many positives each anchor has that has a negative too, (B,).
        rank: each anchor's own place within its run, (B,); None if anchors and references are different sets.
    """

    order: Tensor
    first: Tensor
    size: Tensor
    positives: Tensor
    rank: Tensor | None

    @classmethod
    def of(cls, labels: Tensor, ref_labels: Tensor) -> "Classes":
        """Sort ``ref_labels``; an anchor is no positive of its own if ``ref_labels is labels``, as in the host."""
        ours, theirs = labels.long(), ref_labels.long()
        ordered, order = theirs.sort(stable=True)
        first = torch.searchsorted(ordered, ours)
        size = torch.searchsorted(ordered, ours, right=True) - first
        rank = None
        if ref_labels is labels:
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order), device=order.device)
            rank -= first
        positives = (size - int(rank is not None)) * (size < len(theirs))
        return cls(order, first, size, positives, rank)

    def table(self, anchors: Tensor, width: int) -> Tensor:
        """Return the positives of each anchor, (b, width); a row with fewer positives repeats some."""
        place = torch.arange(width, device=anchors.device).expand(len(anchors), width)
        if self.rank is not None:
            place = place + (place >= self.rank[anchors].unsqueeze(1))
        place = torch.minimum(place, self.size[anchors].unsqueeze(1) - 1)
        return self.order[self.first[anchors].unsqueeze(1) + place]
