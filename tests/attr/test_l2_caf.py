"""L2CAF as a captum attribution: every form of argument, captum's machinery, an untouched network, clear errors."""

import copy
import pickle
import warnings

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max
from networks import Pooled, images, pooled
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS, ChannelsFirst, Gaussian, PublishedSGD, Softmax, Tokens


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x):
        return self.head(self.conv(x).relu())


def segmenter():
    torch.manual_seed(0)
    return Segmenter().eval()


@pytest.mark.parametrize(
    "target",
    [2, torch.tensor(2), torch.tensor([2]), [2, 2, 2], torch.tensor([2, 2, 2]), (2,), [(2,), (2,), (2,)], -3],
    ids=repr,
)
def test_every_form_of_target_that_captum_takes(target):
    model, x = pooled(), images()
    LayerGradCam(model, model.conv2).attribute(x, target)  # the same argument for captum
    torch.testing.assert_close(
        L2CAF(model, model.conv2).attribute(x, target), L2CAF(model, model.conv2).attribute(x, [2, 2, 2])
    )


def test_targets_differ_per_example():
    model, x = pooled(), images()
    explain = L2CAF(model, model.act)
    got = explain.attribute(x, [4, 0, 1])
    for i, c in enumerate((4, 0, 1)):
        torch.testing.assert_close(got[i : i + 1], explain.attribute(x[i : i + 1], c))


@pytest.mark.parametrize("target", [(1, 2, 3), [(1, 2, 3), (0, 0, 0), (4, 11, 5)]])
def test_outputs_of_more_dimensions(target):
    model, x = segmenter(), images()
    LayerGradCam(model, model.conv).attribute(x, target)
    maps = L2CAF(model, model.conv).attribute(x, target)
    assert maps.shape == (3, 1, 12, 12)
    first = target if isinstance(target, tuple) else target[0]
    around = maps[0, 0, max(first[1] - 1, 0) : first[1] + 2, max(first[2] - 1, 0) : first[2] + 2]
    assert around.square().sum() > 0.9  # only the places that the position sees count


def test_scalar_per_example_needs_no_target():
    model, x = pooled(), images()
    LayerGradCam(lambda x: model(x)[:, 0], model.conv2).attribute(x)
    maps = L2CAF(lambda x: model(x)[:, 0], model.conv2).attribute(x)
    assert maps.shape == (3, 1, 6, 6)


def test_tuples_of_inputs_and_additional_arguments():
    model, x = pooled().double(), images(dtype=torch.float64)  # float32 rounds differently in batches of another size
    extra = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    explain, plain = L2CAF(model, model.conv2), L2CAF(lambda x: model(x, extra, 2.0), model.conv2)
    wanted = plain.attribute(x, 1)
    torch.testing.assert_close(explain.attribute((x, extra), 1, 2.0), wanted)
    torch.testing.assert_close(explain.attribute(x, 1, additional_forward_args=(extra, 2.0)), wanted)
    torch.testing.assert_close(
        explain.attribute(x, 1, additional_forward_args=(extra, 2.0), internal_batch_size=2), wanted
    )
    torch.testing.assert_close(explain.attribute((x,), 1), explain.attribute(x, 1))


