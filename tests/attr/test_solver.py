"""A solver of the user's own, written with public names alone, and warnings that point at the user's line."""

import pytest
import torch
from captum.attr import NoiseTunnel
from networks import images, pooled
from torch import nn

from pml_extensions import attr


class HeavyBall:
    """Gradient descent with momentum."""

    def minimize(self, function, start, after_step):
        parameters, velocity = start, torch.zeros_like(start)
        for _ in range(40):
            _, gradient = attr.value_and_gradient(function, parameters)
            velocity = 0.8 * velocity - 2.0 * gradient
            parameters = parameters + velocity
            after_step()
        done = torch.ones(len(start), dtype=torch.bool)
        with torch.no_grad():
            return attr.Solution(parameters, function(parameters), 40 * done.long(), done)


def test_a_solver_of_ones_own():
    model, x = pooled(), images()
    explain = attr.L2CAF(model, model.conv2)
    maps, report = explain.attribute(x, 1, solver=HeavyBall(), return_report=True)
    first = explain.attribute(x, 1, solver=attr.LBFGS(steps=1), return_report=True)[1]
    assert (report.objective < first.objective).all()
    assert (report.steps == 40).all()
    torch.testing.assert_close(maps.flatten(1).norm(dim=1), torch.ones(3))


def test_value_and_gradient():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with torch.no_grad():
        value, gradient = attr.value_and_gradient(lambda p: p.square().sum(1), x)
    torch.testing.assert_close(value, torch.tensor([5.0, 25.0]))
    torch.testing.assert_close(gradient, 2 * x)
    assert not value.requires_grad
    assert not x.requires_grad


def calls():
    model, x = pooled(), images()
    dead = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    nn.init.zeros_(dead[0].weight)
    nn.init.zeros_(dead[0].bias)

    def reads(x):
        features = model.conv1(x)
        return model.fc(features.mean((2, 3))) * (1 if features.sum().item() > 0 else 2)

    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return {
        "training mode": (attr.L2CAF(trained, trained[0], layout=attr.ChannelsFirst()), x, "training mode"),
        "no recording": (attr.L2CAF(reads, model.conv1, layout=attr.ChannelsFirst()), x, "played back"),
        "uniform": (attr.L2CAF(dead, dead[0]), x, "uniform"),
    }


@pytest.mark.parametrize("case", calls())
def test_warnings_point_at_the_users_line(case):
    explain, x, message = calls()[case]
    with pytest.warns(UserWarning, match=message) as direct:
        explain.attribute(x, 1)
    with pytest.warns(UserWarning, match=message) as tunnelled:
        NoiseTunnel(explain).attribute(x, nt_samples=2, stdevs=0.1, target=1)
    assert {warning.filename for warning in [*direct, *tunnelled]} == {__file__}
