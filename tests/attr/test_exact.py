"""Closed forms against a float64 transcription of the paper's objectives and the published optimiser."""

import pytest
import torch
from networks import images, pooled, published_descent
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS, Softmax, UnitNorm


def transcription(model, x, layer):
    """The activation and the tail of ``pooled`` after conv2's activation, in float64."""
    kept = {}
    handle = layer.register_forward_hook(lambda module, args, out: kept.update(a=out.detach().clone()))
    with torch.no_grad():
        output = model(x)
    handle.remove()
    return kept["a"], output


class Tail(nn.Module):
    def __init__(self, outputs=5, channels=6, nonlinear=False):
        super().__init__()
        self.features = nn.Conv2d(3, channels, 3, stride=2)
        self.fc = nn.Linear(channels, outputs)
        self.nonlinear = nonlinear

    def tail(self, a):
        pooled = a.mean((2, 3))
        return self.fc(pooled.tanh() if self.nonlinear else pooled)

    def forward(self, x):
        return self.tail(self.features(x))


def affine(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Tail(**kwargs).double().eval()


@pytest.mark.parametrize("outputs", [1, 5, 40])
def test_class_oblivious_is_never_above_the_published_optimiser(outputs):
    model, x = affine(outputs=outputs), images(4, dtype=torch.float64)
    maps, report = L2CAF(model, model.features).attribute(x, signed=True, return_report=True)
    assert report.exact.all()
    a, y = transcription(model, x, model.features)
    for i in range(4):
        reached = (model.tail(a[i : i + 1] * maps[i, 0]) - y[i]).square().sum()
        torch.testing.assert_close(reached, report.objective[i])
        _, best = published_descent(model.tail, a[i : i + 1], lambda out, i=i: (out - y[i]).square().sum())
        assert reached.item() <= best + 1e-9


def test_class_specific_equals_the_published_optimiser():
    model, x = affine(), images(3, dtype=torch.float64)
    model.fc.weight.data *= 20  # so that a thousand published steps get there
    target = torch.tensor([0, 4, 2])
    maps, report = L2CAF(model, model.features).attribute(x, target, signed=True, return_report=True)
    assert report.exact.all()
    assert (report.steps == 0).all()
    a, _ = transcription(model, x, model.features)
    for i, c in enumerate(target):
        f, best = published_descent(model.tail, a[i : i + 1], lambda out, c=c: out.sum() - 2 * out[0, c])
        assert report.objective[i].item() <= best + 1e-9
        assert report.objective[i].item() == pytest.approx(best, rel=1e-4)
        torch.testing.assert_close(maps[i, 0], f, atol=0.02, rtol=0)


def test_reference_is_the_same_problem_with_another_right_hand_side():
    model, x = affine(), images(3, dtype=torch.float64)
    other = model(images(3, seed=9, dtype=torch.float64)).detach()
    explain = L2CAF(model, model.features)
    maps, report = explain.attribute(x, reference=other, signed=True, return_report=True)
    a, y = transcription(model, x, model.features)
    for i in range(3):
        reached = (model.tail(a[i : i + 1] * maps[i, 0]) - other[i]).square().sum()
        torch.testing.assert_close(reached, report.objective[i])
        _, best = published_descent(model.tail, a[i : i + 1], lambda out, i=i: (out - other[i]).square().sum())
        assert reached.item() <= best + 1e-9
    torch.testing.assert_close(explain.attribute(x, reference=y), explain.attribute(x))
    torch.testing.assert_close(
        explain.attribute(x, reference=other[:1]), explain.attribute(x, reference=other[:1].expand(3, -1))
    )


def test_any_quadratic_objective_is_solved_exactly_and_no_other_is():
    model, x = affine(), images(3, dtype=torch.float64)
    explain = L2CAF(model, model.features)
    contrast = explain.attribute(x, objective=lambda out, _: out[:, 1] - out[:, 0], return_report=True)[1]
    saddle = explain.attribute(
        x,
        objective=lambda out, old: out[:, 0].square() - out[:, 1].square() + out[:, 2] * old[:, 2],
        return_report=True,
    )[1]
    cosine = explain.attribute(x, objective=lambda out, old: -torch.cosine_similarity(out, old), return_report=True)[1]
    assert contrast.exact.all()
    assert saddle.exact.all()
    assert not cosine.exact.any()
    assert (cosine.steps > 0).all()


def test_a_tail_that_is_not_affine_is_found_out():
    model, x = affine(nonlinear=True), images(3, dtype=torch.float64)
    _, report = L2CAF(model, model.features).attribute(x, return_report=True)
    assert not report.exact.any()
    bent = pooled().double()
    _, report = L2CAF(bent, bent.conv1).attribute(images(dtype=torch.float64), target=1, return_report=True)
    assert not report.exact.any()


def test_closed_form_and_iteration_agree():
    model, x = affine(), images(3, dtype=torch.float64)
    explain = L2CAF(model, model.features)
    exact = explain.attribute(x, return_report=True)[1]
    iterated = explain.attribute(x, solver=LBFGS(steps=300, tolerance=1e-9), return_report=True)[1]
    assert not iterated.exact.any()
    assert (exact.objective <= iterated.objective + 1e-12).all()
    torch.testing.assert_close(exact.objective, iterated.objective, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_comes_close_to_double(dtype):
    model, x = affine(), images(3, dtype=torch.float64)
    wanted = L2CAF(model, model.features).attribute(x)
    model.to(dtype)
    maps, report = L2CAF(model, model.features).attribute(x.to(dtype), return_report=True)
    assert maps.dtype == torch.float32
    assert report.exact.all()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(maps, wanted.float(), atol=tolerance, rtol=0)


def test_dead_activations_get_a_uniform_map():
    model, x = affine(), images(2, dtype=torch.float64)
    nn.init.zeros_(model.features.weight)
    nn.init.zeros_(model.features.bias)
    for settings in ({}, {"target": 1}):
        with pytest.warns(UserWarning, match="a map is uniform"):
            maps = L2CAF(model, model.features).attribute(x, **settings)
        torch.testing.assert_close(maps, torch.full_like(maps, 1 / 5))


def test_only_the_unit_norm_has_a_closed_form():
    model, x = affine(), images(2, dtype=torch.float64)
    assert L2CAF(model, model.features).attribute(x, filter=UnitNorm(), return_report=True)[1].exact.all()
    assert not L2CAF(model, model.features).attribute(x, filter=Softmax(), return_report=True)[1].exact.any()


def test_huge_and_tiny_scales():
    model, x = affine(), images(2, dtype=torch.float64)
    wanted = L2CAF(model, model.features).attribute(x)
    for scale in (1e-12, 1e12):
        scaled = affine()
        with torch.no_grad():
            scaled.fc.weight *= scale
            scaled.fc.bias *= scale
        torch.testing.assert_close(L2CAF(scaled, scaled.features).attribute(x), wanted, atol=1e-6, rtol=1e-5)
