"""Half precision and autocast give the maps of single precision, ``exact`` is true, and a batch equals its examples."""

import copy

import pytest
import torch
from networks import images, pooled
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS

timm = pytest.importorskip("timm")
HALVES = [torch.bfloat16, torch.float16]


def correlation(one, other):
    one, other = (maps.flatten(1).double() - maps.flatten(1).double().mean(1, keepdim=True) for maps in (one, other))
    return nn.functional.cosine_similarity(one, other)


def network(name="resnet10t"):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    return model


def reports(model, layer, x, **kwargs):
    return L2CAF(model, model.get_submodule(layer)).attribute(x, return_report=True, **kwargs)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("layer", "exact"), [("layer4", True), ("layer3", False)])
@pytest.mark.parametrize("target", [None, 3])
def test_half_precision_gives_the_maps_of_the_same_weights_in_single(dtype, layer, exact, target):
    half, x = network().to(dtype), images(2, 64).to(dtype)
    single = copy.deepcopy(half).float()
    (maps, report), (wanted, other) = (
        reports(model, layer, inputs, target=target, solver=None) for model, inputs in ((half, x), (single, x.float()))
    )
    assert maps.dtype == report.objective.dtype == torch.float32
    assert report.exact.tolist() == other.exact.tolist() == [exact] * 2
    assert (correlation(maps, wanted) > 0.99).all()
    torch.testing.assert_close(report.objective, other.objective, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
@pytest.mark.parametrize("cached", [False, True])
def test_autocast_gives_the_maps_of_single_precision(layer, cached):
    model, x = network(), images(2, 64)
    wanted, other = reports(model, layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        if cached:  # weights in half precision from a call before
            model(x)
        maps, report = reports(model, layer, x)
    assert report.exact.tolist() == other.exact.tolist()
    assert (correlation(maps, wanted) > 0.9999).all()


class Bent(nn.Module):
    """Nearly affine after the convolution."""

    def __init__(self, bend):
        super().__init__()
        self.conv, self.head, self.bend = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), bend

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.head(x + self.bend * x.square())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize(("bend", "exact"), [(0.0, True), (1e-4, False), (1.0, False)])
def test_exact_is_true_in_every_precision(dtype, bend, exact):
    torch.manual_seed(0)
    model = Bent(bend).to(dtype).eval()
    for target in (None, 1):
        assert (reports(model, "conv", images(3).to(dtype), target=target)[1].exact == exact).all()


class Reads(Bent):
    """Cannot be played back."""

    def forward(self, x):
        x = super().forward(x)
        return x if x.sum().item() > -1e9 else -x


@pytest.mark.parametrize("dtype", HALVES)
def test_a_network_that_runs_again_in_half_precision_is_never_called_exact(dtype):
    torch.manual_seed(0)
    model = Reads(1.0).to(dtype).eval()
    with pytest.warns(UserWarning, match="runs the whole network"):
        assert not reports(model, "conv", images().to(dtype), target=1)[1].exact.any()


class SomeAreAffine(nn.Module):
    """A kink in what follows, which only some examples meet."""

    def __init__(self):
        super().__init__()
        self.same, self.head = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 3)
        nn.init.ones_(self.same.weight)

    def forward(self, x):
        x = self.same(x).mean((2, 3))
        return self.head(x + 10 * (x - 1).relu())


def test_a_batch_equals_its_examples():
    mixed, x = SomeAreAffine().eval(), torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x[2:] += 3
    model = pooled()
    for network_, layer, batch, settings in (
        (model, "conv1", images(5), {"target": 1}),
        (model, "conv1", images(5), {}),
        (network(), "layer3", images(4, 64), {"solver": LBFGS(steps=60)}),
        (network("test_vit"), "blocks.2.norm1", images(3, 160), {"target": 2, "solver": LBFGS(steps=40)}),
        (mixed, "same", x, {"target": 1}),
    ):
        together, report = reports(network_, layer, batch, **settings)
        for i in range(len(batch)):
            alone, other = reports(network_, layer, batch[i : i + 1], **settings)
            torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)
            assert other.exact == report.exact[i]
