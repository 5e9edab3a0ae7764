"""Statistics estimated anew: the rule, what is estimated and what stays, and that nothing else changes."""

import copy
import itertools
import random
import warnings

import numpy as np
import pytest
import timm
import torch
from timm.layers import EvoNorm2dB0, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from pml_extensions.evolution import KELS, KnowledgeEvolution, reestimate_statistics


def images(n, *, size=32, channels=3, seed=0):
    return 2 * torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.fixture
def batches():
    return list(images(23).split(8))  # the last one is short


@pytest.fixture
def trained(batches):
    """A network with statistics of its own, in a mixture of modes."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, drop_rate=0.3, drop_path_rate=0.3)
    for batch in batches:
        model(batch).square().mean().backward()
    model.layer2.eval()
    model.layer3[0].bn1.momentum = 0.03
    return model


def traces(model):
    """Everything about a model and the generators that should be as before, other than statistics."""
    return {
        "modes": [module.training for module in model.modules()],
        "momenta": [getattr(module, "momentum", "none") for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "weights": [p.detach().clone() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
    }


def assert_same(found, expected):
    for name, before in expected.items():
        after = found[name]
        if isinstance(before, list) and any(isinstance(value, torch.Tensor) for value in before):
            assert all(a is b or torch.equal(a, b) for a, b in zip(after, before, strict=True)), name
        elif isinstance(before, (torch.Tensor, np.ndarray)):
            assert (after == before).all(), name
        else:
            assert after == before, name


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def mean_of_moments(features):
    """The published rule in plain words: the mean over batches of each batch's mean and unbiased variance."""
    rows = [x.double().transpose(0, 1).flatten(1) for x in features]
    return torch.stack([r.mean(1) for r in rows]).mean(0), torch.stack([r.var(1) for r in rows]).mean(0)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "levit_128s"])
def test_equals_update_bn_to_the_bit(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, drop_rate=0, drop_path_rate=0)
    data = list(images(5, size=224 if name.startswith("levit") else 32).split(2))
    data[-1] = data[0]
    expected = copy.deepcopy(model)
    with torch.no_grad():
        update_bn(data, expected)
    reestimate_statistics(model, data)
    assert_equal(state(model), state(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [None, 0.1, 0.0, 1.0])
def test_the_rule(dtype, momentum):
    norm = nn.BatchNorm2d(3, momentum=momentum, dtype=dtype)
    norm.running_mean.fill_(float("nan"))  # of a training that went wrong
    data = [x.to(dtype) * 10.0**k for k, x in enumerate(images(23, size=5).split(8))]
    reestimate_statistics(norm, data)
    for found, expected in zip((norm.running_mean, norm.running_var), mean_of_moments(data), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-7)
    assert norm.num_batches_tracked == 3
    assert norm.momentum == momentum


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm1d(4), (6, 4, 7)),
        (nn.BatchNorm3d(4, affine=False), (6, 4, 2, 3, 2)),
        (nn.SyncBatchNorm(4), (6, 4, 3, 3)),
        (timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout), (6, 4, 3, 3)),
    ],
)
def test_every_batch_norm(norm, shape):
    data = [torch.randn(shape) * (k + 1) for k in range(3)]
    reestimate_statistics(norm, data)
    for found, expected in zip((norm.running_mean, norm.running_var), mean_of_moments(data), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_instance_norms_with_statistics():
    norm = nn.InstanceNorm2d(3, track_running_stats=True, affine=True)
    data = list(images(10, size=4).split(4))
    reestimate_statistics(norm, data)
    each = [x.double().flatten(2) for x in data]
    mean, variance = torch.stack([x.mean(2).mean(0) for x in each]), torch.stack([x.var(2).mean(0) for x in each])
    torch.testing.assert_close(norm.running_mean.double(), mean.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variance.mean(0), rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.1
    assert norm.training


def test_norms_of_timm_that_gather_a_variance_alone():
    norm = EvoNorm2dB0(3)
    data = list(images(12, size=4).split(4))
    reestimate_statistics(norm, data)
    torch.testing.assert_close(norm.running_var.double(), mean_of_moments(data)[1], rtol=1e-5, atol=1e-6)


def test_a_norm_that_is_called_twice_a_pass():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            self.norm(x)
            return self.norm(3 * x + 1)

    model, data = Twice(), [torch.randn(9, 2), torch.randn(5, 2)]
    reestimate_statistics(model, data)
    mean, variance = mean_of_moments([scaled for x in data for scaled in (x, 3 * x + 1)])
    torch.testing.assert_close(model.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), variance, rtol=1e-5, atol=1e-6)


def test_all_other_modules_are_as_in_use():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 3), nn.BatchNorm1d(3))
    data = [torch.randn(64, 4) + 2 for _ in range(3)]
    reestimate_statistics(model, data)
    mean, variance = mean_of_moments(data)
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), variance, rtol=1e-5, atol=1e-6)
    outputs = model.eval()(torch.cat(data))
    torch.testing.assert_close(outputs.mean(0), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(outputs.var(0), torch.ones(3), rtol=0, atol=0.1)


@pytest.mark.parametrize("freeze", [freeze_batch_norm_2d, lambda model: model])
def test_frozen_norms_are_constants(freeze, batches):
    frozen = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.BatchNormAct2d(4), nn.Conv2d(4, 2, 3)))
    model = nn.Sequential(*frozen, nn.BatchNorm2d(2)) if freeze is freeze_batch_norm_2d else frozen
    before = state(model)
    reestimate_statistics(model, batches)
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    norm = "3" if freeze is freeze_batch_norm_2d else "1"
    assert changed == {f"{norm}.running_mean", f"{norm}.running_var", f"{norm}.num_batches_tracked"}


