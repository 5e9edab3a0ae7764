"""Euclidean distance and cosine similarity, from squared distances between shifted embeddings.

|x|^2 + |y|^2 - 2 x.y keeps few digits for embeddings that nearly collapsed. Squared distances do not change under a
common shift, so the embeddings are normalized in double precision, shifted by one of them and scaled by a power of two
before they are rounded; both are exact on a lattice, where ties are real. Cosine similarity orders alike.
"""

from functools import cached_property

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, LpDistance
from torch import Tensor

from pml_extensions._semi_hard.shipped import Shipped, pick


def is_euclidean(distance: BaseDistance) -> bool:
    """Return whether a distance is a monotone function of squared Euclidean distances."""
    cosine = type(distance) is CosineSimilarity and distance.power == 1 and distance.normalize_embeddings
    return distance.p == 2 and (cosine or type(distance) is LpDistance)


class Euclidean(Shipped):
    """Euclidean distance to any power, or cosine similarity."""

    def __init__(self, distance: BaseDistance, x: Tensor, y: Tensor) -> None:
        self.wide = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no double
        self.power = 2 if distance.is_inverted else distance.power
        wide = x.to(self.wide)
        super().__init__(distance, wide, wide if y is x else y.to(self.wide))
        with torch.no_grad():
            shift = self.y.index_select(0, (self.y - self.y.mean(0)).square().sum(1).argmin(0, keepdim=True))
            exponent = torch.frexp((self.y - shift).abs().amax())[1]
            self.unit = torch.ldexp(shift.new_ones(()), exponent)
        self.x = ((self.x - shift) / self.unit).to(x.dtype)
        self.y = self.x if y is x else ((self.y - shift) / self.unit).to(x.dtype)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """What ``rows`` are differentiable functions of: the embeddings, and the squared lengths of the references."""
        dtype = self.x.dtype if self.power == 2 else self.wide  # a root magnifies what rounding leaves
        x, y = self.x.to(dtype), self.y.to(dtype)
        return x, y, y.square().sum(1)

    def rows(self, anchors: Tensor, *tensors: Tensor) -> Tensor:
        """Return squared distances of each of ``anchors`` to all references, (b, R), up to a constant for each row."""
        x, y, squares = tensors
        x = x.index_select(0, anchors)
        rows = torch.addmm(squares, x, y.T, alpha=-2)
        return rows if self.power == 2 else rows + x.square().sum(1, keepdim=True)

    @torch.no_grad()
    def order(self, anchors: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return, for each of ``anchors``, numbers in the order of its distances to all references, (b, R)."""
        unique, squares, inverse = self._distinct
        if rows is None or inverse is not None:
            rows = torch.addmm(squares, self.x.index_select(0, anchors), unique.T, alpha=-2)
            rows = rows if inverse is None else rows.index_select(1, inverse)
        rows = rows.to(self.x.dtype)
        return rows if self.power > 0 else rows * self.power

    def gaps_in(self, rows: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return by how much each positive is farther than its negative, (b, k), both being columns of ``rows``."""
        if self.power == 2:  # the constants of the rows are in both
            return (pick(rows, positives) - pick(rows, negatives)) * self._scale
        return self._at(rows, anchors, positives) - self._at(rows, anchors, negatives)

    def _at(self, rows: Tensor, anchors: Tensor, columns: Tensor) -> Tensor:
        squares = pick(rows, columns).clamp_min(0)
        if self._names is not None:
            ours, theirs = self._names
            squares = squares.masked_fill(ours[anchors].unsqueeze(1) == theirs[columns], 0)
        return self._of_squares(squares).to(self.x.dtype)

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The distinct references, their squares, and each reference's place among them; None if all are distinct."""
        unique, inverse = distinct(self.y.detach())
        return unique, unique.square().sum(1), inverse

    @cached_property
    def _names(self) -> tuple[Tensor, Tensor] | None:
        """Numbers for the anchors and the references, the same for equal embeddings; None if all are distinct."""
        if self.y is self.x:
            names = self._distinct[2]
            return None if names is None else (names, names)
        names = distinct(torch.cat([self.x, self.y]).detach())[1]
        return None if names is None else (names[: len(self.x)], names[len(self.x) :])

    def _pairs(self, anchors: Tensor, references: Tensor) -> Tensor:
        differences = self.x.index_select(0, anchors) - self.y.index_select(0, references)
        return self._of_squares(differences.square().sum(1))

    @property
    def _scale(self) -> Tensor:
        """The factor of squared distances in their own unit, half of them for cosine similarity, 1 - |x - y|^2 / 2."""
        scale: Tensor = self.unit.square() / (2 if self.distance.is_inverted else 1)
        return scale.to(self.x.dtype)

    def _of_squares(self, squares: Tensor) -> Tensor:
        if self.power == 2:
            values = squares * self._scale
            return values - 1 if self.distance.is_inverted else values
        return root(squares) ** self.power * self.unit.to(squares.dtype) ** self.power


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
