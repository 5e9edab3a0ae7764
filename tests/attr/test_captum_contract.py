"""One contract for captum's ``LayerGradCam`` and ``L2CAF``: every form of call, over both, side by side.

They differ where the documentation says so: maps have norm one, a whole output needs no target, and layers may be
several.
"""

import inspect

import matplotlib as mpl
import pytest
import shapes
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from captum.attr import visualization as viz
from networks import images, pooled
from shapes import randn
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS, Report

BOTH = pytest.mark.parametrize("method", [LayerGradCam, L2CAF])


class Several(nn.Module):
    """Two inputs, two further arguments, one of them no tensor, and an output of two or three dimensions."""

    def __init__(self, dense=False):
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3)
        self.head, self.dense = nn.Linear(6, 12), dense

    def forward(self, x, y, weight=None, scale=1.0):
        x = self.second(self.act(self.first(x - y)))
        x = x if weight is None else x * weight[:, :, None, None]
        x = self.head(x.mean((2, 3))) * scale
        return x.unflatten(1, (4, 3)) if self.dense else x


def several(**kwargs):
    torch.manual_seed(0)
    return Several(**kwargs).double().eval()


PAIR = images(4).double(), images(4, seed=1).double()
WEIGHT = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)).double()
SINGLE = (lambda: pooled().double(), images(4).double())

CONFIGURATIONS = {
    "a tensor": (*SINGLE, "conv2", {"target": 1}),
    "a tuple of one": (SINGLE[0], (SINGLE[1],), "conv2", {"target": 1}),
    "a layer that runs in place": (*SINGLE, "act", {"target": 1}),
    "an iterative layer": (*SINGLE, "conv1", {"target": 1}),
    "two inputs": (several, PAIR, "second", {"target": 1}),
    "an argument": (several, PAIR[0], "second", {"target": 1, "additional_forward_args": PAIR[1]}),
    "arguments": (several, PAIR, "first", {"target": 1, "additional_forward_args": (WEIGHT, 2.0)}),
    "none among them": (several, PAIR, "second", {"target": 1, "additional_forward_args": (None, 2.0)}),
    "the input of a layer": (several, PAIR, "second", {"target": 1, "attribute_to_layer_input": True}),
    "target tensor": (*SINGLE, "conv2", {"target": torch.tensor(2)}),
    "target of one": (*SINGLE, "conv2", {"target": torch.tensor([2])}),
    "targets": (*SINGLE, "conv2", {"target": torch.tensor([0, 1, 2, 4])}),
    "target list": (*SINGLE, "conv2", {"target": [0, 1, 2, 4]}),
    "target tuple": (*SINGLE, "conv2", {"target": (3,)}),
    "three dimensions": (lambda: several(dense=True), PAIR, "second", {"target": (1, 2)}),
    "a position each": (lambda: several(dense=True), PAIR, "second", {"target": [(0, 0), (1, 2), (3, 1), (2, 0)]}),
    "a scalar": (lambda: Scalar(pooled().double()), images(4).double(), "model.conv2", {}),
    "sequence": (lambda: shapes.ecg()[0].double().eval(), randn(4, 12, 60).double(), "5", {"target": 1}),
    "volume": (lambda: shapes.volume()[0].double().eval(), randn(4, 1, 6, 10, 9).double(), "4", {"target": 1}),
}


class Scalar(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[:, 0]


def prepared(name):
    make, inputs, layer, settings = CONFIGURATIONS[name]
    torch.manual_seed(0)
    model = make()
    return model, inputs, model.get_submodule(layer), settings


@BOTH
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_maps_have_the_shape_of_the_layer(method, name):
    model, inputs, layer, settings = prepared(name)
    seen = []
    pick = (lambda args, output: args[0]) if settings.get("attribute_to_layer_input") else (lambda args, output: output)
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(pick(args, output).shape))
    maps = method(model, layer).attribute(inputs, **settings)
    handle.remove()
    assert isinstance(maps, torch.Tensor)
    assert maps.shape == (seen[-1][0], 1, *seen[-1][2:])
    assert maps.isfinite().all()
    whole = method(model, layer).attribute(inputs, **settings, attr_dim_summation=False)
    assert whole.shape == seen[-1]
    positive = method(model, layer).attribute(inputs, **settings, relu_attributions=True)
    assert (positive >= 0).all()
    grid = tuple(2 * size for size in maps.shape[2:])
    assert LayerAttribution.interpolate(maps, grid).shape[2:] == grid


def part(value, i):
    if isinstance(value, tuple) and any(isinstance(entry, torch.Tensor) for entry in value):
        return tuple(part(entry, i) for entry in value)
    holds_all = (isinstance(value, torch.Tensor) and value.ndim > 0) or isinstance(value, list)
    return value[i : i + 1] if holds_all and len(value) == 4 else value


@BOTH
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_batch_gives_what_its_examples_give(method, name):
    model, inputs, layer, settings = prepared(name)
    together = method(model, layer).attribute(inputs, **settings)
    for i in range(4):
        alone = method(model, layer).attribute(
            part(inputs, i), **{key: part(value, i) for key, value in settings.items()}
        )
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)


@BOTH
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_data_parallel_on_a_processor_is_the_network(method, name):
    model, inputs, layer, settings = prepared(name)
    wanted = method(model, layer).attribute(inputs, **settings)
    parallel = nn.DataParallel(model)
    torch.testing.assert_close(method(parallel, layer).attribute(inputs, **settings), wanted)
    wrapped = method(lambda *args: parallel(*args), layer, device_ids=[0])  # noqa: PLW0108 - a function
    torch.testing.assert_close(wrapped.attribute(inputs, **settings), wanted)


