"""How far apart two embeddings are, in two forms: a block of rows for mining, chosen pairs for a loss.

Larger is farther in both, for similarities too. Plain Euclidean distances (and cosine similarity, which orders alike)
do not go through ``distance.forward``: |x|^2 + |y|^2 - 2 x.y keeps few digits for embeddings that nearly collapsed.
Squared distances do not change under a common shift, so the embeddings are normalized in double precision, shifted by
one of them and scaled by a power of two before they are rounded; both are exact on a lattice, where ties are real.
"""

from functools import cached_property

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PAIR_ELEMENTS = 1 << 25  # numbers in the differences of one run of pairs; more pairs are taken run by run


class Dissimilarity:
    """A distance of pytorch-metric-learning between ``embeddings`` (B, d) and ``ref_emb`` (R, d)."""

    def __init__(self, distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> None:
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, ref_emb.dtype), torch.float32)
        self.distance = distance
        self.x = embeddings.to(dtype)
        self.y = self.x if ref_emb is embeddings else ref_emb.to(dtype)

    @property
    def row_elements(self) -> int:
        """How many numbers one row of a block takes: a distance that we do not know may hold (b, R, d) differences."""
        return len(self.y) if isinstance(self.distance, LpDistance | DotProductSimilarity) else self.y.numel()

    def rows(self, anchors: Tensor) -> Tensor:
        """Return the order of all references seen from each of ``anchors``: (b, R), up to a constant per row."""
        return self._signed(self.distance(self.x[anchors], self.y))

    def of_rows(self, rows: Tensor, anchors: Tensor) -> Tensor:  # noqa: ARG002
        """Turn what ``rows`` returned into dissimilarities."""
        return rows

    def gradient(self, rows: Tensor, anchors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the gradient of (weights * of_rows(rows)).sum() for x at the anchors and for y."""
        with torch.enable_grad():
            x, y = self.x[anchors].detach().requires_grad_(), self.y.detach().requires_grad_()
            x_grad, y_grad = torch.autograd.grad(self._signed(self.distance(x, y)), (x, y), weights)
        return x_grad, y_grad

    def pairs(self, anchors: Tensor, references: Tensor) -> Tensor:
        """Return the dissimilarity of each pair, (t,), holding at most ``PAIR_ELEMENTS`` differences at once."""
        step = max(1, PAIR_ELEMENTS // max(1, self.x.shape[1]))
        if len(anchors) <= step:
            return self._pairs(self.x, self.y, anchors, references)
        runs = zip(torch.split(anchors, step), torch.split(references, step), strict=True)
        return torch.cat([checkpoint(self._pairs, self.x, self.y, a, r, use_reentrant=False) for a, r in runs])

    def _pairs(self, x: Tensor, y: Tensor, anchors: Tensor, references: Tensor) -> Tensor:
        distance = self.distance
        a, r = (distance.maybe_normalize(z.index_select(0, i)) for z, i in ((x, anchors), (y, references)))
        if type(distance) is LpDistance:  # the host's pairwise form adds 1e-6 to every difference, its matrix does not
            values: Tensor = torch.linalg.vector_norm(a - r, ord=distance.p, dim=1)
        else:
            values = distance.pairwise_distance(a, r)
        return self._signed(values**distance.power)

    def _signed(self, values: Tensor) -> Tensor:
        return -values if self.distance.is_inverted else values


class EuclideanDissimilarity(Dissimilarity):
    """Euclidean distance or cosine similarity, ordered by squared distances between shifted embeddings."""

    def __init__(self, distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> None:
        super().__init__(distance, embeddings, ref_emb)
        dtype, wide = self.x.dtype, torch.float32 if self.x.device.type == "mps" else torch.float64  # MPS has no double
        x = distance.maybe_normalize(self.x.to(wide))
        y = x if self.y is self.x else distance.maybe_normalize(self.y.to(wide))
        with torch.no_grad():
            shift = y.index_select(0, (y - y.mean(0)).square().sum(1).argmin(0, keepdim=True))
            exponent = torch.frexp((y - shift).abs().amax())[1]
            self.unit = torch.ldexp(y.new_ones(()), exponent)
        x, y = (x - shift) / self.unit, None if y is x else (y - shift) / self.unit
        self.x = x.to(dtype)
        self.y = self.x if y is None else y.to(dtype)

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        y, inverse = distinct(self.y.detach())
        return y.T, y.square().sum(1), inverse

    def rows(self, anchors: Tensor) -> Tensor:
        columns, squares, inverse = self._columns
        rows = torch.addmm(squares, self.x.index_select(0, anchors), columns, alpha=-2)
        return rows if inverse is None else rows.index_select(1, inverse)

    def of_rows(self, rows: Tensor, anchors: Tensor) -> Tensor:
        return self._of_squares(self._squares(rows, anchors))

    def gradient(self, rows: Tensor, anchors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            squares = self._squares(rows, anchors).requires_grad_()
            (weights,) = torch.autograd.grad(self._of_squares(squares), squares, weights)
        x, y = self.x.index_select(0, anchors), self.y
        x_grad = weights.sum(1, keepdim=True) * x - weights @ y
        y_grad = weights.sum(0).unsqueeze(1) * y - weights.T @ x
        return 2 * x_grad, 2 * y_grad

    def _squares(self, rows: Tensor, anchors: Tensor) -> Tensor:
        return (rows + self.x.index_select(0, anchors).square().sum(1, keepdim=True)).clamp_min_(0)

    def _pairs(self, x: Tensor, y: Tensor, anchors: Tensor, references: Tensor) -> Tensor:
        return self._of_squares((x.index_select(0, anchors) - y.index_select(0, references)).square().sum(1))

    def _of_squares(self, squares: Tensor) -> Tensor:
        unit = self.unit.to(squares.dtype)
        if self.distance.is_inverted:
            return squares * (unit.square() / 2) - 1
        power = self.distance.power
        return squares * unit.square() if power == 2 else root(squares) ** power * unit**power


def root(squares: Tensor) -> Tensor:
    """Return the square root, with gradient zero at zero."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


def distinct(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the distinct rows and each row's place among them, which is None if all are distinct.

    A matrix product may round equal columns differently, by where they stand. Taking each distinct column once makes
    the distances to duplicates equal to the bit.
    """
    squares = (rows.double() if rows.device.type != "mps" else rows).square().sum(1).sort().values
    if not (squares[1:] == squares[:-1]).any():
        return rows, None
    unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
    return (rows, None) if len(unique) == len(rows) else (unique, inverse)


def dissimilarity(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> Dissimilarity:
    """Return the form of ``distance`` that suits it best."""
    euclidean = type(distance) is LpDistance and distance.p == 2 and distance.power > 0
    cosine = type(distance) is CosineSimilarity and distance.p == 2 and distance.power == 1
    return (EuclideanDissimilarity if euclidean or cosine else Dissimilarity)(distance, embeddings, ref_emb)
