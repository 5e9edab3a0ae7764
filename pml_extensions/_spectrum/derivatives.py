"""The nuclear norm of a matrix, twice differentiable in every mode of PyTorch: backward, forward and ``torch.func``.

Its gradient is the polar factor P = U V^T. With the singular values s of a matrix of full rank, the change of P along
a change D of the matrix is, in the basis of U and V, (D_ij - D_ji) / (s_i + s_j), and D_ij / s_j where one side has no
vector of that number (Higham, Functions of Matrices, 2008, chapter 8).
This map is linear and its own adjoint, so that forward and backward differentiation share it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

from pml_extensions._spectrum.decomposition import Precision, decompose

NO_THIRD_DERIVATIVE = (
    "the mean singular value has no third derivative here: take "
    "torch.linalg.svdvals(embeddings).sum() / embeddings.shape[1] instead, which has it where no two singular values "
    "are equal"
)


def nuclear_norm(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nuclear norms (*) of matrices (*, m, n), and their singular values (*, min(m, n)), ascending.

    The matrices are float32 or float64. Only the norm has a gradient; its third derivative raises a RuntimeError. An
    entry that is not finite makes its matrix's results NaN.
    """
    norm, values, _ = differentiable(matrix, torch.compiler.is_compiling())
    return norm, values


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def differentiable(matrix: Tensor, compiling: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what NuclearNorm does, as one node of a graph."""
    return NuclearNorm.apply(matrix, compiling)  # type: ignore[no-any-return]


@contextmanager
def below(ctx: Any) -> Iterator[list[Tensor]]:
    """Hand a ``jvp`` what its ``ctx`` saved, so that an outer forward differentiation reaches into it.

    PyTorch switches forward differentiation off inside a ``jvp``, for every level at once.
    """
    with _set_fwd_grad_enabled(mode=True):
        yield [unpack_dual(saved, level=0).primal for saved in ctx.saved_tensors]  # type: ignore[no-untyped-call]


class NuclearNorm(Function):
    """The norm, the singular values and the polar factor, which is kept for the gradient."""

    @staticmethod
    def forward(matrix: Tensor, compiling: bool) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG004
        """Return all three; the last two have no gradient."""
        values, polar = decompose(matrix)
        return values.sum(-1), values, polar

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep what the derivatives need."""
        matrix, ctx.compiling = inputs
        _, values, polar = output
        ctx.mark_non_differentiable(values, polar)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(matrix, values, polar)
        ctx.save_for_forward(matrix, values, polar)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor) -> tuple[Tensor | None, None]:
        """Return the gradient."""
        if grad is None:
            return None, None
        matrix, _, polar = ctx.saved_tensors
        tangent = unpack_dual(matrix).tangent  # type: ignore[no-untyped-call]
        if torch.is_grad_enabled() or tangent is not None:  # the gradient is differentiated in turn
            polar = PolarFactor.apply(*ctx.saved_tensors)
        scale = Tied.apply(grad, matrix) if ctx.compiling else grad
        return scale[..., None, None] * polar, None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, _: None) -> tuple[Tensor, None, None]:
        """Return the change of the norm."""
        with below(ctx) as saved:
            return (PolarFactor.apply(*saved) * change).sum((-2, -1)), None, None

    @staticmethod
    def vmap(
        _info: Any, in_dims: tuple[int, None], matrix: Tensor, compiling: bool
    ) -> tuple[Any, tuple[int, int, int]]:
        """Take one more dimension of matrices."""
        return NuclearNorm.apply(matrix.movedim(in_dims[0], 0), compiling), (0, 0, 0)


@torch.library.custom_op("pml_extensions::tied", mutates_args=())
def tied(tensor: Tensor, matrix: Tensor) -> Tensor:  # noqa: ARG001
    """Return a copy of ``tensor``, which a compiler must believe to depend on ``matrix``."""
    return tensor.clone()


