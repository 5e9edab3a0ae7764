"""The iterative solvers on functions whose minimum is known."""

import pytest
import torch
from torch.nn import functional as F

from pml_extensions.attr import LBFGS, PublishedSGD
from pml_extensions.attr._sphere import minimize_on_sphere


def quadratic(seed=0, batch=4, n=12):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(batch, n, n, generator=generator)
    return A @ A.mT, torch.randn(batch, n, generator=generator)


def on_sphere(Q, h):
    def function(x):
        f = F.normalize(x, dim=1)
        return 0.5 * torch.einsum("bi,bij,bj->b", f, Q, f) + (h * f).sum(1)

    return function


def nothing():
    return None


def test_finds_the_global_minimum_of_quadratics_on_the_sphere():
    Q, h = quadratic()
    function = on_sphere(Q, h)
    solution = LBFGS(steps=200, tolerance=1e-6).minimize(function, torch.ones_like(h), nothing)
    best = function(minimize_on_sphere(Q.double(), h.double(), torch.ones_like(h).double()).float())
    torch.testing.assert_close(solution.objective, best, rtol=1e-4, atol=1e-4)
    assert solution.converged.all()
    torch.testing.assert_close(function(solution.parameters), solution.objective)


def test_each_example_goes_its_own_way():
    Q, h = quadratic(batch=5)
    together = LBFGS().minimize(on_sphere(Q, h), torch.ones_like(h), nothing)
    for i in range(5):
        alone = LBFGS().minimize(on_sphere(Q[i : i + 1], h[i : i + 1]), torch.ones(1, 12), nothing)
        torch.testing.assert_close(alone.objective, together.objective[i : i + 1], rtol=1e-4, atol=1e-4)
    assert len(set(together.steps.tolist())) > 1


def test_steps_are_the_limit_and_are_reported():
    Q, h = quadratic(n=60)
    calls = []
    solution = LBFGS(steps=3).minimize(on_sphere(Q, h), torch.ones_like(h), lambda: calls.append(0))
    assert len(calls) == 3
    assert (solution.steps == 3).all()
    assert not solution.converged.any()
    assert (solution.objective < on_sphere(Q, h)(torch.ones_like(h))).all()


def test_kinks_flat_functions_and_values_that_are_not_numbers():
    kink = LBFGS().minimize(lambda x: x.abs().sum(1) + x.square().sum(1), torch.tensor([[3.0, -2.0]]), nothing)
    assert kink.objective.item() < 1e-3
    flat = LBFGS().minimize(lambda x: 0 * x.sum(1), torch.ones(2, 3), nothing)
    assert flat.converged.all()
    torch.testing.assert_close(flat.parameters, torch.ones(2, 3))
    fenced = LBFGS().minimize(lambda x: (x - 2 - torch.log(x)).sum(1), torch.full((1, 1), 0.05), nothing)
    assert fenced.objective.item() == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"history": 0}, ValueError, "history must be at least 1, got 0"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0, got -1.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be finite"),
        ({"steps": 2.5}, TypeError, "steps must be an int, got float"),
        ({"history": True}, TypeError, "history must be an int, got bool"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        LBFGS(**settings)


def test_published_optimiser_is_the_published_one():
    Q, h = quadratic(batch=1, n=4)
    function = on_sphere(Q, h)
    x, last = torch.ones(1, 4, requires_grad=True), 32767.0
    for step in range(400):
        value = function(x)
        (gradient,) = torch.autograd.grad(value.sum() / 3, x)
        x = (x - (1e-5 + (0.5 - 1e-5) * (1 - step / 400)) * gradient).detach().requires_grad_()
        if step % 50 == 0:
            if abs(value.item() - last) / 3 < 1e-6:
                break
            last = value.item()
    solution = PublishedSGD(steps=400, scale=3).minimize(function, torch.ones(1, 4), nothing)
    torch.testing.assert_close(solution.parameters, x.detach())
    assert solution.steps.item() == step + 1
    assert solution.converged.item() == (step < 399)