def test_frozen_norms_can_be_thawed_first(batches):
    torch.manual_seed(0)
    model = freeze_batch_norm_2d(timm.create_model("test_resnet", num_classes=3))
    before = state(model)
    reestimate_statistics(model, Untouchable())
    assert_equal(state(model), before)
    thawed = unfreeze_batch_norm_2d(model)
    reestimate_statistics(thawed, batches)
    assert not torch.equal(thawed.state_dict()["conv1.1.running_var"], before["conv1.1.running_var"])


class Untouchable:
    """Data that must not be read."""

    def __iter__(self):
        raise AssertionError("the data were read")


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_nfnet", "test_vit2"])
def test_a_network_without_such_norms_does_not_touch_the_data(name):
    model = timm.create_model(name, num_classes=3)
    before = state(model)
    reestimate_statistics(model, Untouchable())
    assert_equal(state(model), before)


def test_the_slim_network_of_one_without_such_norms_is_the_published_one():
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    ke = KnowledgeEvolution(model, KELS(0.5, example_input=torch.zeros(2, 3)))
    assert_equal(state(ke.slim(Untouchable())), state(ke.slim()))


def test_norms_without_statistics_count_as_none():
    reestimate_statistics(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), Untouchable())
    reestimate_statistics(nn.Sequential(nn.InstanceNorm1d(2)), Untouchable())


def test_what_evaluation_does_not_reach_keeps_its_statistics(batches):
    class WithAuxiliaryHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.training_alone = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.training_alone(x) if self.training else self.used(x)

    model = WithAuxiliaryHead()
    model(batches[0])
    before = state(model)
    reestimate_statistics(model, batches)
    changed = {name.split(".")[0] for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {"used"}


def augmented(loader):
    for (batch,) in loader:
        yield batch + torch.rand(1) + random.random() + np.random.rand(), 0  # noqa: NPY002, S311


def test_nothing_but_the_statistics_changes(trained):
    loader = DataLoader(TensorDataset(images(16)), batch_size=8, shuffle=True)  # draws from the global generator
    for data in (loader, augmented(loader)):
        before, tensors = traces(trained), state(trained)
        reestimate_statistics(trained, data)
        assert_same(traces(trained), before)
        changed = {name.rpartition(".")[2] for name, t in state(trained).items() if not torch.equal(t, tensors[name])}
        assert changed >= {"running_mean", "running_var"}
        assert not changed - {"running_mean", "running_var", "num_batches_tracked"}


def test_what_is_remembered_for_evaluation_is_forgotten_where_training_goes_on():
    """LeViT keeps its attention biases in evaluation mode; were they kept, evaluation after training used old ones."""
    model = timm.create_model("levit_128s", num_classes=2)
    reestimate_statistics(model, [images(2, size=224)])
    assert not any(getattr(module, "attention_bias_cache", None) for module in model.modules())


class BrokenError(Exception):
    pass


def broken(batches, error):
    yield from batches
    raise error


@pytest.mark.parametrize("read", [0, 2])
@pytest.mark.parametrize("error", [BrokenError(), KeyboardInterrupt(), ValueError("no such file")])
def test_after_an_exception_in_the_data_everything_is_as_before(trained, batches, error, read):
    before, tensors = traces(trained), state(trained)
    with pytest.raises(type(error)) as raised:
        reestimate_statistics(trained, broken(batches[:read], error))
    assert raised.value is error
    assert_same(traces(trained), before)
    assert_equal(state(trained), tensors)


class KerasLike(nn.Module):
    """Its momentum counts the old statistics."""

    def __init__(self):
        super().__init__()
        self.momentum = 0.99
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        if self.training:
            self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * x.mean((0, 2, 3)))
        return x