@tied.register_fake
def _(tensor: Tensor, matrix: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(tensor)


class Tied(Function):
    """Hand a tensor through; a graph that AOTAutograd compiles then keeps the matrix, not just its polar factor.

    From the requirements of what is kept it sees at run time that a second derivative is asked for, which it refuses.
    """

    @staticmethod
    def forward(tensor: Tensor, matrix: Tensor) -> Tensor:
        """Return a copy of ``tensor``."""
        return tied(tensor, matrix)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return ``grad``."""
        return grad, None

    @staticmethod
    def jvp(_ctx: Any, change: Tensor, _: Tensor) -> Tensor:
        """Return ``change``."""
        return change.view_as(change)

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[Any, Any], tensor: Tensor, matrix: Tensor) -> tuple[Any, Any]:
        """Take one more dimension as it comes."""
        return Tied.apply(tensor, matrix), in_dims[0]


class PolarFactor(Function):
    """A polar factor that is known already, tied to its matrix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, values: Tensor, polar: Tensor) -> Tensor:  # noqa: ARG004 (kept for the derivatives)
        """Return ``polar``."""
        return polar.view_as(polar)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        """Keep what the derivatives need."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient for the matrix."""
        return change_of_polar_factor(grad, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: Tensor) -> Tensor:
        """Return the change of the polar factor."""
        with below(ctx) as saved:
            return change_of_polar_factor(change, *saved)


def change_of_polar_factor(change: Tensor, matrix: Tensor, values: Tensor, polar: Tensor) -> Tensor:
    """Return the change of ``polar`` along a ``change`` of its ``matrix``, differentiable by the former alone."""
    rank = (values > 0).sum(-1, keepdim=True)
    return ChangeOfPolarFactor.apply(change, NoThirdDerivative.apply(matrix), rank, polar)  # type: ignore[no-any-return]


class ChangeOfPolarFactor(Function):
    """The change of a polar factor along a change of its matrix; linear in the latter, and its own adjoint."""

    generate_vmap_rule = True

    @staticmethod
    def forward(change: Tensor, matrix: Tensor, rank: Tensor, polar: Tensor) -> Tensor:
        """Return the change of ``polar``."""
        return polar_change(change, matrix, rank, polar)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep what the derivatives need."""
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient for the change."""
        return ChangeOfPolarFactor.apply(grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: Tensor) -> Tensor:
        """Return the result for the change's change."""
        with below(ctx) as saved:
            return ChangeOfPolarFactor.apply(change, *saved)  # type: ignore[no-any-return]


class NoThirdDerivative(Function):
    """Hand a matrix through, and refuse to differentiate by it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        """Return ``matrix``."""
        return matrix.view_as(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> Tensor:
        """Refuse."""
        raise RuntimeError(NO_THIRD_DERIVATIVE)

    @staticmethod
    def jvp(_ctx: Any, _change: Tensor) -> Tensor:
        """Refuse."""
        raise RuntimeError(NO_THIRD_DERIVATIVE)


def polar_change(change: Tensor, matrix: Tensor, rank: Tensor, polar: Tensor) -> Tensor:
    """Return the change of a matrix's ``polar`` factor (*, m, n) along a ``change`` of the ``matrix``.

    Only the ``rank`` (*, 1) largest singular values count: those directions that are null stay so.
    """
    finite = polar.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    wide = Precision.of(matrix).wide
    D = change.to(wide)
    U, s, Vh = torch.linalg.svd(torch.where(finite, matrix, 0).to(wide), full_matrices=False)
    counts = torch.arange(s.shape[-1], device=s.device) < rank
    U, Vh = U * counts[..., None, :], Vh * counts[..., None]
    inverse = torch.where(counts, 1 / torch.where(counts, s, 1), 0)
    sums = s[..., None] + s[..., None, :]
    A = U.mT @ D @ Vh.mT
    turned = U @ ((A - A.mT) / torch.where(sums == 0, 1, sums)) @ Vh
    left = (D @ Vh.mT - U @ A) * inverse[..., None, :] @ Vh
    right = U * inverse[..., None, :] @ (U.mT @ D - A @ Vh)
    return torch.where(finite, turned + left + right, torch.nan).to(polar.dtype)
