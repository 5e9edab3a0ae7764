"""The nuclear norm of a matrix, its gradient and its spectrum, by eigenproblems of the smaller Gram matrix.

The gradient of the nuclear norm is the polar factor U V^T, so no singular vector of the larger side is needed. A Gram
matrix squares the condition number: of its eigenpairs only those within sqrt(eps) of the largest are trusted. They are
split off, and the rest of the matrix, now of a smaller norm, is treated in the same way. So a batch that is nearly
collapsed keeps the accuracy of a full SVD in its small directions, and a batch that is well spread pays for one
eigenproblem.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

NULL_DIRECTION = 10.0
"""Singular values up to this many rounding errors of the largest one count as zero."""

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


def singular_values_and_polar_factor(
    tall: Tensor,
    null: Tensor | None = None,
    among: Holders = Alone(),  # noqa: B008 (holds nothing)
) -> tuple[Tensor, Tensor]:
    """Return the singular values (k), ascending, and the polar factor (n, k) of a finite matrix (n, k) with n >= k.

    Directions whose singular value is at most ``null`` (default: ``NULL_DIRECTION`` * eps * the largest) have the
    value 0 and no part in the polar factor: of all subgradients of the nuclear norm, that one has the least norm.
    ``tall`` may be some of the rows of a matrix that lies ``among`` several processes; so is the polar factor then.
    """
    eps = torch.finfo(tall.dtype).eps
    eigenvalues, vectors = torch.linalg.eigh(among.total(tall.mT @ tall))
    values = eigenvalues.clamp_min(0).sqrt()
    null = NULL_DIRECTION * eps * values[-1] if null is None else null
    unresolved = int((eigenvalues <= math.sqrt(eps) * eigenvalues[-1]).sum())
    unresolved = among.agree(len(values) if values[-1] <= null else unresolved, tall)
    if unresolved == len(values):
        return torch.zeros_like(values), torch.zeros_like(tall)

    values = values[unresolved:]
    rest, resolved = vectors[:, :unresolved], vectors[:, unresolved:]
    polar = tall @ ((resolved / values) @ resolved.mT)
    if unresolved:
        # Rounding tilts the rest a little towards the large directions; what is left of them must not enter its norm.
        rest = rest - (resolved / values.square()) @ (resolved.mT @ among.total(tall.mT @ (tall @ rest)))
        rest_values, rest_polar = singular_values_and_polar_factor(tall @ rest, null, among)
        values = torch.cat([rest_values, values])
        polar.addmm_(rest_polar, rest.mT)
    return values, polar


def safe_scale(largest: float) -> float:
    """Return what to divide a matrix by, whose ``largest`` entry is known, so that it can be squared."""
    return 1.0 if largest == 0 or SQUARES_SAFELY[0] < largest < SQUARES_SAFELY[1] else largest


@torch.library.custom_op("pml_extensions::nuclear_norm", mutates_args=())
def nuclear_norm(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nuclear norm of a ``matrix`` (m, n), its singular values and its polar factor (m, n).

    The matrix is float32 or float64. Only the norm has a gradient; asking for its second derivative raises a
    RuntimeError. An entry that is not finite makes all three NaN. As an operator of its own it is opaque to
    ``torch.compile``, and ``autocast`` does not reach into it.
    """
    least, most = torch.aminmax(matrix)
    scale = float(torch.maximum(-least, most))
    if not math.isfinite(scale):
        values = matrix.new_full((min(matrix.shape),), math.nan)
        return values.sum(), values, torch.full_like(matrix, math.nan)
    scale = safe_scale(scale)
    is_tall = matrix.shape[0] >= matrix.shape[1]
    tall = matrix if is_tall else matrix.mT
    with torch.autocast(matrix.device.type, enabled=False):
        values, polar = singular_values_and_polar_factor(tall if scale == 1 else tall / scale)
    values = values * scale
    return values.sum(), values, (polar if is_tall else polar.mT).contiguous()


@nuclear_norm.register_fake
def _(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return matrix.new_empty(()), matrix.new_empty(min(matrix.shape)), torch.empty_like(matrix).contiguous()


class _OnceDifferentiable(torch.autograd.Function):
    """Hand the polar factor through, tied to its matrix, so that a second derivative is refused rather than lost."""

    @staticmethod
    def forward(_ctx: FunctionCtx, polar: Tensor, _matrix: Tensor) -> Tensor:
        return polar.view_as(polar)

    @staticmethod
    def backward(_ctx: FunctionCtx, _grad: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "the mean singular value has no second derivative here: differentiate it once, without create_graph=True, "
            "or take torch.linalg.svdvals(embeddings).sum() / embeddings.shape[1] instead"
        )


def _save(ctx: FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, values, polar = output
    ctx.mark_non_differentiable(values, polar)
    ctx.save_for_backward(polar, inputs[0])


def _backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> Tensor:
    return grad * _OnceDifferentiable.apply(*ctx.saved_tensors)  # type: ignore[attr-defined,no-any-return]


nuclear_norm.register_autograd(_backward, setup_context=_save)
