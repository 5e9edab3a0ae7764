"""What users hang on a network, and what a network does with itself: hooks, buffers, steps without a slope."""

import sys
from subprocess import run

import pytest
import torch
from captum.attr import GuidedBackprop, LayerGradCam
from networks import images, pooled
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS

BRIEF = LBFGS(steps=20)


def retain(module, args, output):
    output.retain_grad()


def watch(module, args, output):
    output.register_hook(lambda gradient: gradient)


def double(module, args, output):
    return 2 * output


def retain_input(module, args):
    args[0].retain_grad()


HOOKS = {
    "retain": lambda model: model.conv1.register_forward_hook(retain),
    "retain at the layer": lambda model: model.conv2.register_forward_hook(retain),
    "retain behind": lambda model: model.act.register_forward_hook(retain),
    "tensor hook": lambda model: model.conv1.register_forward_hook(watch),
    "tensor hook at the layer": lambda model: model.conv2.register_forward_hook(watch),
    "input": lambda model: model.conv2.register_forward_pre_hook(retain_input),
    "backward": lambda model: model.fc.register_full_backward_hook(lambda *_: None),
    "other output": lambda model: model.conv2.register_forward_hook(double),
}


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_the_users_own(name, trainable):
    model, x = pooled(), images().requires_grad_()
    model.requires_grad_(trainable)
    HOOKS[name](model)
    LayerGradCam(model, model.conv2).attribute(x, 1)
    maps = L2CAF(model, model.conv2).attribute(x, 1, solver=BRIEF)
    bare = pooled()
    if name == "other output":
        bare.conv2.weight.data *= 2
        bare.conv2.bias.data *= 2
    torch.testing.assert_close(maps, L2CAF(bare, bare.conv2).attribute(images(), 1, solver=BRIEF))


class Hooking(nn.Module):
    """Keeps gradients of its own, as tutorials of Grad-CAM have it."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv(x)
        x.register_hook(lambda gradient: setattr(self, "gradient", gradient))
        x = self.act(x)
        x.retain_grad()
        return self.head(x.mean((2, 3)))


def test_hooks_in_the_forward_method():
    torch.manual_seed(0)
    model = Hooking().eval()
    for layer in (model.conv, model.act):
        LayerGradCam(model, layer).attribute(images(), 1)
        assert L2CAF(model, layer).attribute(images(), 1).shape == (3, 1, 10, 10)


def test_hooks_that_change_gradients_do_not_change_what_is_minimised():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(6, 4)).eval()
    wanted = L2CAF(model, model[0]).attribute(images(), 1, solver=BRIEF)
    guided = GuidedBackprop(model)
    model.apply(guided._register_hooks)
    torch.testing.assert_close(L2CAF(model, model[0]).attribute(images(), 1, solver=BRIEF), wanted)
    model[2].register_forward_hook(lambda module, args, output: output.register_hook(torch.zeros_like) and None)
    torch.testing.assert_close(L2CAF(model, model[0]).attribute(images(), 1, solver=BRIEF), wanted)


class Counting(nn.Module):
    """Writes into its buffers in eval mode: in place, anew, before the layer and behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("share", torch.ones(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.calls += 1
        x = self.conv(x)
        self.share = self.share / 2
        pooled_ = x.mean((2, 3)) - self.mean
        self.mean.copy_(pooled_.detach().mean(0))
        return self.head(pooled_.tanh() / self.calls * self.share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings("ignore:what follows the layer cannot be played back")
def test_buffers_that_a_network_writes_are_as_before(dtype, wrapped, fails):
    torch.manual_seed(0)
    model, x = Counting().to(dtype).eval(), images().to(dtype)
    objects, values = dict(model.named_buffers()), {name: b.clone() for name, b in model.named_buffers()}
    explain = L2CAF((lambda x: model(x)) if wrapped else model, model.conv)  # noqa: PLW0108 - a function
    maps = explain.attribute(x, 1, solver=BRIEF)
    torch.testing.assert_close(explain.attribute(x, 1, solver=BRIEF), maps)
    if fails:
        with pytest.raises(ZeroDivisionError):
            explain.attribute(x, objective=lambda output, _: 1 / 0)
    for name, buffer in model.named_buffers():
        assert buffer is objects[name]
        assert torch.equal(buffer, values[name])


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of what is not rounded."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binary(nn.Module):
    def __init__(self, estimator, partly=False):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.estimator, self.partly = estimator, partly

    def forward(self, x):
        x = self.conv(x)
        steps = self.estimator(x - 0.1)
        return self.head((steps + x.tanh() if self.partly else steps).mean((2, 3)))


ESTIMATORS = {"function": Straight.apply, "detach": lambda x: x + (x.round() - x).detach(), "sign": torch.sign}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_steps_without_a_slope_are_refused(name):
    torch.manual_seed(0)
    model = Binary(ESTIMATORS[name]).eval()
    for settings in ({}, {"target": 1}):
        with pytest.raises(ValueError, match="moves in steps, as rounding does, and has no slope"):
            L2CAF(model, model.conv).attribute(images(), **settings)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_reported_of_partial_steps_is_the_objective_there(name):
    torch.manual_seed(0)
    model = Binary(ESTIMATORS[name], partly=True).double().eval()
    x = images().double()
    maps, report = L2CAF(model, model.conv).attribute(x, 1, signed=True, return_report=True)
    handle = model.conv.register_forward_hook(lambda module, args, output: output * maps)
    output = model(x)
    handle.remove()
    torch.testing.assert_close(output.sum(1) - 2 * output[:, 1], report.objective)
    assert not report.exact.any()


def test_timms_patch_embedding():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2).eval()
    nn.init.normal_(model.head.weight)
    maps = L2CAF(model, model.patch_embed).attribute(images(1, 224), 1, solver=LBFGS(steps=2))
    assert maps.shape == (1, 1, 14, 14)
    free = timm.create_model("vit_tiny_patch16_224", depth=3, dynamic_img_size=True).eval()
    nn.init.normal_(free.head.weight)
    x = torch.randn(1, 3, 64, 96)
    for layer in (free.patch_embed, free.blocks[0]):
        assert L2CAF(free, layer).attribute(x, 1, solver=LBFGS(steps=2)).shape == (1, 1, 4, 6)


COLD = """
import sys, torch
from torch import nn
from pml_extensions.attr import L2CAF
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
for layer, target in ((0, None), (2, 1), (2, None)):
    L2CAF(model, model[layer]).attribute(torch.randn(2, 3, 9, 9), target)
assert "torch._dynamo" not in sys.modules
"""


def test_the_first_call_does_not_import_the_compiler():
    run([sys.executable, "-c", COLD], check=True)