def test_input_of_a_layer_and_features_as_input():
    model, x = pooled(), images()
    with torch.no_grad():
        features = model.conv1(x)
    explain = L2CAF(model, model.conv1).attribute(x, 2)

    class Rest(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv2, self.fc = model.act, model.conv2, model.fc

        def forward(self, a):
            a = self.act(a)
            return self.fc((self.act(self.conv2(a)) + a * 0.5).mean((2, 3)))

    rest = Rest().eval()
    got = L2CAF(rest, rest.act).attribute(features, 2, attribute_to_layer_input=True)
    assert got.shape == explain.shape  # act runs twice, so its last run counts: another layer, the same form
    rest.first = nn.Identity()
    rest.forward = lambda a: Rest.forward(rest, rest.first(a))
    torch.testing.assert_close(L2CAF(rest, rest.first).attribute(features, 2, attribute_to_layer_input=True), explain)


def test_data_parallel():
    model, x = pooled(), images()
    parallel = nn.DataParallel(model)
    torch.testing.assert_close(L2CAF(parallel, model.conv2).attribute(x, 1), L2CAF(model, model.conv2).attribute(x, 1))
    L2CAF(lambda x: parallel(x), model.conv2, device_ids=[0]).attribute(x, 1)  # noqa: PLW0108 - a function


def test_several_layers():
    model, x = pooled(), images()
    maps = L2CAF(model, [model.conv1, model.conv2]).attribute(x, 1)
    torch.testing.assert_close(maps[0], L2CAF(model, model.conv1).attribute(x, 1))
    torch.testing.assert_close(maps[1], L2CAF(model, model.conv2).attribute(x, 1))
    (first, _), (_, report) = L2CAF(model, [model.conv1, model.conv2]).attribute(x, 1, return_report=True)
    torch.testing.assert_close(first, maps[0])
    assert report.steps.shape == (3,)


def test_signed_and_report():
    model, x = pooled(), images()
    explain = L2CAF(model, model.conv2)
    signed, report = explain.attribute(x, 0, signed=True, return_report=True)
    torch.testing.assert_close(signed.abs(), explain.attribute(x, 0))
    torch.testing.assert_close(signed.flatten(1).norm(dim=1), torch.ones(3))
    assert (signed < 0).any()
    assert [value.shape for value in vars(report).values()] == [(3,)] * 4


@pytest.mark.parametrize("filter_", [Softmax(), Gaussian(), None])
@pytest.mark.parametrize("solver", [LBFGS(steps=60), PublishedSGD(steps=200)])
def test_filters_and_solvers_lower_the_objective(filter_, solver):
    model, x = pooled(), images()
    maps, report = L2CAF(model, model.conv2).attribute(x, 1, filter=filter_, solver=solver, return_report=True)
    start = L2CAF(model, model.conv2).attribute(x, 1, filter=filter_, solver=LBFGS(steps=1), return_report=True)[1]
    assert (report.objective < start.objective).all()
    if filter_ is not None:
        torch.testing.assert_close(maps.sum((1, 2, 3)), torch.ones(3))


def test_a_batch_gives_the_maps_of_its_examples_and_calls_repeat():
    model, x = pooled().double(), images(5).double()  # in single precision rounding may decide where a solver stops
    for layer, settings in ((model.act, {}), (model.act, {"target": 3}), (model.conv1, {"target": 1})):
        explain = L2CAF(model, layer)
        together = explain.attribute(x, **settings)
        assert torch.equal(together, explain.attribute(x, **settings))
        alone = torch.cat([explain.attribute(x[i : i + 1], **settings) for i in range(5)])
        torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
        torch.testing.assert_close(explain.attribute(x, internal_batch_size=2, **settings), together, atol=1e-6, rtol=0)


def test_a_batch_reaches_the_objectives_of_its_examples_in_single_precision():
    model, x = pooled(), images(5)
    explain = L2CAF(model, model.conv1)
    _, together = explain.attribute(x, 1, return_report=True)
    alone = [explain.attribute(x[i : i + 1], 1, return_report=True)[1].objective for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together.objective, atol=0, rtol=2e-3)


def test_batches_slice_targets_and_references():
    model, x = pooled(), images(5)
    explain, other = L2CAF(model, model.act), torch.randn(5, 5)
    for settings in ({"target": [0, 1, 2, 3, 4]}, {"target": torch.arange(5)}, {"reference": other}):
        torch.testing.assert_close(
            explain.attribute(x, internal_batch_size=2, **settings), explain.attribute(x, **settings)
        )


def test_random_state_is_not_consumed():
    model, x = pooled(), images()
    before = torch.get_rng_state()
    L2CAF(model, model.conv1).attribute(x)
    assert torch.equal(before, torch.get_rng_state())


def test_progress(capsys):
    model, x = pooled(), images()
    L2CAF(model, model.conv1).attribute(x, 1, show_progress=True)
    assert "L2CAF attribution" in capsys.readouterr().err
    L2CAF(model, model.conv1).attribute(x, 1)
    assert capsys.readouterr() == ("", "")


def test_captums_metrics_tunnels_and_pictures():
    model, x = pooled().double(), images().double()
    explain = L2CAF(model, model.conv2)

    def upsampled(inputs, target):
        (inputs,) = inputs if isinstance(inputs, tuple) else (inputs,)
        maps = explain.attribute(inputs, target)
        return LayerAttribution.interpolate(maps, inputs.shape[2:], "bilinear").repeat(1, 3, 1, 1)

    assert upsampled(x, 1).shape == x.shape

    def perturb(inputs):
        noise = 0.01 * torch.ones_like(inputs)
        return noise, inputs - noise

    assert infidelity(model, perturb, x, upsampled(x, 1), target=1).isfinite().all()
    # sensitivity_max hands on a tuple and wants one back, which no layer attribution of captum returns
    assert sensitivity_max(lambda i, target: (upsampled(i, target),), x, target=1).isfinite().all()
    assert sensitivity_max(lambda i, target: (explain.attribute(i, target),), x, target=1).shape == (3,)
    tunnel = NoiseTunnel(explain).attribute(x, nt_samples=3, stdevs=1e-9, target=[0, 1, 2])
    torch.testing.assert_close(tunnel, explain.attribute(x, [0, 1, 2]), atol=1e-5, rtol=0)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    picture = upsampled(x, 1)[0].permute(1, 2, 0).numpy()
    viz.visualize_image_attr(picture, x[0].permute(1, 2, 0).numpy(), "heat_map", use_pyplot=False)


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        torch.is_grad_enabled(),
    )


