"""Semi-hard mining, block of anchors by block: the one place that the miner and the loss share.

Source: Schroff, Kalenichenko and Philbin, FaceNet, arXiv:1503.03832, section 3.2; the fallback to the farthest negative
is that of TensorFlow Addons' ``triplet_semihard_loss``, which Taha et al., arXiv:1901.08616, train with.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor

from pml_extensions._semi_hard.classes import Classes
from pml_extensions._semi_hard.dissimilarities import dissimilarity
from pml_extensions._semi_hard.masked_minima import nearest_farther
from pml_extensions._semi_hard.sorted_rows import nearest_farther_of_class

FEW = 32  # up to so many positives, a minimum for each is quicker than a sort of the row
MIN_ROWS = 64
CPU_ELEMENTS = 1 << 22
GPU_ELEMENTS = 1 << 27
SORT_COPIES = 8  # how many numbers of four bytes a sort, and what follows it, hold for each distance


class Triplets(NamedTuple):
    """Anchors, positives and negatives, (t,) each, and whether each negative is farther than its positive."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    is_farther: Tensor


class Block(NamedTuple):
    """Anchors of one class, (b,), and all references of that class, (r,)."""

    anchors: Tensor
    own_class: Tensor


class SemiHardMining:
    """The semi-hard triplets of a batch.

    Args:
        distance: any distance of pytorch-metric-learning.
        embeddings: (B, d).
        labels: the anchors' classes, (B,).
        ref_emb: (R, d).
        ref_labels: the references' classes, (R,); the same object as ``labels`` if the anchors are the references.
        block_size: anchors taken at once; None chooses by the memory at hand.
    """

    def __init__(
        self,
        distance: BaseDistance,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor,
        ref_labels: Tensor,
        *,
        block_size: int | None = None,
    ) -> None:
        self.references = len(ref_labels)
        self.block_size = block_size
        self.classes = Classes.of(labels, ref_labels)
        count = self.classes.positives
        few = count <= FEW
        summary = [count.sum(), (count * few).sum(), F.pad(count * few, (0, 1)).amax(), (~few).sum()]
        counts: list[int] = torch.stack(summary).tolist()  # the one wait for a GPU that the sizes of the lists need
        self.pairs, self.few_pairs, self.width, many = counts
        self.few = (few & (count > 0)).nonzero().squeeze(1)
        self.many = (~few).nonzero().squeeze(1) if many else self.few[:0]
        if self.pairs:
            self.dissimilarity = dissimilarity(distance, embeddings, ref_emb)

    @torch.no_grad()
    def triplets(self) -> Triplets:
        """Return one triplet for every anchor-positive pair whose anchor has a negative, ordered by these two."""
        if not len(self.many):
            return self.few_triplets()
        anchors, positives, begin = self.classes.pairs(self.pairs)
        negatives, is_farther = torch.empty_like(positives), torch.empty_like(positives, dtype=torch.bool)
        if self.few_pairs:
            few = self.few_triplets()
            place = (self.classes.positives <= FEW)[anchors]
            negatives[place], is_farther[place] = few.negatives, few.is_farther
        for block in self.blocks_of_many():
            of_block, *found = self.mine(block)
            place = begin[block.anchors].unsqueeze(1) + self.classes.place(block.anchors, of_block)
            negatives[place], is_farther[place] = found
        return Triplets(anchors, positives, negatives, is_farther)

    @torch.no_grad()
    def few_triplets(self) -> Triplets:
        """Return the triplets of the anchors with few positives."""
        # filled in place: small results kept between the blocks' large ones would pin freed memory
        positives = self.classes.table(self.few, self.width)
        negatives, is_farther = torch.empty_like(positives), torch.empty_like(positives, dtype=torch.bool)
        start = 0
        for anchors in self._split(self.few, self.width + 2) if self.few_pairs else ():
            block = slice(start, start := start + len(anchors))
            rows = self.dissimilarity.order(anchors)
            negatives[block], is_farther[block] = nearest_farther(rows, positives[block], self._own(anchors))
        table = Triplets(self.few.unsqueeze(1).expand_as(positives), positives, negatives, is_farther)
        if self.few_pairs == positives.numel():
            return Triplets(*(column.flatten() for column in table))
        count = self.classes.positives[self.few].unsqueeze(1)
        is_pair = torch.arange(self.width, device=count.device) < count
        return Triplets(*(column[is_pair] for column in table))

    def blocks_of_many(self) -> Iterator[Block]:
        """Yield the anchors with many positives, block by block."""
        for members, own_class in self.classes.split(self.many) if len(self.many) else ():
            for anchors in self._split(members, SORT_COPIES):
                yield Block(anchors, own_class)

    @torch.no_grad()
    def mine(self, block: Block, order: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return positives and negatives of a block, (b, k) each, and whether each negative is farther, in any order.

        Args:
            block: the anchors.
            order: what the dissimilarity's ``order`` returned for the anchors, if it is at hand.
        """
        order = self.dissimilarity.order(block.anchors) if order is None else order
        return nearest_farther_of_class(order, block.own_class, self._own(block.anchors))

    def _own(self, anchors: Tensor) -> Tensor | None:
        return anchors if self.classes.rank is not None else None

    def _split(self, anchors: Tensor, copies: int) -> tuple[Tensor, ...]:
        elements = self.dissimilarity.row_elements + copies * self.references
        return torch.split(anchors, self.block_size or max(MIN_ROWS, block_elements(anchors.device) // elements))


def block_elements(device: torch.device) -> int:
    """Return how many numbers a block may hold: what a CPU is quickest with, or a share of a GPU's free memory."""
    if device.type != "cuda":
        return CPU_ELEMENTS
    return min(GPU_ELEMENTS, int(torch.cuda.mem_get_info(device)[0]) // 64)
