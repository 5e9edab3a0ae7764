"""A miner of semi-hard triplets: for every anchor-positive pair the nearest negative that is farther than the positive.

Source: Schroff, Kalenichenko and Philbin, FaceNet, arXiv:1503.03832; used in two-head training by Taha et al.,
arXiv:1901.08616. pytorch-metric-learning's "semihard" triplets are another set: all that violate a margin without
being hard.
"""

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._host import check_parts, record
from pml_extensions._semi_hard import SemiHardMining, Triplets, check_batch
from pml_extensions._settings import check_integer

__all__ = ["SemiHardMiner"]


@checked_constructor
class SemiHardMiner(BaseMiner):
    """Mine, for every anchor-positive pair, the nearest negative that is farther from the anchor than the positive.

    Args:
        fallback: what a pair gets that has no such negative: "farthest" (the farthest negative) or None (no triplet).
        block_size: anchors taken at once; None chooses by the memory at hand. It does not change the result.
        **kwargs: as for every miner of pytorch-metric-learning: ``distance`` (by default ``LpDistance(power=2)``),
            ``collect_stats``.

    Shape:
        embeddings (B, d) and labels (B,), integers; optionally ref_emb (R, d) and ref_labels (R,).

    Returns:
        anchors, positives and negatives, three int64 tensors of shape (t,). An anchor is not its own positive unless
        ``ref_labels`` are given that are another tensor than ``labels``, as in pytorch-metric-learning. Anchors without
        a positive or without a negative give no triplet.

    Raises:
        ValueError: for an unknown fallback, or embeddings and labels of the wrong shape.
        TypeError: for labels that are not integers.

    With ``collect_stats`` these are recorded: ``num_triplets``, ``semi_hard_share`` and ``fallback_share`` of the
    anchor-positive pairs, ``anchors_without_positive``, and the triplets' mean ``pos_pair_dist`` and ``neg_pair_dist``.

    Examples:
        >>> anchors, positives, negatives = SemiHardMiner()(torch.randn(8, 4), torch.arange(8) // 2)
        >>> len(anchors)
        8
    """

    def __init__(self, fallback: str | None = "farthest", block_size: int | None = None, **kwargs: Any) -> None:
        check_parts(kwargs)
        super().__init__(**kwargs)
        if fallback not in ("farthest", None):
            raise ValueError(f'fallback must be "farthest" or None, got {fallback!r}')
        if block_size is not None:
            check_integer("block_size", block_size, least=1)
        self.fallback = fallback
        self.block_size = block_size
        stats = ["semi_hard_share", "fallback_share", "anchors_without_positive", "pos_pair_dist", "neg_pair_dist"]
        record(self, statistics=stats)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"fallback={self.fallback!r}, block_size={self.block_size}"

    def get_default_distance(self) -> LpDistance:
        """Return squared Euclidean distance between unit vectors."""
        return LpDistance(power=2)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Check the batch and mine it."""
        check_batch(self.distance, embeddings, labels, ref_emb, ref_labels)
        if labels is None or (ref_emb is not None and ref_labels is None):
            raise ValueError("labels (and ref_labels for ref_emb) are needed to mine triplets")
        triplets: tuple[Tensor, Tensor, Tensor] = super().forward(embeddings, labels, ref_emb, ref_labels)
        return triplets

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how many triplets there are, the labels' values tell
    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the triplets' anchors, positives and negatives."""
        with torch.autocast(embeddings.device.type, enabled=False):
            mining = SemiHardMining(self.distance, embeddings, labels, ref_emb, ref_labels, block_size=self.block_size)
            mined = mining.triplets()
            if self.fallback is None:
                mined = Triplets(*(column[mined.is_farther] for column in mined))
            if self.collect_stats:
                self._record(mining, mined)
        return mined.anchors, mined.positives, mined.negatives

    def _record(self, mining: SemiHardMining, mined: Triplets) -> None:
        size = mining.classes.size - int(mining.classes.rank is not None)
        self.anchors_without_positive = int((size == 0).sum())
        if not len(mined.anchors):
            return
        self.semi_hard_share = float(mined.is_farther.sum()) / mining.pairs
        self.fallback_share = float((~mined.is_farther).sum()) / mining.pairs
        sign = -1 if self.distance.is_inverted else 1
        pairs = mining.dissimilarity.pairs
        self.pos_pair_dist = sign * pairs(mined.anchors, mined.positives).mean().item()
        self.neg_pair_dist = sign * pairs(mined.anchors, mined.negatives).mean().item()
