"""Semi-hard mining, block of anchors by block: the one place that the miner and the loss share.

Source: Schroff, Kalenichenko and Philbin, FaceNet, arXiv:1503.03832, section 3.2; the fallback to the farthest negative
is that of TensorFlow Addons' ``triplet_semihard_loss``, which Taha et al., arXiv:1901.08616, train with.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor

from pml_extensions._semi_hard.classes import Classes
from pml_extensions._semi_hard.dissimilarities import dissimilarity
from pml_extensions._semi_hard.masked_minima import nearest_farther
from pml_extensions._semi_hard.sorted_rows import SortedRows, sort_rows

FEW = 32  # up to so many positives, a minimum for each is quicker than a sort of the row
SORT_COPIES = 8  # how many numbers of four bytes a sort holds for each distance
MIN_ROWS = 64
CPU_ELEMENTS = 1 << 22
GPU_ELEMENTS = 1 << 27


class Triplets(NamedTuple):
    """Anchors, positives and negatives, (t,) each, and whether each negative is farther than its positive."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    is_farther: Tensor


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
        self.labels, self.ref_labels = labels, ref_labels
        self.block_size = block_size
        self.classes = Classes.of(labels, ref_labels)
        count = self.classes.positives
        few = count <= FEW
        summary = [
            count.sum(),
            (count * few).sum(),
            F.pad(count * few, (0, 1)).amax(),
            few.sum(),
            count.count_nonzero(),
        ]
        counts: list[int] = torch.stack(summary).tolist()  # the one wait for a GPU that the sizes of the lists need
        self.pairs, self.few_pairs, self.width, few_rows, busy_rows = counts
        everyone = torch.arange(len(labels), device=labels.device)
        all_few = few_rows == busy_rows == len(labels)
        self.few = everyone if all_few else (few & (count > 0)).nonzero().squeeze(1)
        self.many = everyone[:0] if few_rows == len(labels) else (~few).nonzero().squeeze(1)
        if self.pairs:
            self.dissimilarity = dissimilarity(distance, embeddings, ref_emb)

    def triplets(self) -> Triplets:
        """Return one triplet for every anchor-positive pair whose anchor has a negative."""
        parts = [self.triplets_of_few()] if self.few_pairs else []
        parts += [listed(anchors, rows) for anchors, _, rows in self.sorted_rows()]
        if not parts:
            nothing = self.labels.new_empty(0, dtype=torch.long)
            return Triplets(nothing, nothing, nothing, nothing.bool())
        return parts[0] if len(parts) == 1 else concatenate(parts)

    @torch.no_grad()
    def sorted_rows(self) -> Iterator[tuple[Tensor, Tensor, SortedRows]]:
        """Yield the anchors with many positives block by block, with their rows of distances and these sorted."""
        for anchors in self._blocks(self.many, SORT_COPIES):
            rows = self.dissimilarity.rows(anchors)
            is_negative = self.labels[anchors].long().unsqueeze(1) != self.ref_labels.long()
            yield anchors, rows, sort_rows(rows.clone(), is_negative, self._own(anchors))

    @torch.no_grad()
    def triplets_of_few(self) -> Triplets:
        """Return the triplets of the anchors with few positives."""
        # filled in place: small results kept between the blocks' large ones would pin freed memory
        positives = self.classes.table(self.few, self.width)
        negatives, is_farther = torch.empty_like(positives), torch.empty_like(positives, dtype=torch.bool)
        start = 0
        for anchors in self._blocks(self.few, self.width + 2):
            block = slice(start, start := start + len(anchors))
            rows = self.dissimilarity.rows(anchors)
            negatives[block], is_farther[block] = nearest_farther(rows, positives[block], self._own(anchors))
        table = Triplets(self.few.unsqueeze(1).expand_as(positives), positives, negatives, is_farther)
        if self.few_pairs == table.positives.numel():
            return Triplets(*(column.flatten() for column in table))
        count = self.classes.positives[self.few].unsqueeze(1)
        is_pair = torch.arange(self.width, device=count.device) < count
        return Triplets(*(column[is_pair] for column in table))

    def _own(self, anchors: Tensor) -> Tensor | None:
        return anchors if self.classes.rank is not None else None

    def _blocks(self, anchors: Tensor, copies: int) -> Iterable[Tensor]:
        if not len(anchors):
            return ()
        elements = self.dissimilarity.row_elements + copies * len(self.ref_labels)
        return torch.split(anchors, self.block_size or max(MIN_ROWS, block_elements(anchors.device) // elements))


def listed(anchors: Tensor, rows: SortedRows) -> Triplets:
    """Return the triplets of one block of sorted rows."""
    row, place = rows.is_positive.nonzero(as_tuple=True)
    columns = (rows.columns, rows.negatives, rows.is_farther)
    return Triplets(anchors[row], *(column[row, place] for column in columns))


def concatenate(parts: Iterable[Triplets]) -> Triplets:
    """Return the triplets of all ``parts``, one behind the other."""
    return Triplets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def block_elements(device: torch.device) -> int:
    """Return how many numbers a block may hold: what a CPU is quickest with, or a share of a GPU's free memory."""
    if device.type != "cuda":
        return CPU_ELEMENTS
    return min(GPU_ELEMENTS, int(torch.cuda.mem_get_info(device)[0]) // 64)
