"""How a pass uses parameters: what is handed on whole on the way to a product, and what becomes of the axis it adds."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pml_extensions._slimming import NOT_MULTIPLIED, watch_operands
from pml_extensions._slimming.tracing.operands import PLACES


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
