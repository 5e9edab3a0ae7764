"""Who is a positive of whom, from the labels alone."""

from dataclasses import dataclass
from typing import Any

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


def check_batch(embeddings: Any, labels: Any, what: str = "") -> None:
    """Raise if the embeddings are no matrix, or the labels are no integers, one for each embedding."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        raise TypeError(f"{what}embeddings must be a floating-point tensor, got {kind(embeddings)}")
    if embeddings.ndim != 2:
        raise ValueError(f"{what}embeddings must have shape (batch, dimension), got {tuple(embeddings.shape)}")
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise TypeError(f"{what}labels must be a tensor of integers, got {kind(labels)}; use torch.tensor(labels)")
    if labels.ndim != 1:
        raise ValueError(f"{what}labels must have shape (batch,), got {tuple(labels.shape)}; pass class numbers")
    if len(labels) != len(embeddings):
        raise ValueError(f"{what}labels must be as many as embeddings, got {len(labels)} for {len(embeddings)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"{what}labels must be integers, got {labels.dtype}; use labels.long() if they are class numbers"
        )


def check_references(embeddings: Tensor, ref_emb: Any, ref_labels: Any) -> None:
    """Raise if the references are no batch, or are not as wide as the embeddings."""
    check_batch(ref_emb, ref_labels, "ref_")
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_embeddings must be as wide as embeddings, got {ref_emb.shape[1]} columns for {embeddings.shape[1]}"
        )


def check_block_size(block_size: Any) -> None:
    """Raise unless ``block_size`` is a number of anchors or None."""
    if block_size is None:
        return
    if isinstance(block_size, bool) or not isinstance(block_size, int):
        raise TypeError(f"block_size must be an int or None, got {kind(block_size)}")
    if block_size < 1:
        raise ValueError(f"block_size must be a positive number of anchors or None, got {block_size}")


def kind(value: Any) -> str:
    """Return what an error message says of a value: its type, or the type of a tensor's numbers."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