def same(before, after):
    return (
        all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        and [r for r, _ in before[1]] == [r for r, _ in after[1]]
        and all(g is h is None or torch.equal(g, h) for (_, g), (_, h) in zip(before[1], after[1], strict=True))
        and before[2:] == after[2:]
    )


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_the_network_is_untouched(layer):
    model, x = pooled(), images().requires_grad_()
    model(x).sum().backward()
    model.conv1.weight.requires_grad_(requires_grad=False)
    inputs, grad, before = x.detach().clone(), x.grad.clone(), snapshot(model)
    with torch.no_grad():
        in_no_grad = L2CAF(model, model.get_submodule(layer)).attribute(x, 1)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(in_no_grad, L2CAF(model, model.get_submodule(layer)).attribute(x, 1))
    assert same(before, snapshot(model))
    assert torch.equal(x, inputs)
    assert torch.equal(x.grad, grad)
    frozen = copy.deepcopy(model).requires_grad_(requires_grad=False)
    torch.testing.assert_close(L2CAF(frozen, frozen.get_submodule(layer)).attribute(inputs, 1), in_no_grad)
    assert not in_no_grad.requires_grad


def test_the_network_is_untouched_after_an_exception():
    model, x = pooled(), images()
    before = snapshot(model)

    def broken(output, original):
        raise KeyError("broken")

    def breaks_later(x):
        model(x)
        raise KeyError("later")

    with pytest.raises(KeyError, match="broken"):
        L2CAF(model, model.conv2).attribute(x, objective=broken)
    with pytest.raises(KeyError, match="later"):
        L2CAF(breaks_later, model.conv2).attribute(x)
    with pytest.raises(RuntimeError):
        L2CAF(model, model.conv2).attribute(x[:, :2])
    assert same(before, snapshot(model))
    assert torch.ones(1).requires_grad is False
    torch.testing.assert_close(model(x), Pooled.forward(model, x))


