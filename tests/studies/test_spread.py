"""The rivals' terms are their published formulas, written out here in loops and float64; gradients are finite."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats


@pytest.fixture
def spread(load):
    return load("spread")


def batch(kind):
    torch.manual_seed(3)
    b, d = 12, 5
    if kind == "collapsed":
        return torch.ones(b, 1) * torch.randn(d) + 1e-3 * torch.randn(b, d)
    return torch.randn(b, d) * {"ordinary": 1.0, "long": 30.0, "short": 1e-2}[kind] + 0.3


KINDS = pytest.mark.parametrize("kind", ["ordinary", "long", "short", "collapsed"])


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@KINDS
def test_koleo(spread, kind):
    x = unit(batch(kind).double().numpy())
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(x) if j != i) for i, a in enumerate(x)]
    expected = -np.mean(np.log(nearest))
    assert spread.koleo(batch(kind)).item() == pytest.approx(expected, rel=1e-3)


@KINDS
def test_orthogonality(spread, kind):
    x = unit(batch(kind).double().numpy())
    pairs = [a @ b for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    expected = np.mean(pairs) ** 2 + max(0, np.mean(np.square(pairs)) - 1 / x.shape[1])
    assert spread.orthogonality(batch(kind)).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_directions_are_unit_vectors(spread):
    drawn = spread.directions(5)
    assert drawn.shape == (5, spread.SLICES)
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(spread.SLICES))


def test_sigreg_of_one_point_at_the_origin(spread):
    integral = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))  # of (1 - g)^2 g over all t
    assert spread.sigreg(torch.zeros(12, 5)).item() == pytest.approx(12 * integral, rel=0.01)


@pytest.mark.parametrize("kind", ["ordinary", "short", "collapsed"])
def test_sigreg_is_the_integral(spread, kind, monkeypatch):
    slices = torch.nn.functional.normalize(torch.randn(5, 3), dim=0)
    monkeypatch.setattr(spread, "directions", lambda d: slices)
    along = (batch(kind) @ slices).double().numpy()

    def integrand(t, values):
        apart = np.mean(np.exp(1j * t * values)) - math.exp(-t * t / 2)
        return abs(apart) ** 2 * math.exp(-t * t / 2)

    expected = np.mean([len(v) * integrate.quad(integrand, -5, 5, args=(v,), limit=200)[0] for v in along.T])
    assert spread.sigreg(batch(kind)).item() == pytest.approx(expected, rel=0.02)  # 17 knots


@KINDS
def test_visreg(spread, kind, monkeypatch):
    slices = torch.nn.functional.normalize(torch.randn(5, 3), dim=0)
    monkeypatch.setattr(spread, "directions", lambda d: slices)
    x, b = batch(kind).double().numpy(), len(batch(kind))
    mean, deviation = x.mean(0), x.std(0)
    along = (x - mean) / (deviation + 1e-4) @ slices.double().numpy()
    quantiles = stats.norm.ppf([(i + 1) / (b + 1) for i in range(b)])
    shape = np.mean([(np.sort(column) - quantiles) ** 2 for column in along.T])
    expected = np.mean(mean**2) + np.mean((1 - deviation) ** 2) + shape
    assert spread.visreg(batch(kind)).item() == pytest.approx(expected, rel=1e-3)


def test_the_shapes_gradient_passes_over_the_deviation(spread, monkeypatch):
    slices = torch.nn.functional.normalize(torch.randn(5, 3), dim=0).double()
    monkeypatch.setattr(spread, "directions", lambda d: slices)
    start = batch("ordinary").double()
    held, quantiles = start.std(0, unbiased=False), torch.tensor(stats.norm.ppf(np.arange(1, 13) / 13))[:, None]

    def formula(x):
        shape = (((x - x.mean(0)) / (held + 1e-4) @ slices).sort(0).values - quantiles).square().mean()
        return x.mean(0).square().mean() + (1 - x.std(0, unbiased=False)).square().mean() + shape

    steps = 1e-6 * torch.eye(start.numel(), dtype=torch.float64).reshape(-1, *start.shape)
    expected = torch.stack([(formula(start + step) - formula(start - step)) / 2e-6 for step in steps])
    x = start.clone().requires_grad_()
    spread.visreg(x).backward()
    assert torch.allclose(x.grad.flatten(), expected, atol=1e-6)


@KINDS
def test_variance_and_covariance(spread, kind):
    x = batch(kind).double().numpy()
    b, d = x.shape
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / (b - 1)
    variance = np.mean(np.maximum(0, 1 - np.sqrt(covariance.diagonal() + 1e-4)))
    off = (np.square(covariance).sum() - np.square(covariance.diagonal()).sum()) / d
    assert spread.variance_covariance(batch(kind)).item() == pytest.approx(variance + off / 25, rel=1e-4)


@KINDS
def test_every_term_has_a_finite_gradient_in_the_slot(spread, kind):
    from pytorch_metric_learning.losses import ContrastiveLoss

    labels = torch.arange(6).repeat_interleave(2)
    for name, make in spread.REGULARIZERS.items():
        embeddings = batch(kind).requires_grad_()
        loss = ContrastiveLoss(embedding_regularizer=make(), embedding_reg_weight=0.3)
        loss(embeddings, labels).backward()
        alone = batch(kind).requires_grad_()
        ContrastiveLoss()(alone, labels).backward()
        assert embeddings.grad.isfinite().all(), name
        assert torch.equal(embeddings.grad, alone.grad) == (name == spread.NONE), name
