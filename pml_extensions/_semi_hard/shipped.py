"""A distance that the host ships, by blocks of rows and by lists of pairs.

Every entry of its matrix is known to depend on two embeddings alone, so that both give what the whole matrix gives.
"""

import torch
from pytorch_metric_learning.distances import BaseDistance, DotProductSimilarity, LpDistance
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_extensions._host import record_norms

PAIR_ELEMENTS = 1 << 25  # numbers in the differences of one run of pairs; more pairs are taken run by run


class Shipped:
    """A distance of the host between the embeddings ``x`` (B, d), the anchors, and ``y`` (R, d), the references.

    Larger is farther, for similarities too. ``y`` is ``x`` itself if the anchors are the references.
    """

    def __init__(self, distance: BaseDistance, x: Tensor, y: Tensor) -> None:
        self.distance = distance
        self.x = distance.maybe_normalize(x)
        self.y = self.x if y is x else distance.maybe_normalize(y)
        record_norms(distance, x, y)

    @property
    def row_elements(self) -> int:
        """How many numbers a row of distances takes while it is computed: SNR holds (b, R, d) differences."""
        return len(self.y) if isinstance(self.distance, LpDistance | DotProductSimilarity) else self.y.numel()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What ``rows`` are differentiable functions of."""
        return self.x, self.y

    def rows(self, anchors: Tensor, *tensors: Tensor) -> Tensor:
        """Return what ``order`` and ``gaps_in`` make of each of ``anchors`` and all references, (b, R)."""
        x, y = tensors
        rows: Tensor = self.distance.compute_mat(x.index_select(0, anchors), y)
        return rows

    @torch.no_grad()
    def order(self, anchors: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return, for each of ``anchors``, numbers in the order of its distances to all references, (b, R)."""
        return self._values(self.rows(anchors, *self.tensors) if rows is None else rows)

    def gaps_in(self, rows: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:  # noqa: ARG002
        """Return by how much each positive is farther than its negative, (b, k), both being columns of ``rows``."""
        return self._values(pick(rows, positives)) - self._values(pick(rows, negatives))

    def gaps(self, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return by how much each positive is farther than its negative, (t,)."""
        return self.pairs(anchors, positives) - self.pairs(anchors, negatives)

    def pairs(self, anchors: Tensor, references: Tensor) -> Tensor:
        """Return the dissimilarity of each pair, (t,), holding at most ``PAIR_ELEMENTS`` differences at once."""
        step = max(1, PAIR_ELEMENTS // max(1, self.x.shape[1]))
        if len(anchors) <= step:
            return self._pairs(anchors, references)
        runs = zip(torch.split(anchors, step), torch.split(references, step), strict=True)
        return torch.cat([checkpoint(self._pairs, a, r, use_reentrant=False) for a, r in runs])

    def _pairs(self, anchors: Tensor, references: Tensor) -> Tensor:
        a, r = self.x.index_select(0, anchors), self.y.index_select(0, references)
        if isinstance(
            self.distance, LpDistance
        ):  # its pairwise form adds 1e-6 to every difference, its matrix does not
            return self._values(torch.linalg.vector_norm(a - r, ord=self.distance.p, dim=1))
        return self._values(self.distance.pairwise_distance(a, r))

    def _values(self, values: Tensor) -> Tensor:
        values = values if self.distance.power == 1 else values**self.distance.power
        return -values if self.distance.is_inverted else values


def pick(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``rows.gather(1, columns)``, without keeping the rows for the backward pass, as gather does."""
    begin = torch.arange(0, rows.numel(), rows.shape[1], device=rows.device).unsqueeze(1)
    return rows.flatten().index_select(0, (columns + begin).flatten()).view_as(columns)
