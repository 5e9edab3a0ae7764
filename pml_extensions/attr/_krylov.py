"""The least value of a quadratic on the unit sphere from products with its matrix alone, for a batch of quadratics.

The matrix Q of a map has a row for each place, but a low rank. The problem is solved within a space that grows by one
vector a product, h, Qh, Q^2 h, ..., until a bound says that nothing outside of it is better. Where the space closes
before that, for the rank is exhausted, it grows in other directions.

Source: Gould, Lucidi, Roma and Toint, Solving the trust-region subproblem using the Lanczos method, 1999. Other than
there: the basis is kept orthogonal to working precision, and where Q may be indefinite the space grows from a random
vector as well, so that it holds the lowest eigenvector, too.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pml_extensions.attr._sphere import minimize_on_sphere

Product = Callable[[Tensor], Tensor]

_FIRST_SIZE = 4
_PARALLEL = 1e-10  # what is left, beside a space, of a vector that lies in it
_TOLERANCE = 1e-13  # of the objective, over what the filter takes off it


def minimize_with_products(times_Q: Product, h: Tensor, preferred: Tensor, *, convex: bool) -> tuple[Tensor, Tensor]:
    """Return global minimisers f (b, n), ||f|| = 1, of f'Qf / 2 + h'f, and Qf (b, n).

    Args:
        times_Q: gives Qv (b, n) for v (b, n), each example with a symmetric Q of its own.
        h: (b, n), in the precision of the products.
        preferred: (b, n), a direction to take where many are as good.
        convex: whether every Q is known to be positive semidefinite.
    """
    space = _Space(times_Q, [h] if convex else [h, _noise(h, 0)], preferred)
    f, Qf, done = torch.zeros_like(h), torch.zeros_like(h), torch.zeros_like(h[:, :1], dtype=torch.bool)
    for size in _sizes(h.shape[1]):
        space.grow(size)
        inner = _minimum_within(space, h, preferred)
        f, Qf = (torch.where(done, old, _combined(inner, of)) for old, of in ((f, space.basis), (Qf, space.images)))
        done = done | (_gap(f, Qf, h, 0.0 if convex else space.least_eigenvalue()) <= _tolerance(f, Qf, h, space))
        if done.all():
            break
    return f, Qf


class _Space:
    """A space that grows.

    Attributes:
        basis: (b, m, n) orthonormal rows.
        images: (b, m, n) Q times each.
    """

    def __init__(self, times_Q: Product, starts: list[Tensor], preferred: Tensor) -> None:
        self.basis = self.images = starts[0].new_empty(len(starts[0]), 0, starts[0].shape[1])
        self._times_Q, self._next, self._preferred = times_Q, starts, preferred

    def grow(self, size: int) -> None:
        """Let it have ``size`` dimensions."""
        while self.basis.shape[1] < size:
            vector = self._new_direction(self._next.pop(0))
            image = self._times_Q(vector)
            self.basis = torch.cat([self.basis, vector[:, None]], dim=1)
            self.images = torch.cat([self.images, image[:, None]], dim=1)
            self._next.append(image)

    def matrix(self) -> Tensor:
        """Return Q within the space, (b, m, m)."""
        T = self.basis @ self.images.mT
        return (T + T.mT) / 2

    def least_eigenvalue(self) -> Tensor:
        """Return a bound from below (b, 1) of the eigenvalue of Q that is nearest to its least one in the space."""
        w, V = torch.linalg.eigh(self.matrix().cpu().double())
        lowest, w = V[:, :, 0].to(self.basis), w[:, :1].to(self.basis)
        bound: Tensor = w - _norm(_combined(lowest, self.images) - w * _combined(lowest, self.basis))
        return bound

    def _new_direction(self, wanted: Tensor) -> Tensor:
        """Return the unit vector that adds ``wanted`` (b, n) to the space, or another direction where it lies in it."""
        size = _norm(self.images).amax(1) if self.images.numel() else 0
        rounding = torch.finfo(wanted.dtype).eps * size
        chosen = torch.zeros_like(wanted)
        for vector in (wanted, self._preferred, _noise(wanted, 1 + self.basis.shape[1])):
            beside = self._beside(vector)
            is_new = (chosen == 0).all(1, keepdim=True) & (_norm(beside) > _PARALLEL * _norm(vector) + rounding)
            chosen, rounding = torch.where(is_new, beside, chosen), 0
        return _unit(self._beside(_unit(chosen)))

    def _beside(self, vector: Tensor) -> Tensor:
        """Return the part of a vector that is orthogonal to the space; twice, since rounding leaves a rest."""
        for _ in range(2):
            vector = vector - _combined((self.basis @ vector[..., None])[..., 0], self.basis)
        return vector


def _minimum_within(space: _Space, h: Tensor, preferred: Tensor) -> Tensor:
    """Return the minimiser on the sphere of a space, in the space's own coordinates (b, m)."""
    Q, *vectors = space.matrix(), *((space.basis @ vector[..., None])[..., 0] for vector in (h, preferred))
    return minimize_on_sphere(*(tensor.cpu().double() for tensor in (Q, *vectors))).to(h)


def _gap(f: Tensor, Qf: Tensor, h: Tensor, least: Tensor | float) -> Tensor:
    """Return a bound (b, 1) of how far the value at f is above the least one, where Q - least I is semidefinite.

    With r = (Q + lambda I) f + h, any other unit vector g is worth r'(g - f) + (g - f)'(Q + lambda I)(g - f) / 2 more.
    """
    multiplier = -(f * (Qf + h)).sum(1, keepdim=True)
    r = _norm(Qf + multiplier * f + h)
    curvature = multiplier + least
    return torch.where(curvature > 0, torch.minimum(2 * r, r.square() / (2 * curvature.abs())), 2 * r - 2 * curvature)


def _tolerance(f: Tensor, Qf: Tensor, h: Tensor, space: _Space) -> Tensor:
    """Return what counts as nothing (b, 1): a part of the value at f, and rounding."""
    eps = torch.finfo(f.dtype).eps
    value = (f * (Qf / 2 + h)).sum(1, keepdim=True).abs()
    return max(_TOLERANCE, eps) * value + 10 * eps * (_norm(space.images).amax(1) + _norm(h))


def _sizes(most: int) -> Iterator[int]:
    """Yield growing sizes of a space."""
    size = _FIRST_SIZE
    while size < most:
        yield size
        size += size // 2
    yield most


def _combined(coefficients: Tensor, rows: Tensor) -> Tensor:
    return (coefficients[:, None] @ rows)[:, 0]


def _noise(like: Tensor, seed: int) -> Tensor:
    """Return a random vector (b, n), the same for every example."""
    noise = torch.randn(like.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(like).expand_as(like)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / _norm(vectors)


def _norm(vectors: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norm