def test_training_mode_warns_and_leaves_statistics_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    x, before = images(), snapshot(model)
    with pytest.warns(UserWarning, match="BatchNorm2d, Dropout in training mode"):
        L2CAF(model, model[0], layout=ChannelsFirst()).attribute(x, 1)
    assert same(before, snapshot(model))
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        L2CAF(model, model[0], layout=ChannelsFirst()).attribute(x, 1)


def test_inference_mode():
    model, x = pooled(), images()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode.*torch.no_grad"):
        L2CAF(model, model.conv2).attribute(x)

    def forward(x):
        with torch.inference_mode():
            return model(x)

    with pytest.raises(RuntimeError, match="inference_mode"):
        L2CAF(forward, model.conv2).attribute(x)
    with torch.inference_mode():
        made_there = images()
    torch.testing.assert_close(L2CAF(model, model.conv2).attribute(made_there), L2CAF(model, model.conv2).attribute(x))


def test_autocast():
    model, x = pooled(), images()
    wanted = L2CAF(model, model.conv2).attribute(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        got = L2CAF(model, model.conv2).attribute(x, 1)
    assert ((got * wanted).sum((1, 2, 3)) > 0.97).all()  # a cosine: both have norm one


def test_copies_and_pickles():
    model, x = pooled(), images()
    explain = L2CAF(model, model.conv2)
    for twin in (copy.deepcopy(explain), pickle.loads(pickle.dumps(explain))):  # noqa: S301
        torch.testing.assert_close(twin.attribute(x, 1), explain.attribute(x, 1))
    assert not explain.has_convergence_delta()


class ClassToken(nn.Module):
    """A transformer's last block in small: only the first token is read."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm1 = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.num_prefix_tokens = 1

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        x = self.norm1(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x)[:, 0])


@pytest.mark.parametrize("trainable", [True, False])
def test_layers_whose_places_lead_nowhere_name_the_nearest_that_will_do(trainable):
    torch.manual_seed(0)
    model, x = ClassToken().eval().requires_grad_(trainable), images()
    with pytest.raises(ValueError, match=r"LayerNorm has no map: its places do not reach the output.*'norm1'"):
        L2CAF(model, model.norm).attribute(x)
    with pytest.raises(ValueError, match="pass an earlier layer"):
        L2CAF(lambda x: model(x), model.norm, layout=Tokens((3, 3), 1)).attribute(x)  # noqa: PLW0108 - a function
    assert L2CAF(model, model.norm1).attribute(x).shape == (3, 1, 3, 3)

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, stride=4)
            self.norm = nn.LayerNorm(8, eps=1e-12)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.norm(self.conv(x).movedim(1, -1)).mean((1, 2)))

    model = Normalised().eval()
    with pytest.raises(ValueError, match=r"normalises every place by itself.*no earlier one will do"):
        L2CAF(model, model.conv).attribute(x)


class TwoTensors(nn.Module):
    def forward(self, x):
        return x, x + 1


def bad_calls():
    model, x = pooled(), images()
    explain = L2CAF(model, model.conv2)
    pair = nn.Sequential(nn.Conv2d(3, 4, 3), TwoTensors())
    pair.forward = lambda x: pair[1](pair[0](x))[0].mean((2, 3))
    nans = x.clone()
    nans[0, 0, 0, 0] = float("nan")
    unused = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3))
    unused.forward = lambda x: unused[0](x).mean((2, 3))
    return {
        "foreign layer": (
            lambda: L2CAF(model, nn.ReLU()).attribute(x),
            ValueError,
            "layer must be a module of forward_func, got a ReLU",
        ),
        "layer never reached": (lambda: L2CAF(unused, unused[1]).attribute(x), ValueError, "never reached"),
        "no module": (lambda: L2CAF(model, "conv2"), TypeError, "layer must be a torch.nn.Module"),
        "a vector": (lambda: L2CAF(model, model.fc).attribute(x), ValueError, r"shape \(3, 5\), has no places"),
        "two tensors": (lambda: L2CAF(pair, pair[1]).attribute(x), ValueError, "returns 2, of shapes"),
        "more dimensions": (lambda: L2CAF(segmenter(), None), TypeError, "layer must be"),
        "reference width": (
            lambda: explain.attribute(x, reference=torch.ones(3, 4)),
            ValueError,
            r"\(3, 5\).*got \(3, 4\)",
        ),
        "reference rows": (lambda: explain.attribute(x, reference=torch.ones(2, 5)), ValueError, r"got \(2, 5\)"),
        "reference kind": (
            lambda: explain.attribute(x, reference=[1.0]),
            TypeError,
            "reference must be a tensor, got list",
        ),
        "reference nan": (
            lambda: explain.attribute(x, reference=torch.full((1, 5), torch.nan)),
            ValueError,
            "reference must be finite",
        ),
        "empty": (lambda: explain.attribute(x[:0]), ValueError, "at least one example"),
        "not tensors": (lambda: explain.attribute([x]), TypeError, "inputs must be a tensor or a tuple"),
        "other sizes": (lambda: explain.attribute((x, x[:2])), ValueError, r"same number of examples, got \[3, 2\]"),
        "nan": (lambda: explain.attribute(nans), ValueError, "activations of layer must be finite"),
        "two questions": (
            lambda: explain.attribute(x, 1, reference=torch.ones(1, 5)),
            ValueError,
            "exclude each other",
        ),
        "target range": (
            lambda: explain.attribute(x, 5),
            ValueError,
            r"out of range for the output of shape \(3, 5\), got 5",
        ),
        "target count": (lambda: explain.attribute(x, [1, 2]), ValueError, "each of the 3 examples, got 2"),
        "target width": (lambda: explain.attribute(x, (1, 2)), ValueError, "must name 1 position in the output"),
        "target mixed": (lambda: explain.attribute(x, [(1,), (1, 2), (1,)]), ValueError, "must name 1 position"),
        "target float": (lambda: explain.attribute(x, torch.ones(3)), TypeError, "integers"),
        "target kind": (lambda: explain.attribute(x, "cat"), TypeError, "target must be an int"),
        "batch size": (
            lambda: explain.attribute(x, 1, internal_batch_size=0),
            ValueError,
            "internal_batch_size must be at least 1",
        ),
        "objective": (
            lambda: explain.attribute(x, objective=lambda out, _: out.sum()),
            ValueError,
            "one value per example",
        ),
        "output": (
            lambda: L2CAF(lambda x: model(x).sum(), model.conv2).attribute(x),
            ValueError,
            "one row per example",
        ),
        "output kind": (lambda: L2CAF(lambda x: [model(x)], model.conv2).attribute(x), ValueError, "got list"),
        "layout": (lambda: L2CAF(model, model.conv2, layout=Tokens((3, 3))).attribute(x), ValueError, "3 dimensions"),
    }


@pytest.mark.parametrize("case", bad_calls())
def test_bad_input(case):
    call, error, message = bad_calls()[case]
    with pytest.raises(error, match=message):
        call()


def test_output_of_more_dimensions_needs_a_target():
    model, x = segmenter(), images()
    with pytest.raises(ValueError, match=r"must return \(B, K\) where no target.*\(3, 5, 12, 12\)"):
        L2CAF(model, model.conv).attribute(x)
    with pytest.raises(ValueError, match="must name 3 positions"):
        L2CAF(model, model.conv).attribute(x, 1)


def test_a_layer_must_keep_the_examples():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            halves = torch.cat(x.chunk(2, dim=3))
            return torch.cat(self.conv(halves).chunk(2), dim=3).mean((2, 3))

    model = Windows().eval()
    with pytest.raises(ValueError, match=r"examples in its first dimension \(3\)"):
        L2CAF(model, model.conv).attribute(images())