NAN = float("nan")
ONE_PIXEL = nn.Sequential(nn.Conv2d(3, 4, 32), nn.BatchNorm2d(4))
BAD = {
    "no batch": (None, [], ValueError, "at least one batch, got none"),
    "a used-up iterator": (None, iter(()), ValueError, "used up"),
    "a number": (None, 3, TypeError, "a DataLoader or a list of batches, got a int"),
    "images alone": (None, images(4), TypeError, r"got a Tensor; write \[images\]"),
    "one dict": (None, {"image": images(4)}, TypeError, "got a dict"),
    "a class": (None, DataLoader, TypeError, "the class DataLoader"),
    "arrays": (None, [np.zeros((2, 3, 32, 32))], TypeError, "got as batch 0 a ndarray"),
    "a later batch": (None, [images(4), (3, 4)], TypeError, r"got as batch 1 a tuple of \(int, int\)"),
    "an empty tuple": (None, [()], TypeError, r"a tuple of \(\)"),
    "crops": (None, [([images(2), images(2)], 0)], TypeError, r"a tuple of \(list, int\)"),
    "a dict of two": (None, [{"a": images(2), "b": images(2)}], TypeError, "'a': 'Tensor', 'b': 'Tensor'"),
    "a dict of none": (None, [{"label": torch.zeros(2).long()}], TypeError, "'label'"),
    "an empty batch": (None, [images(0)], ValueError, "batch 0 is empty"),
    "another number of channels": (None, [images(4, channels=1)], ValueError, r"float32.*batch 0, \(4, 1, 32, 32\)"),
    "one sample, not a batch": (None, list(images(2)), ValueError, r"\(3, 32, 32\)"),
    "bytes": (None, [images(4).byte()], ValueError, "float32.*batch 0.*uint8"),
    "doubles": (None, [images(4), images(4).double()], ValueError, "float32.*batch 1.*float64"),
    "one image where two are needed": (ONE_PIXEL, [images(1)], ValueError, "more than one image a batch.*than 1 value"),
    "not finite": (None, [images(4), images(4) * NAN], ValueError, "'conv1.1' are not finite"),
    "another kind of norm": (KerasLike(), [images(2)], ValueError, "KerasLike.*as torch's norms do"),
    "another kind of norm, twice": (KerasLike(), [images(2)] * 2, ValueError, "KerasLike.*as torch's norms do"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case, trained):
    model, data, error, words = BAD[case]
    model = trained if model is None else model
    before, tensors = traces(model), state(model)
    with pytest.raises(error, match=words):
        reestimate_statistics(model, data)
    assert_same(traces(model), before)
    assert_equal(state(model), tensors)


@pytest.mark.parametrize(
    ("batches", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_bad_number_of_batches(batches, error):
    with pytest.raises(error, match="batches must be"):
        reestimate_statistics(nn.BatchNorm1d(2), [torch.randn(4, 2)], batches=batches)


def test_other_sizes_where_a_network_was_made_for_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    slim = KELS(0.5, example_input=images(2, size=4)).slim(model)
    tensors = state(slim)
    with pytest.raises(ValueError, match=r"\(N, 3, 4, 4\) of torch.float32.*batch 0, \(2, 3, 5, 5\)"):
        reestimate_statistics(slim, [images(2, size=5)])
    assert_equal(state(slim), tensors)


LABELS = torch.arange(8)
FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, LABELS),
    "list": lambda x: [x, LABELS, "path"],
    "hugging face": lambda x: {"labels": LABELS, "pixel_values": x},
    "pytorch-metric-learning": lambda x: {"data": x, "labels": LABELS},
    "forward's argument": lambda x: {"x": x, "image": 0, "weights": torch.ones(8)},
    "image": lambda x: {"weights": torch.ones(8), "image": x},
    "the only floats": lambda x: {"picture": x, "label": LABELS},
    "DALI": lambda x: [{"data": x, "label": LABELS}],
    "dict in a tuple": lambda x: ({"image": x}, LABELS),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_as_loaders_give_them(form):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    expected, data = copy.deepcopy(model), list(images(16).split(8))
    reestimate_statistics(expected, data)
    reestimate_statistics(model, [FORMS[form](x) for x in data])
    assert_equal(state(model), state(expected))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.norm, self.last = (
            nn.Linear(3, 8),
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 2),
        )

    def forward(self, a, b):
        return self.last(self.norm(self.left(a) + self.right(b)))


@pytest.mark.parametrize(
    "form", [lambda a, b: (a, b, LABELS), lambda a, b: ((a, b), LABELS), lambda a, b: {"b": b, "a": a, "label": LABELS}]
)
def test_a_network_of_two_inputs(form):
    torch.manual_seed(0)
    model, pairs = Pair(), [(torch.randn(8, 3), torch.randn(8, 4)) for _ in range(3)]
    slim = KELS(0.5, example_input=pairs[0]).slim(model, [form(*pair) for pair in pairs])
    mean, variance = mean_of_moments([slim.left(a) + slim.right(b) for a, b in pairs])
    torch.testing.assert_close(slim.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slim.norm.running_var.double(), variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("settings", "read"), [({}, 50), ({"batches": 3}, 3)])
def test_an_endless_loader(settings, read):
    counter = itertools.count()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ke = KnowledgeEvolution(model, KELS(0.5, example_input=torch.zeros(2, 2)))
    slim = ke.slim((torch.randn(4, 2) + 0 * next(counter) for _ in itertools.count()), **settings)
    assert next(counter) == read == slim[1].num_batches_tracked


def test_wrapped_models(batches):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    expected = copy.deepcopy(model)
    reestimate_statistics(expected, batches)
    for wrap in (nn.DataParallel, torch.compile):
        wrapped = copy.deepcopy(model)
        reestimate_statistics(wrap(wrapped), batches)
        assert_equal(state(wrapped), state(expected))


def test_parts_that_are_compiled_or_scripted_are_refused(trained, batches):
    tensors = state(trained)
    trained.layer1.compile()
    with pytest.raises(TypeError, match="must not be compiled in part, but its module 'layer1'"):
        reestimate_statistics(trained, batches)
    assert_equal(state(trained), tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
        scripted = nn.Sequential(torch.jit.script(nn.BatchNorm1d(2)))
    with pytest.raises(TypeError, match="must not be scripted in part, but its module '0'"):
        reestimate_statistics(scripted, [torch.randn(4, 2)])


def test_half_precision(batches):
    model = timm.create_model("test_resnet", num_classes=3)
    expected = copy.deepcopy(model)
    reestimate_statistics(expected, batches)
    reestimate_statistics(model.bfloat16(), [batch.bfloat16() for batch in batches])
    assert {t.dtype for t in state(model).values()} == {torch.bfloat16, torch.int64}
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].to(tensor.dtype), tensor, rtol=0.1, atol=0.1)


