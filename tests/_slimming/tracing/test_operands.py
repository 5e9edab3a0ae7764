"""How a pass uses parameters: what is handed on whole on the way to a product, and what becomes of the axis it adds."""

import math

import pytest
import torch
from slim_checks import exactness
from torch import nn
from torch.nn import functional as F

from pml_extensions._slimming import NOT_MULTIPLIED, watch_operands
from pml_extensions._slimming.tracing.operands import PLACES
from pml_extensions.evolution import KELS


class Use(nn.Module):
    """One parameter, used in one way."""

    def __init__(self, shape, use):
        super().__init__()
        self.parameter = nn.Parameter(torch.randn(shape))
        self.scale = nn.Parameter(torch.randn(shape[0], 1))
        self.layer = nn.Linear(6, 6)
        self.use = use

    def forward(self, x):
        return self.use(self, x)


def relative(model, x):
    return F.pad((x @ model.parameter.t()).flatten(0, 1)[None], (0, 1))


def spectral(model, x):
    return torch.fft.fft(x).mT @ torch.view_as_complex(model.parameter)


@pytest.mark.parametrize(
    ("shape", "use", "expected"),
    [
        ((6, 4), lambda m, x: x @ m.parameter, None),
        ((4, 6), lambda m, x: F.linear(x.double(), m.parameter.double()), None),
        ((4, 6), lambda m, x: F.linear(x, m.parameter - m.parameter.mean(1, keepdim=True)), None),
        ((4, 6), lambda m, x: x @ m.parameter.reshape(2, 12).view(4, 6).t().contiguous(), None),
        ((6, 6), lambda m, x: F.pad(x @ m.parameter, (0, 0, 1, 1)), None),  # rows are padded, not what it adds
        ((4, 5, 3), lambda m, x: F.pad(F.conv1d(x, m.parameter, padding=1), (1, 1)), None),  # space is padded
        ((5, 4, 2), spectral, None),
        ((6, 6), lambda m, x: x + m.parameter[:5], NOT_MULTIPLIED),
        ((9, 6), lambda m, x: x @ m.parameter[torch.tensor([0, 3])].t(), NOT_MULTIPLIED),
        ((9, 6), lambda m, x: x @ m.parameter.mean(0), NOT_MULTIPLIED),
        ((6, 1), lambda m, x: F.linear(x, m.layer.weight * m.parameter), NOT_MULTIPLIED),  # the scale of a known weight
        ((9, 6), relative, PLACES),
        ((9, 6), lambda m, x: ((x @ m.parameter.t()).softmax(-1) * 2)[..., torch.tensor([1, 2])], PLACES),
        ((9, 6), lambda m, x: (x @ m.parameter.t()).mT.contiguous().index_select(1, torch.tensor([0])), PLACES),
    ],
)
def test_uses(shape, use, expected):
    operands = watch_operands(Use(shape, use), (torch.randn(2, 5, 6),))
    assert operands.reasons(["parameter"], {"layer.weight", "layer.bias"}) == {"parameter": expected}


def test_what_features_are_written_into_is_made_of_features():
    def written(model, x):
        rows = torch.zeros(2, 7, 6)
        rows[:, 1:6] = x
        return rows @ model.parameter

    operands = watch_operands(Use((6, 4), written), (torch.randn(2, 5, 6),))
    assert operands.reasons(["parameter", "scale"], ()) == {"parameter": None, "scale": NOT_MULTIPLIED}


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_names_are_those_of_the_wrapped_model(wrap):
    model = wrap(Use((6, 4), lambda m, x: x @ m.parameter))
    (name,) = (name for name, _ in model.named_parameters() if name.endswith("parameter"))
    assert watch_operands(model, (torch.randn(2, 5, 6),)).reasons([name], ()) == {name: None}


class RelativePositions(nn.Module):
    """Attention to 5 places by their content and their distance, which is one of 9."""

    def __init__(self):
        super().__init__()
        self.query, self.value, self.head = nn.Linear(6, 8), nn.Linear(6, 16), nn.Linear(16, 3)
        self.distances = nn.Parameter(torch.randn(9, 8))

    def forward(self, x):
        by_distance = F.pad(self.query(x) @ self.distances.t(), [0, 1]).flatten(1)
        by_distance = F.pad(by_distance, [0, 4]).reshape(-1, 6, 9)[:, :5, 4:]
        return self.head(by_distance.softmax(-1) @ self.value(x)).mean(1)


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_places_are_no_width(rate):
    model, split = RelativePositions(), KELS(rate, example_input=torch.randn(2, 5, 6))
    assert split.widths(model).whole == []
    slim = split.slim(model)
    assert slim.distances.shape == (9, slim.query.out_features)
    assert (slim.query.out_features, slim.value.out_features) == (math.ceil(8 * rate), math.ceil(16 * rate))
    assert exactness(model, split)[1] < 1e-9
