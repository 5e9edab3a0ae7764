"""What follows a layer, recorded in one pass: values and gradients of the network, without the layers before."""

import pytest
import torch
from networks import images, pooled
from torch import nn

from pml_extensions.attr import L2CAF, ChannelsFirst
from pml_extensions.attr._tail import Site, capture


def swapped(model, layer, x, activation):
    handle = layer.register_forward_hook(lambda *_: activation)
    try:
        return model(x)
    finally:
        handle.remove()


TIMM = [
    ("resnet10t", "layer3"),
    ("test_vit", "blocks.3"),
    ("test_convnext", "stages.2"),
    ("test_efficientnet", "blocks.3"),
    ("test_mambaout", "stages.1"),
]


@pytest.mark.parametrize(("name", "layer"), TIMM)
def test_a_recording_gives_what_the_network_gives(name, layer):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name).double().eval()
    nn.init.normal_(model.get_classifier().weight)
    layer = model.get_submodule(layer)
    x = torch.randn(2, 3, 96 if "vit" not in name else 160, 96 if "vit" not in name else 160).double()
    got = capture(lambda: model(x), Site(layer), (x,))
    torch.testing.assert_close(got.output, model(x), rtol=1e-10, atol=1e-10)  # attention is not computed in one piece
    other = (got.activation * torch.rand_like(got.activation)).detach().requires_grad_()
    wanted, played = swapped(model, layer, x, other.clone()), got.tail(other)
    torch.testing.assert_close(played, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(played.square().sum(), other)[0], torch.autograd.grad(wanted.square().sum(), other)[0]
    )


def test_layers_before_run_once():
    model, runs = pooled(), []
    model.conv1.register_forward_hook(lambda *_: runs.append(1))
    L2CAF(model, model.conv2).attribute(images())
    assert len(runs) == 1


def test_side_branches_and_writes_in_place():
    model, x = pooled().double(), images().double()
    got = capture(lambda: model(x), Site(model.conv2), (x,))  # an in-place activation follows, and a skip from before
    other = got.activation.detach() * 0.3
    assert torch.equal(got.tail(other.clone()), swapped(model, model.conv2, x, other.clone()))


def test_input_of_a_layer():
    model, x = pooled().double(), images().double()
    got = capture(lambda: model(x), Site(model.conv2, to_input=True), (x,))
    assert torch.equal(got.activation, model.act(model.conv1(x)))
    assert torch.equal(got.output, model(x))


def test_a_layer_that_runs_twice_counts_last():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).tanh()).mean((2, 3))

    torch.manual_seed(0)
    model, x = Twice().double().eval(), images().double()
    got = capture(lambda: model(x), Site(model.conv), (x,))
    torch.testing.assert_close(got.activation, model.conv(model.conv(x).tanh()))
    torch.testing.assert_close(got.tail(got.activation), got.activation.mean((2, 3)))


class Branching(nn.Module):
    """Looks at a value in Python, which no recording can follow."""

    def __init__(self, runs_twice=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.runs_twice = runs_twice

    def forward(self, x):
        x = self.conv(x)
        if self.runs_twice:
            x = self.conv(x[:, :3])
        x = x if x.sum().item() > 0 else x * 2
        return x.tanh().mean((2, 3))


@pytest.mark.parametrize("runs_twice", [False, True])
def test_what_cannot_be_recorded_is_run_again_and_says_so(runs_twice):
    torch.manual_seed(0)
    model, x = Branching(runs_twice).eval(), images()
    with pytest.warns(UserWarning, match="reads a value of the activation in Python.*runs the whole network"):
        got = capture(lambda: model(x), Site(model.conv), (x,))
    torch.testing.assert_close(got.output, model(x))
    assert len(model.conv._forward_hooks) == 0
    with pytest.warns(UserWarning, match="whole network"):
        maps = L2CAF(model, model.conv, layout=ChannelsFirst()).attribute(x, target=1)
    torch.testing.assert_close(maps.flatten(1).norm(dim=1), torch.ones(3))


def test_writing_into_what_is_not_the_activations():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            out = torch.zeros(len(x), 8)
            out[:, :4] = x.tanh().mean((2, 3))
            return out

    torch.manual_seed(0)
    model, x = Buffered().eval(), images()
    with pytest.warns(UserWarning, match="writes into a tensor"):
        got = capture(lambda: model(x), Site(model.conv), (x,))
    other = got.activation.detach() * 0.5
    torch.testing.assert_close(got.tail(other.clone()), swapped(model, model.conv, x, other.clone()))


def test_forward_functions_that_switch_gradients_off():
    model, x = pooled(), images()

    def forward(x):
        with torch.no_grad():
            return model(x)

    torch.testing.assert_close(
        L2CAF(forward, model.conv2, layout=ChannelsFirst()).attribute(x, target=0),
        L2CAF(model, model.conv2).attribute(x, target=0),
    )


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch is too old")
def test_compiled_networks_are_explained_as_they_were_written():
    torch._dynamo.reset()
    model, x = pooled(), images()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    for layer in (model.conv1, model.conv2):
        torch.testing.assert_close(L2CAF(compiled, layer).attribute(x, 1), L2CAF(model, layer).attribute(x, 1))
    torch._dynamo.reset()
