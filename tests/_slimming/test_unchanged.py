"""What stays whole because it is an output, and what becomes no narrower at all: said with the reason."""

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pml_extensions.evolution import KELS, KnowledgeEvolution, TracingError


class Outputs(nn.Module):
    """Logits, and the features that they are made from."""

    def __init__(self, inner=()):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 16), nn.Sequential(*inner), nn.Linear(16, 2)

    def forward(self, x):
        features = self.first(x)
        return {"logits": self.last(self.inner(features)), "features": features}


class Residual(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.first(x).view(-1, 8))


def perceptron():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


UNCHANGED = {  # a model, its input, settings, and what is said
    "norm": (
        lambda: nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16)),
        {},
        "16 at submodule '0': an output of the net",
    ),
    "LSTM": (lambda: nn.LSTM(4, 32), {}, "32 at submodule '': an output of the network"),
    "several outputs": (Outputs, {}, r"16 at test_unchanged.py:\d+: an output of the network; 2 at test_unchanged.py"),
    "residual": (lambda: Residual(4, 4), {}, r"4 at test_unchanged.py:\d+: an input of the network"),
    "rate": (perceptron, {"rate": 0.95}, "every width is rounded up to what it is"),
    "multiple": (perceptron, {"multiple": 8}, "every width is rounded up to what it is"),
    "number": (Written, {}, r"8 at test_unchanged.py:\d+: a number in the code ties it down \(test_unchanged.py"),
    "no weight": (nn.Identity, {}, "the model multiplies its input with no weight"),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_network_that_stays_as_wide(name):
    make, settings, reason = UNCHANGED[name]
    model, split = make(), KELS(**{"rate": 0.5, "example_input": torch.randn(2, 4)} | settings)
    with pytest.warns(UserWarning, match=rf"as wide as the dense one: {reason}.*give KELS the model with the layers"):
        slim = split.slim(model)
    assert [p.shape for p in slim.parameters()] == [p.shape for p in model.parameters()]
    if name != "no weight":
        with pytest.warns(UserWarning, match="keeps every weight"):
            summary = KnowledgeEvolution(model, split).summary()
        assert "\nnothing becomes narrower: " in str(summary)
        assert summary.slim.unchanged == split.widths(model).unchanged != ""


class Loc:
    """An object of the network's own."""

    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


@dataclass
class Found:
    logits: Tensor
    note: str = "of a network"


@pytest.mark.parametrize(
    "wrap",
    [
        Found,
        Loc,
        lambda out: {"found": [Found(out)]},
        lambda out: SimpleNamespace(inner=Found(out)),
        lambda out: (out.mean(1), torch.distributions.Normal(out, torch.ones_like(out), validate_args=False)),
        lambda out: deque([out]),
    ],
)
def test_outputs_in_objects_keep_their_size(wrap):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = perceptron()

        def forward(self, x):
            return wrap(self.layers(x))

    split = KELS(0.5, example_input=torch.randn(2, 4))
    slim = split.slim(Wrapped())
    assert (slim.layers[0].out_features, slim.layers[2].out_features) == (4, 2)
    assert split.compare(Wrapped()).outputs[0].startswith("2 at ")


def test_a_network_that_returns_no_tensor_is_refused():
    class Steps(nn.Linear):
        def forward(self, x):
            return iter([super().forward(x)])

    with pytest.raises(TracingError, match=r"must return tensors, alone or in .* got list_iterator"):
        KELS(0.5, example_input=torch.randn(2, 4)).slim(Steps(4, 8))


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: x * torch.arange(x.shape[1]).to(x), "a table of positions"),
        (lambda x: nn.functional.local_response_norm(x[..., None], 3).squeeze(2), "space"),
        (lambda x: torch.stack(x.unbind(1), 1), "it joins parts of one entry each"),
        (lambda x: x.unfold(1, 4, 4).flatten(1), "windows are cut from it"),
    ],
)
def test_what_code_makes_of_a_width_is_told(operation, reason):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.second(operation(self.first(x))))

    summary = KELS(0.5, example_input=torch.randn(2, 4)).compare(Between())
    assert [line.split()[0] for line in summary.outputs] == ["16", "2"]
    assert f": {reason} (test_unchanged.py" in summary.outputs[0]


def test_what_no_pass_uses_is_told():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.other, self.training_alone = perceptron(), nn.Linear(4, 4, bias=False), nn.Linear(8, 3)

        def forward(self, x):
            hidden = self.layers[:2](x)
            return (self.layers[2](hidden), self.training_alone(hidden)) if self.training else self.layers[2](hidden)

    summary = KELS(0.5, example_input=torch.randn(2, 4)).compare(Unused())
    assert summary.unused == ("other.weight",)
    assert "stays whole: no forward pass uses other.weight" in str(summary)


def test_a_rate_of_one_is_meant():
    KELS(1, example_input=torch.randn(2, 4)).slim(perceptron())


def test_outputs_are_told_apart_from_widths_that_could_not_be_narrowed():
    split = KELS(0.5, example_input=torch.randn(2, 4))
    summary = split.compare(Outputs([nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 16)]))
    assert summary.whole == ()
    assert [line.split()[0] for line in summary.outputs] == ["16", "2"]
    assert all(line.endswith("an output of the network") for line in summary.outputs)
    assert summary.unchanged == ""
    assert str(summary).count("stays whole") == 2
    assert split.compare(perceptron()).outputs == ("2 at submodule '2': an output of the network",)
