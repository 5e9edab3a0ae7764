"""Quadratics on the sphere, against brute force and the conditions of optimality."""

import pytest
import torch

from pml_extensions.attr._sphere import minimize_on_sphere


def value(Q, h, f):
    return 0.5 * torch.einsum("bi,bij,bj->b", f, Q, f) + (h * f).sum(1)


def random_problem(seed, batch=6, n=5, rank=5):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(batch, n, rank, generator=generator, dtype=torch.float64)
    signs = torch.randn(batch, rank, generator=generator, dtype=torch.float64).sign()
    h = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    return (A * signs[:, None]) @ A.mT, h


def check_optimal(Q, h, f):
    """Q + lambda I is positive semidefinite and (Q + lambda I) f = -h: just so at a global minimum."""
    torch.testing.assert_close(f.norm(dim=1), torch.ones(len(f), dtype=f.dtype))
    residual = -(torch.einsum("bij,bj->bi", Q, f) + h)
    lam = (residual * f).sum(1)
    torch.testing.assert_close(residual, lam[:, None] * f, atol=1e-7, rtol=1e-6)
    assert (lam >= -torch.linalg.eigvalsh(Q)[:, 0] - 1e-7).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_random_problems_meet_the_conditions_of_optimality(seed, rank):
    Q, h = random_problem(seed, rank=rank)
    check_optimal(Q, h, minimize_on_sphere(Q, h, torch.ones_like(h)))


def test_no_point_of_a_fine_circle_is_better():
    Q, h = random_problem(7, n=2, rank=2)
    angles = torch.linspace(0, 2 * torch.pi, 20001, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    best = (0.5 * torch.einsum("ai,bij,aj->ba", circle, Q, circle) + h @ circle.T).amin(1)
    assert (value(Q, h, minimize_on_sphere(Q, h, torch.ones_like(h))) <= best + 1e-12).all()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_hard_case(size):
    Q = size * torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))[None]
    h = size * torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    f = minimize_on_sphere(Q, h, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(f, torch.tensor([[0.75**0.5, 0.0, -0.5]], dtype=torch.float64))


def test_nothing_to_minimise_gives_the_preferred_direction():
    zero = torch.zeros(2, 4, 4, dtype=torch.float64)
    ones = torch.ones(2, 4, dtype=torch.float64)
    torch.testing.assert_close(minimize_on_sphere(zero, zero[:, 0], ones), ones / 2)
    orthogonal = minimize_on_sphere(zero, zero[:, 0], torch.zeros_like(ones))
    torch.testing.assert_close(orthogonal.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_nearly_hard_case():
    Q = torch.diag(torch.tensor([-1.0, 2.0, 5.0], dtype=torch.float64))[None].repeat(3, 1, 1)
    h = torch.tensor([[e, 1.0, 1.0] for e in (1e-6, 1e-9, 1e-13)], dtype=torch.float64)
    check_optimal(Q, h, minimize_on_sphere(Q, h, torch.ones_like(h)))
