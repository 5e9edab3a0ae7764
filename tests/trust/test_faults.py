"""An exception from inside the user's layer, at every call in turn: all is as before, and the next call works."""

import copy
import warnings

import pytest
import timm
import torch
from classes import randn
from torch import nn
from watching import assert_untouched, fingerprint

from pml_extensions.attr import L2CAF, LBFGS, ClassOblivious, ClassSpecific, last_feature_layer
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, LayerDefault
from pml_extensions.models import TwoHead


class BoomError(Exception):
    pass


class Fault:
    """When to raise, and what; shared by all copies of a layer."""

    def __init__(self):
        self.at, self.calls, self.error = None, 0, BoomError

    def __deepcopy__(self, memo):
        return self

    def count(self):
        self.calls += 1
        if self.calls - 1 == self.at:
            raise self.error


class Faulty(nn.Module):
    """A user's layer with weights that only a forward pass can tell the use of."""

    def __init__(self, fault, reads):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6) + 0.1 * randn(6, 6))
        self.fault, self.reads = fault, reads

    def forward(self, x):
        self.fault.count()
        x = torch.einsum("oc,bchw->bohw", self.weight, x)
        return x * 2 if self.reads and float(x.sum()) > 1e30 else x


def network(fault, reads=False):
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Faulty(fault, reads), nn.ReLU()]
    model = nn.Sequential(*features, Faulty(fault, reads), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model(randn(2, 3, 7, 7)).sum().backward()  # so that there are gradients to keep
    model[0].bias.requires_grad_(requires_grad=False)
    return model.eval()


X = randn(2, 3, 7, 7)


def squared(output, original):
    return (output - 2 * original).square().sum(1)


def curved(output, original):
    return (output - original).abs().sum(1)


BRIEF = LBFGS(steps=4)


def explained(**kwargs):
    return lambda model: L2CAF(model, model[2]).attribute(X, **kwargs, solver=BRIEF)


def in_training_mode(model):
    model.train()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return L2CAF(model, model[2]).attribute(X, 1, solver=BRIEF)
    finally:
        model.eval()


ATTRIBUTIONS = {
    "class": explained(target=1),
    "oblivious": explained(),
    "closed form": lambda model: L2CAF(model, model[4]).attribute(X, 1),
    "in parts": explained(target=[0, 1], internal_batch_size=1),
    "quadratic": explained(objective=squared),
    "iterative": explained(objective=curved),
    "layer input": explained(target=1, attribute_to_layer_input=True),
    "two layers": lambda model: L2CAF(model, [model[0], model[2]]).attribute(X, 1, solver=BRIEF),
    "useless layer": lambda model: attempt(lambda: L2CAF(model, model[6]).attribute(X, 1)),
    "training mode": in_training_mode,
    "last layer": lambda model: last_feature_layer(model, X)(randn(2, 6, 5, 5)),
}
EVOLUTIONS = {
    "WELS": lambda model: KnowledgeEvolution(model, WELS(0.5, example_input=X)).masks,
    "KELS": lambda model: KnowledgeEvolution(model, KELS(0.5, example_input=X)).masks,
    "slim": lambda model: KELS(0.5, example_input=X).slim(model)(X),
    "summary": lambda model: str(KnowledgeEvolution(model, KELS(0.5, example_input=X)).summary()),
}


def attempt(call):
    """The useless layer's own error, with the name of a better layer, is what is looked for; others pass through."""
    with pytest.raises(ValueError, match=r"no places|has no map") as raised:
        call()
    return str(raised.value)


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(map(equal, one, other))
    return one == other


def raise_at_every_call(model, fault, use):
    """Return how often the fault reached the user, of how many calls of the layer."""
    fault.at, fault.calls = None, 0
    expected, calls = use(model), fault.calls
    before, states, reached = fingerprint(model), torch.get_rng_state(), 0
    for index in range(calls):
        fault.at, fault.calls, fault.error = index, 0, (BoomError, KeyboardInterrupt)[index % 2]
        grad_mode = torch.is_grad_enabled()
        try:
            use(model)
        except (Exception, KeyboardInterrupt):  # noqa: BLE001 (an analysis may say it in its own words)
            reached += 1
        assert torch.is_grad_enabled() == grad_mode
        assert torch.get_rng_state().equal(states)
        assert_untouched(model, before)
    fault.at, fault.calls = None, 0
    assert equal(use(model), expected)
    return reached, calls


@pytest.mark.parametrize("use", ATTRIBUTIONS)
def test_attribution(use):
    fault = Fault()
    reached, calls = raise_at_every_call(network(fault), fault, ATTRIBUTIONS[use])
    assert reached == calls > 0


@pytest.mark.filterwarnings("ignore:what follows the layer cannot be played back")
def test_attribution_that_runs_the_network_at_every_step():
    fault = Fault()
    reached, calls = raise_at_every_call(network(fault, reads=True), fault, ATTRIBUTIONS["iterative"])
    assert reached == calls > 8


@pytest.mark.parametrize("use", EVOLUTIONS)
def test_evolution(use):
    fault = Fault()
    reached, calls = raise_at_every_call(network(fault), fault, EVOLUTIONS[use])
    assert calls > 0
    assert reached > 0


def test_generations():
    """A rule that raises at each weight in turn, and a training loop that is left by an exception."""
    fault = Fault()
    model = network(fault)

    def rule(values, generator, owner):
        fault.count()
        return values.normal_(generator=generator)

    ke = KnowledgeEvolution(model, WELS(0.5, example_input=X), rule=rule)
    before = fingerprint(model)
    for index in range(len(ke.masks)):
        for error in (BoomError, KeyboardInterrupt):
            fault.at, fault.calls, fault.error = index, 0, error
            with pytest.raises(error):
                ke.reset()
            fault.calls = 0
            with pytest.raises(error):
                ke.start(rule)
            assert ke.generation == 0
            assert_untouched(model, before)
    generations = ke.generations(3)
    next(generations)
    fault.calls = 0
    with pytest.raises(KeyboardInterrupt):
        next(generations)
    assert ke.generation == 0
    assert_untouched(model, before)
    fault.at = None
    assert [generation.index for generation in ke.generations(3)] == [
        1,
        2,
    ]  # the first is trained; its reset is tried again


def test_a_layer_whose_own_reset_raises():
    class Breaks(nn.Linear):
        breaks = False

        def reset_parameters(self):
            super().reset_parameters()
            if self.breaks:
                raise BoomError

    model = nn.Sequential(nn.Linear(4, 4), Breaks(4, 4))
    ke = KnowledgeEvolution(model, WELS(0.5), rule=LayerDefault())
    Breaks.breaks = True
    before, state = fingerprint(model), torch.get_rng_state()
    with pytest.raises(BoomError):
        ke.reset()
    assert_untouched(model, before)
    assert torch.get_rng_state().equal(state)


def test_a_dry_run_that_raises():
    class Raising(nn.Module):
        def forward(self, _):
            raise BoomError

    model = timm.create_model("test_resnet", num_classes=3).train()
    model.layer4.append(Raising())
    before = fingerprint(model)
    with pytest.raises(BoomError):
        TwoHead(model, 4, pooling="flatten", input_size=(3, 32, 32))
    assert_untouched(model, before)


@pytest.mark.parametrize("objective", [ClassOblivious(), ClassSpecific(torch.tensor([[1], [2]]))])
def test_an_objective_that_raises_at_every_call(objective):
    fault = Fault()
    model = network(Fault())

    def counted(output, original):
        fault.count()
        return objective(output, original)

    reached, calls = raise_at_every_call(
        model, fault, lambda model: L2CAF(model, model[2]).attribute(X, objective=counted, solver=BRIEF)
    )
    assert reached == calls > 0


def test_the_check_sees_a_change():
    model = network(Fault())
    for change in (
        lambda twin: twin[0].weight.data.add_(1e-7),
        lambda twin: twin.train(),
        lambda twin: twin[0].register_forward_hook(lambda *_: None),
        lambda twin: twin[0].bias.requires_grad_(requires_grad=True),
        lambda twin: twin[1].running_mean.neg_(),
        lambda twin: setattr(twin, "mark", 1),
        lambda twin: setattr(twin[0].weight, "grad", None),
    ):
        twin = copy.deepcopy(model)
        twin[0].weight.grad = torch.ones_like(twin[0].weight)
        before = fingerprint(twin)
        change(twin)
        with pytest.raises(AssertionError):
            assert_untouched(twin, before)