def hooks(model):
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
        for m in model.modules()
    ] + [len(torch.nn.modules.module._global_forward_hooks), len(torch.nn.modules.module._global_forward_pre_hooks)]


@BOTH
@pytest.mark.parametrize(
    ("name", "tunnel"),
    [*((name, False) for name in CONFIGURATIONS), *((name, True) for name in ("two inputs", "arguments", "targets"))],
)
@pytest.mark.parametrize("fault", [None, "target", "input", "forward"])
def test_hooks_are_gone_also_after_an_exception(method, name, tunnel, fault):
    model, inputs, layer, settings = prepared(name)
    before, state = hooks(model), {key: value.clone() for key, value in model.state_dict().items()}
    explain = method(model, layer)
    explain, settings = (NoiseTunnel(explain), {**settings, "nt_samples": 2}) if tunnel else (explain, settings)
    if fault is None:
        explain.attribute(inputs, **settings)
    elif fault == "target":  # captum's own test of hooks expects just this
        with pytest.raises(AssertionError):
            explain.attribute(inputs, **{**settings, "target": (9999,) * 20})
    elif fault == "input":
        flat = tuple(x.flatten(1) for x in inputs) if isinstance(inputs, tuple) else inputs.flatten(1)
        with pytest.raises(RuntimeError):
            explain.attribute(flat, **settings)
    else:
        handle = model.register_forward_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            explain.attribute(inputs, **settings)
        handle.remove()
    assert hooks(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_calls_in_captums_order():
    theirs, ours = (list(inspect.signature(method.attribute).parameters.values()) for method in (LayerGradCam, L2CAF))
    shared = [parameter for parameter in theirs if parameter.name != "grad_kwargs"]
    for one, other in zip(shared, ours[: len(shared)], strict=True):
        assert (one.name, one.default, one.kind) == (other.name, other.default, other.kind)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours[len(shared) :])
    model, x = pooled(), images()
    for method in (LayerGradCam, L2CAF):
        positional = method(model, model.conv2).attribute(x, 1, None, *(False, True, False))
        named = method(model, model.conv2).attribute(x, 1, relu_attributions=True, attr_dim_summation=False)
        torch.testing.assert_close(positional, named)


def test_what_the_two_switches_of_grad_cam_mean_here():
    model, x = pooled(), images()
    explain, kept = L2CAF(model, model.conv2), []
    signed = explain.attribute(x, 1, signed=True)
    torch.testing.assert_close(explain.attribute(x, 1, relu_attributions=True), signed.clamp_min(0))
    torch.testing.assert_close(explain.attribute(x, 1, relu_attributions=True, signed=True), signed.clamp_min(0))
    model.conv2.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    model(x)
    for settings, factor in (({}, signed.abs()), ({"signed": True}, signed)):
        whole = explain.attribute(x, 1, attr_dim_summation=False, **settings)
        torch.testing.assert_close(whole, kept[0] * factor)


@BOTH
def test_names(method):
    assert method.get_name() == {LayerGradCam: "Layer Grad Cam", L2CAF: "L2-CAF"}[method]


@BOTH
@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute_value"])
def test_pictures_of_every_sign(method, sign):
    mpl.use("Agg")
    model, x = pooled(), images(1)
    settings = {"signed": True} if method is L2CAF else {}
    maps = LayerAttribution.interpolate(method(model, model.conv2).attribute(x, 1, **settings), x.shape[2:], "bilinear")
    picture, original = (tensor[0].permute(1, 2, 0).detach().numpy() for tensor in (maps, x))
    figure, _ = viz.visualize_image_attr(picture, original, "heat_map", sign=sign, use_pyplot=False)
    shown = figure.axes[0].images[0].get_array()
    assert shown.min() < shown.max()


@pytest.mark.parametrize("at_a_time", [None, 2, 3])
@pytest.mark.parametrize("kind", ["each", "one", "none"])
def test_noise_tunnel_with_a_reference_and_a_report(kind, at_a_time):
    model, x = pooled().double(), images(3).double()
    explain = L2CAF(model, model.act)
    other = model(images(3, seed=7).double()).detach()
    reference = {"each": other, "one": other[:1], "none": None}[kind]
    wanted, report = explain.attribute(x, reference=reference, return_report=True)
    settings = {"nt_samples": 5, "nt_samples_batch_size": at_a_time, "stdevs": 1e-9, "reference": reference}
    maps = NoiseTunnel(explain).attribute(x, **settings)
    torch.testing.assert_close(maps, wanted, atol=1e-5, rtol=0)
    maps, mean = NoiseTunnel(explain).attribute(x, **settings, return_report=True)
    torch.testing.assert_close(maps, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean.objective, report.objective, rtol=1e-5, atol=1e-5)
    assert mean.exact.tolist() == mean.converged.tolist() == [1.0] * 3
    assert mean.steps.tolist() == [0.0] * 3
    assert isinstance(report, Report)


def test_a_reference_too_short_is_expanded_in_a_tunnel_only():
    model, x = pooled(), images(4)
    with pytest.raises(ValueError, match=r"reference must have the shape of the output, \(4, 5\)"):
        L2CAF(model, model.conv2).attribute(x, reference=torch.ones(2, 5))


def test_several_layers_at_once():
    model, x = pooled(), images()
    for maps, layer in zip(
        L2CAF(model, [model.conv1, model.conv2]).attribute(x, 1, solver=LBFGS(steps=5)), ("conv1", "conv2"), strict=True
    ):
        alone = L2CAF(model, model.get_submodule(layer)).attribute(x, 1, solver=LBFGS(steps=5))
        torch.testing.assert_close(maps, alone)
        assert LayerGradCam(model, model.get_submodule(layer)).attribute(x, 1).shape == maps.shape
