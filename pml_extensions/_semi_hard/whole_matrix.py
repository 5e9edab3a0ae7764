"""A distance of the user's own: only its matrix is known, and it is asked for once and whole, as the host asks."""

import torch
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor

from pml_extensions._host import has_matrix


class WholeMatrix:
    """The matrix of a distance between all anchors and all references, (B, R)."""

    row_elements = 0

    def __init__(self, distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> None:
        if not has_matrix(distance):
            raise NotImplementedError(
                "distance must define compute_mat(query_emb, ref_emb), which returns a (B, R) matrix; "
                f"{type(distance).__name__} does not, and pairwise_distance is not asked, here as in the host's losses"
            )
        self.distance = distance
        self.matrix: Tensor = distance(embeddings, ref_emb)

    @torch.no_grad()
    def order(self, anchors: Tensor) -> Tensor:
        """Return, for each of ``anchors``, numbers in the order of its distances to all references, (b, R)."""
        rows = self.matrix.detach().index_select(0, anchors)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return -rows if self.distance.is_inverted else rows

    def gaps(self, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return by how much each positive is farther than its negative, (t,)."""
        gaps: Tensor = self.distance.margin(self.matrix[anchors, positives], self.matrix[anchors, negatives])
        return gaps

    def pairs(self, anchors: Tensor, references: Tensor) -> Tensor:
        """Return the dissimilarity of each pair, (t,)."""
        pairs = self.matrix[anchors, references]
        return -pairs if self.distance.is_inverted else pairs
