"""The singular values and the polar factor of a matrix, by eigenproblems of the smaller Gram matrix.

A Gram matrix squares the condition number: computed with the rounding error eps, its eigenvalue w carries the error
eps * w_max / w. The directions for which that is too much are split off, and what the matrix is along them, now of a
smaller norm, is decomposed in the same way, in double precision. So a batch that is well spread pays for one
eigenproblem in its own precision and a small one for the few directions that it hardly uses; a batch that is nearly
collapsed, which a few products show, is treated in double precision from the start.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

ACCURACY = {torch.float32: 1e-5, torch.float64: 1.5e-8}
"""The relative error up to which an eigenvalue is trusted, by the precision of the matrix."""

CROWDED = 0.25
"""A matrix that lies mainly in less than this share of its directions is decomposed in double precision at once."""

PROBES = 8
"""So many vectors tell whether a matrix is crowded."""

SQUARES_SAFELY = (1e-8, 1e8)
"""A matrix whose largest entry lies between is squared as it is; any other is scaled first."""


class Holders(Protocol):
    """The processes that hold the rows of a matrix."""

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of every process's ``part``."""

    def agree(self, count: int, like: Tensor) -> int:
        """Return one count for all processes, from those that each of them found."""


class Alone:
    """All rows are here."""

    def total(self, part: Tensor) -> Tensor:
        """Return ``part``."""
        return part

    def agree(self, count: int, like: Tensor) -> int:  # noqa: ARG002 (the form of Holders)
        """Return ``count``."""
        return count


@dataclass(frozen=True)
class Precision:
    """What a matrix is decomposed in, and to."""

    given: torch.dtype
    wide: torch.dtype

    @classmethod
    def of(cls, matrix: Tensor) -> "Precision":
        """Return that of a ``matrix``; Apple's GPUs have no double precision."""
        return cls(matrix.dtype, torch.float32 if matrix.device.type == "mps" else torch.float64)

    @property
    def null(self) -> float:
        """The share of the largest singular value up to which one counts as zero.

        Two roundings of every entry, of the embedding and of its normalisation, move a singular value by eps of the
        Frobenius norm at the most; products in the wide precision, by a few of its own.
        """
        return max(torch.finfo(self.given).eps, 5 * torch.finfo(self.wide).eps)

    def distrusted(self, computed_in: torch.dtype) -> float:
        """Return the share of the largest eigenvalue up to which another one is not trusted."""
        return torch.finfo(computed_in).eps / ACCURACY[self.given]


def singular_values_and_polar_factor(
    tall: Tensor,
    among: Holders = Alone(),  # noqa: B008 (holds nothing)
) -> tuple[Tensor, Tensor]:
    """Return the singular values (k), ascending, and the polar factor (n, k) of a finite matrix (n, k) with n >= k.

    Directions that count as zero (``Precision.null``) have the value 0 and no part in the polar factor: of all
    subgradients of the nuclear norm, that one has the least norm. ``tall`` may be some of the rows of a matrix that
    lies ``among`` several processes; so is the polar factor then.
    """
    values, polar = _decompose(tall, Precision.of(tall), among, null=None)
    return values.to(tall.dtype), polar


def _decompose(part: Tensor, precision: Precision, among: Holders, null: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both for a ``part`` of a matrix whose singular values count as zero up to ``null``."""
    if part.dtype != precision.wide and among.agree(int(is_crowded(part)), part):
        part = part.to(precision.wide)
    gram = among.total(part.mT @ part)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    values = eigenvalues.clamp_min(0).sqrt()
    null = precision.null * values[-1] if null is None else null
    unresolved = int((eigenvalues <= precision.distrusted(part.dtype) * eigenvalues[-1]).sum())
    unresolved = among.agree(len(values) if values[-1] <= null else unresolved, gram)
    if unresolved == len(values):
        return torch.zeros_like(values), torch.zeros_like(part, dtype=precision.given)

    values, resolved, rest = values[unresolved:], vectors[:, unresolved:], vectors[:, :unresolved]
    left = part @ (resolved / values)
    polar = left.to(precision.given) @ resolved.mT.to(precision.given)
    if unresolved:
        along = part.to(precision.wide) @ rest.to(precision.wide)
        # Rounding tilts the rest a little towards the large directions; what is left of them must not enter its norm.
        along -= left @ among.total(left.mT @ along.to(left.dtype))
        rest_values, rest_polar = _decompose(along, precision, among, null)
        values = torch.cat([rest_values, values])
        polar.addmm_(rest_polar, rest.mT.to(precision.given))
    return values, polar


def is_crowded(tall: Tensor) -> bool:
    """Return whether a matrix lies mainly in few directions, so that the others are small beside them.

    The square of its Gram matrix's trace over that of the Frobenius norm is their number, if they are equal. The norm
    is estimated by products with a few vectors of random-looking entries (Hutchinson, 1990), always the same ones.
    """
    width = tall.shape[1]
    angles = torch.arange(1, width + 1, device=tall.device, dtype=tall.dtype).square()[:, None]
    probes = (angles * torch.arange(1, PROBES + 1, device=tall.device, dtype=tall.dtype)).cos()
    squared_norm = (tall.mT @ (tall @ probes)).square().sum() * 2 / PROBES  # the mean of a squared cosine is one half
    return bool(tall.square().sum().square() < CROWDED * width * squared_norm)


def safe_scale(largest: float) -> float:
    """Return what to divide a matrix by, whose ``largest`` entry is known, so that it can be squared."""
    return 1.0 if largest == 0 or SQUARES_SAFELY[0] < largest < SQUARES_SAFELY[1] else largest


@torch.library.custom_op("pml_extensions::decompose", mutates_args=())
def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values (*, min(m, n)), ascending, and the polar factors (*, m, n) of matrices (*, m, n).

    The matrices are float32 or float64. An entry that is not finite makes its matrix's results NaN. As an operator of
    its own it is opaque to ``torch.compile``, knows its shapes without data, and ``autocast`` does not reach into it.
    It has no gradient.
    """
    if matrix.ndim == 2:
        return _of_matrix(matrix)
    *batch, m, n = matrix.shape
    values, polar = matrix.new_empty(*batch, min(m, n)), matrix.new_empty(matrix.shape)
    for index in product(*map(range, batch)):
        values[index], polar[index] = _of_matrix(matrix[index])
    return values, polar


@decompose.register_fake
def _(matrix: Tensor) -> tuple[Tensor, Tensor]:
    *batch, m, n = matrix.shape
    return matrix.new_empty(*batch, min(m, n)), matrix.new_empty(matrix.shape)


def _of_matrix(matrix: Tensor) -> tuple[Tensor, Tensor]:
    least, most = torch.aminmax(matrix)
    scale = float(torch.maximum(-least, most))
    if not math.isfinite(scale):
        return matrix.new_full((min(matrix.shape),), math.nan), matrix.new_full(matrix.shape, math.nan)
    scale = safe_scale(scale)
    is_tall = matrix.shape[0] >= matrix.shape[1]
    tall = matrix if is_tall else matrix.mT
    with torch.autocast(matrix.device.type, enabled=False):
        values, polar = singular_values_and_polar_factor(tall if scale == 1 else tall / scale)
    return values * scale, (polar if is_tall else polar.mT).contiguous()
