"""The latency of dense and slim: what is measured, and that the networks are left as they were."""

import copy
import time

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution
from pml_extensions.evolution.latency import Latency, Spread, measure


class Slow(nn.Module):
    """A network that takes a given time, and notes its calls."""

    def __init__(self, seconds, calls):
        super().__init__()
        self.seconds, self.calls = seconds, calls
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.calls.append((self.seconds, self.training, torch.is_grad_enabled(), tuple(x.shape)))
        time.sleep(self.seconds)
        return x * self.weight


def test_passes_alternate_in_evaluation_mode_after_a_warm_up():
    calls = []
    dense, slim = Slow(0.01, calls), Slow(0.002, calls).eval()
    latency = measure(dense, slim, (torch.ones(3, 4),), passes=6, warm_up=2)
    assert calls == 8 * [(0.01, False, False, (3, 4)), (0.002, False, False, (3, 4))]
    assert (dense.training, slim.training) == (True, False)
    assert latency.dense.median >= 10
    assert latency.slim.median >= 2
    for spread in (latency.dense, latency.slim, latency.ratio):
        assert spread.low <= spread.median <= spread.high
    assert latency.passes == 6
    assert "median (quartiles) of 6 passes in turn, input (3, 4) on cpu with" in str(latency)


def test_median_and_quartiles():
    assert Spread.of([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert str(Spread(3.14159, 2, 41.5)) == "3.14 (2 to 41.5)"


@pytest.fixture
def evolution():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    model.layer1.eval()
    return KnowledgeEvolution(model, KELS(0.5, example_input=torch.randn(2, 3, 32, 32)))


@pytest.mark.parametrize(("latency", "shape"), [(True, (2, 3, 32, 32)), (torch.randn(1, 3, 48, 48), (1, 3, 48, 48))])
def test_the_summary_is_asked_for_it(evolution, latency, shape):
    model = evolution.model
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    summary = evolution.summary(latency=latency)
    assert isinstance(summary.slim.latency, Latency)
    assert f"input {shape} on cpu" in str(summary)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_of_two_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x, y):
            return self.c(self.a(x) + self.b(y))

    inputs = torch.randn(4, 2), torch.randn(4, 3)
    summary = KnowledgeEvolution(Sum(), KELS(0.5, example_input=inputs)).summary(latency=inputs)
    assert "input (4, 2) and (4, 3) on cpu" in str(summary.slim.latency)


def test_it_is_not_measured_unless_asked_for(evolution):
    assert evolution.summary().slim.latency is None
    assert "latency" not in str(evolution.summary())


@pytest.mark.parametrize("latency", [None, 3, "cpu", [torch.ones(2, 3, 32, 32)], (1, 2)])
def test_what_is_no_input(evolution, latency):
    with pytest.raises(TypeError, match="latency must be an input of the model"):
        evolution.summary(latency=latency)


def test_what_cannot_be_measured(net):
    with pytest.raises(TypeError, match="True, but the split has none"):
        KnowledgeEvolution(timm.create_model("test_resnet"), KELS(0.5)).summary(latency=True)
    with pytest.raises(TypeError, match=r"latency needs a slim network.*WELS.*use KELS"):
        KnowledgeEvolution(net, WELS(0.5)).summary(latency=torch.randn(2, 3, 8, 8))


def test_the_summary_says_whose_statistics_the_slim_network_has(evolution):
    assert evolution.summary().slim.norms == sum(isinstance(m, nn.BatchNorm2d) for m in evolution.model.modules())
    assert "norms are the dense network's unless slim(data) estimates them anew" in str(evolution.summary())
    layer_norms = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    summary = KnowledgeEvolution(layer_norms, KELS(0.5, example_input=torch.zeros(2, 3))).summary()
    assert summary.slim.norms == 0
    assert "statistics" not in str(summary)
