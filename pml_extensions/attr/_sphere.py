"""The least value of a quadratic on the unit sphere, for a batch of quadratics.

Source: More and Sorensen, Computing a trust region step, 1983: the minimiser solves (Q + lambda I) f = -h with
lambda >= -w_1, w_1 the least eigenvalue of Q; lambda is the root of a secular equation, or -w_1 in the hard case.
"""

import torch
from torch import Tensor


def minimize_on_sphere(Q: Tensor, h: Tensor, preferred: Tensor) -> Tensor:
    """Return the global minimisers f (b, n), ||f|| = 1, of f'Qf / 2 + h'f.

    Args:
        Q: (b, n, n) symmetric, definite or not.
        h: (b, n).
        preferred: (b, n) decides among minimisers where there are many: the one nearest to it is returned.
    """
    w, V = torch.linalg.eigh(Q)
    beta = _times(V.mT, h)
    gap = w - w[:, :1]
    noise = 1e-12 * torch.maximum(w.abs().amax(1), torch.linalg.vector_norm(h, dim=1))[:, None]
    lowest = gap <= noise
    beta = torch.where(lowest & (_norm(beta * lowest) <= noise), 0, beta)
    coefficients = -_solve_diagonal(gap, beta, _secular_root(gap, beta))
    # Hard case: nothing pulls along the lowest eigenvectors, and the rest stays inside the sphere; they fill it up.
    missing = (1 - coefficients.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
    hard = ~(lowest & (beta != 0)).any(1, keepdim=True) & (missing > 0)
    along = torch.where(lowest, _times(V.mT, preferred), 0)
    along = torch.where(_norm(along) > 0, along, torch.eye(1, len(w[0])).to(along))
    coefficients = torch.where(hard, coefficients + missing * along / _norm(along), coefficients)
    return torch.nn.functional.normalize(_times(V, coefficients), dim=1)


def _secular_root(gap: Tensor, beta: Tensor, iterations: int = 60) -> Tensor:
    """Return mu >= 0 (b, 1) with ||beta / (gap + mu)|| = 1, or 0 if even there the norm is below one.

    Newton's method on 1 / norm rises to the root from any point below it; the lowest eigenvectors' share gives one.
    """
    mu = _norm(torch.where(gap == gap.amin(1, keepdim=True), beta, 0))
    for _ in range(iterations):
        x = _solve_diagonal(gap, beta, mu)
        norm = _norm(x)
        slope = (x * _solve_diagonal(gap, x, mu)).sum(1, keepdim=True)
        step = torch.where(norm > 1, (norm - 1) * norm.square() / slope, 0)
        mu = mu + step
        if (step <= 1e-15 * mu).all():
            break
    return mu


def _solve_diagonal(gap: Tensor, right: Tensor, mu: Tensor) -> Tensor:
    return torch.where(right == 0, 0, right / torch.where(right == 0, 1, gap + mu))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _norm(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    return norm
