"""Triplet loss over the semi-hard triplets of a batch, one for every anchor-positive pair.

Source: Schroff, Kalenichenko and Philbin, FaceNet, arXiv:1503.03832; with the fallback and the mean over all pairs of
TensorFlow Addons' ``triplet_semihard_loss``, as in Taha et al., arXiv:1901.08616. Here an anchor without a negative has
no triplet, and a batch without triplets gives zero.
"""

import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import MeanReducer, MultipleReducers
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._host import (
    TripletIndices,
    as_triplets,
    check_parts,
    is_as_shipped,
    per_triplet,
    record,
    reduced,
    unreduced,
    wrapper_was_given_no_indices,
)
from pml_extensions._semi_hard import (
    Block,
    Dissimilarity,
    SemiHardMining,
    Shipped,
    check_batch,
    dissimilarity,
    precision,
    sum_at_once,
)
from pml_extensions._settings import check_flag, check_integer, check_number
from pml_extensions.losses._empty_batches import call_with_rows

__all__ = ["SemiHardTripletLoss"]


@checked_constructor
class SemiHardTripletLoss(BaseMetricLossFunction):
    r"""The mean, over all anchor-positive pairs of a batch, of max(d(a, p) - d(a, n) + margin, 0).

    n is the nearest negative farther from the anchor than the positive or, where there is none, the farthest negative.

    Args:
        margin: how much farther than the positive a negative must be to cost nothing, in units of the distance.
        smooth_loss: take log(1 + exp(d(a, p) - d(a, n) + margin)), as in pytorch-metric-learning's TripletMarginLoss.
        block_size: anchors mined at once; None chooses by the memory at hand. It does not change the result.
        **kwargs: as for every loss of pytorch-metric-learning: ``distance`` (by default ``LpDistance(power=2)``),
            ``reducer`` (by default ``MeanReducer()``, which counts the pairs that cost nothing),
            ``embedding_regularizer``, ``embedding_reg_weight``, ``collect_stats``.

    Shape:
        embeddings (B, d) and labels (B,), integers; optionally ``indices_tuple``, triplets or pairs that are used in
        place of the semi-hard ones, ref_emb (R, d) and ref_labels (R,). The result is a scalar, float32 or wider.

    Raises:
        ValueError: for embeddings and labels of the wrong shape, or a margin that is not finite.
        TypeError: for embeddings that are not floating-point tensors, or labels that are not integers.

    Examples:
        >>> loss = SemiHardTripletLoss()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> round(loss.item(), 4)  # no negative is farther than a positive: the farthest is as far
        0.2
    """

    def __init__(
        self, margin: float = 0.2, smooth_loss: bool = False, block_size: int | None = None, **kwargs: Any
    ) -> None:
        check_parts(kwargs)
        super().__init__(**kwargs)
        if block_size is not None:
            check_integer("block_size", block_size, least=1)
        check_number("margin", margin)
        check_flag("smooth_loss", smooth_loss)
        self.margin: float | Tensor = margin
        self.smooth_loss = smooth_loss
        self.block_size = block_size
        self._warned = False
        record(self, settings=["margin"])

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"margin={self.margin}, smooth_loss={self.smooth_loss}, block_size={self.block_size}"

    def get_default_distance(self) -> LpDistance:
        """Return squared Euclidean distance between unit vectors."""
        return LpDistance(power=2)

    def get_default_reducer(self) -> MeanReducer:
        """Return the mean over all triplets."""
        return MeanReducer()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """Check the batch and return what the reducer makes of its losses: a scalar, or a dict (DoNothingReducer)."""
        check_batch(self.distance, embeddings, labels, ref_emb, ref_labels)
        if indices_tuple is None and (labels is None or (ref_emb is not None and ref_labels is None)):
            raise ValueError(
                "labels (and ref_labels for ref_emb) are needed to mine triplets; pass them or indices_tuple"
            )
        wide = precision(self.distance, embeddings.dtype)  # the host adds up sub-losses in it
        given = (embeddings.to(wide), labels, indices_tuple, ref_emb, ref_labels)
        return call_with_rows(self, len(embeddings), super().forward, *given)

    def loss_terms(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return what the reducer would get, of the same arguments as for a call.

        Returns:
            ``{"loss": {"losses": one for each triplet, "indices": the triplets, ...}}``, with "embedding_reg_loss" if
            there is a regularizer; without "loss" if there is no triplet.
        """
        with unreduced(self):
            terms = self(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        found = {name: dict(term) for name, term in terms.items() if isinstance(term["losses"], Tensor)}
        if "loss" in found:
            found["loss"]["indices"] = TripletIndices(*found["loss"]["indices"])
        return found

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how many triplets there are, the labels' values tell
    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> dict[str, Any]:
        """Return the losses of the triplets, given or mined, in pytorch-metric-learning's form."""
        with torch.autocast(embeddings.device.type, enabled=False):
            if indices_tuple is not None:
                triplets = as_triplets(indices_tuple, embeddings, ref_emb)
                self._warn_of_all_pairs(indices_tuple)
                if not len(triplets.anchors):
                    return dict(self.zero_losses())
                return self._of_triplets(dissimilarity(self.distance, embeddings, ref_emb), triplets)
            mining = SemiHardMining(self.distance, embeddings, labels, ref_emb, ref_labels, block_size=self.block_size)
            if not mining.pairs:
                return dict(self.zero_losses())
            if len(mining.many) and self._takes_the_mean() and isinstance(mining.dissimilarity, Shipped):
                return {"loss": reduced(self._sum(mining, mining.dissimilarity) / mining.pairs)}
            return self._of_triplets(mining.dissimilarity, TripletIndices(*mining.triplets()[:3]))

    def _warn_of_all_pairs(self, indices_tuple: tuple[Tensor, ...]) -> None:
        if len(indices_tuple) == 4 and not self._warned and wrapper_was_given_no_indices():
            self._warned = True
            warnings.warn(
                "DistributedLossWrapper(SemiHardTripletLoss(), efficient=True) was called without triplets: it hands "
                "over all pairs, whose triplets are not the semi-hard ones. Pass it the indices_tuple that "
                "DistributedMinerWrapper(SemiHardMiner(), efficient=True) returns, or use efficient=False",
                stacklevel=2,
            )

    def _of_triplets(self, distances: Dissimilarity, triplets: TripletIndices) -> dict[str, Any]:
        return {"loss": per_triplet(self._losses(distances.gaps(*triplets), self.margin), triplets)}

    def _sum(self, mining: SemiHardMining, distances: Shipped) -> Tensor:
        margin = self.margin if isinstance(self.margin, Tensor) else distances.x.new_tensor(self.margin)
        of_block = partial(self._sum_of_block, mining, distances)
        total = sum_at_once(of_block, mining.blocks_of_many, margin, *distances.tensors)
        if mining.few_pairs:
            total = total + self._losses(distances.gaps(*mining.few_triplets()[:3]), margin).sum()
        return total

    def _sum_of_block(
        self, mining: SemiHardMining, distances: Shipped, block: Block, margin: Tensor, *tensors: Tensor
    ) -> Tensor:
        rows = distances.rows(block.anchors, *tensors)
        positives, negatives, _ = mining.mine(block, distances.order(block.anchors, rows))
        return self._losses(distances.gaps_in(rows, block.anchors, positives, negatives), margin).sum()

    def _losses(self, gaps: Tensor, margin: float | Tensor) -> Tensor:
        losses: Tensor = F.softplus(gaps + margin) if self.smooth_loss else F.relu(gaps + margin)
        return losses

    def _takes_the_mean(self) -> bool:
        """Return whether the sum of all losses is all that the reducer needs, and it records nothing."""
        reducer = self.reducer
        if is_as_shipped(reducer, MultipleReducers):
            reducer = dict(reducer.reducers).get("loss", reducer.default_reducer)
        return is_as_shipped(reducer, MeanReducer) and not reducer.collect_stats