def test_slim_of_an_evolution(trained, batches):
    split = KELS(0.5, example_input=images(2))
    ke = KnowledgeEvolution(trained, split)
    before, tensors = traces(trained), state(trained)
    slim, published = ke.slim(batches), ke.slim()
    assert_same(traces(trained), before)
    assert_equal(state(trained), tensors)
    reestimate_statistics(published, batches)
    assert_equal(state(slim), state(published))
    assert_equal(state(split.slim(trained, batches)), state(slim))
    assert_equal(state(split.slim(trained, batches * 2, batches=3)), state(slim))
    assert [m.training for m in slim.modules()] == [m.training for m in trained.modules()]


def test_slim_of_a_resumed_run(batches):
    def evolution():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3)
        return model, KnowledgeEvolution(model, KELS(0.5, example_input=images(2)))

    model, ke = evolution()
    ke.reset()
    other, resumed = evolution()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(ke.state_dict())
    for network, run in ((model, ke), (other, resumed)):
        run.reset()
        network.train()(batches[0])
    assert_equal(state(resumed.slim(batches)), state(ke.slim(batches)))


def test_a_split_of_the_users_own_with_a_slim_network_still_works():
    class Own:
        def __call__(self, model):
            return {"0.weight": torch.zeros(2, 2, dtype=torch.bool)}

        def slim(self, model):
            return "slim"

    assert KnowledgeEvolution(nn.Sequential(nn.Linear(2, 2)), Own()).slim() == "slim"
