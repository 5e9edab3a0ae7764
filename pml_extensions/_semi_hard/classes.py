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
        place = place + self.first[anchors].unsqueeze(1)
        return self.order.index_select(0, place.flatten()).view_as(place)

    def pairs(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return all anchor-positive pairs, ordered by anchor and then by positive, and where each anchor's begin.

        Args:
            count: how many pairs there are, the sum of ``positives``.
        """
        begin = self.positives.cumsum(0) - self.positives
        everyone = torch.arange(len(begin), device=begin.device)
        anchors = everyone.repeat_interleave(self.positives, output_size=count)
        place = torch.arange(count, device=begin.device) - begin[anchors]
        if self.rank is not None:
            place += place >= self.rank[anchors]
        return anchors, self.order[self.first[anchors] + place], begin

    def split(self, anchors: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split ``anchors``, each of which has positives, by class; return each part with its class's references."""
        anchors = anchors[self.first[anchors].argsort(stable=True)]
        first, counts = torch.unique_consecutive(self.first[anchors], return_counts=True)
        sizes = self.size[anchors[counts.cumsum(0) - 1]]
        runs: list[list[int]] = torch.stack([first, sizes, counts], 1).tolist()
        parts = torch.split(anchors, [count for _, _, count in runs])
        return [(part, self.order[first : first + size]) for part, (first, size, _) in zip(parts, runs, strict=True)]

    def place(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Return which of its positives, counted in ascending order, each of ``positives`` (b, k) is of its anchor."""
        among = torch.empty_like(self.order)
        among[self.order] = torch.arange(len(among), device=among.device)
        place = among[positives] - self.first[anchors].unsqueeze(1)
        return place if self.rank is None else place - (place > self.rank[anchors].unsqueeze(1)).long()
