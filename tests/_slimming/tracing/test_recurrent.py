"""Recurrent layers of torch.nn: the slim network computes what the dense one computes without its reset-hypothesis."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pml_extensions.evolution import KELS


class Sequences(nn.Module):
    """A recurrent layer between two linear ones; padded sequences with their lengths, where given, are packed."""

    def __init__(self, layer, width):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(5, 8), layer, nn.Linear(width, 3)

    def forward(self, x, lengths=None, first=None):
        hidden = self.first(x)
        if lengths is not None:
            hidden = pack_padded_sequence(hidden, lengths, self.layer.batch_first, enforce_sorted=False)
        out = self.layer(hidden)[0] if first is None else self.layer(hidden, first)[0]
        return self.last(out if lengths is None else pad_packed_sequence(out, self.layer.batch_first)[0])


class Steps(nn.Module):
    """A cell, run over a sequence."""

    def __init__(self, cell):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(5, 8), cell, nn.Linear(cell.hidden_size, 3)

    def forward(self, x):
        state = None
        for step in self.first(x):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


KINDS = {
    "GRU": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "LSTM": (nn.LSTM, {}),
    "LSTM with projections": (nn.LSTM, {"proj_size": 6}),
}
LAYERS = (
    {},
    {"batch_first": True},
    {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.5},
    {"bidirectional": True, "bias": False},
)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def agrees(model, split, inputs, width, tolerance=1e-6):
    slim = split.slim(model.eval())
    assert split.widths(model).whole == []
    assert (slim.first.out_features, slim.last.in_features) == (4, width)
    slim.train()(*inputs)
    out, masks = slim.eval()(*inputs), split(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(masks.get(name, torch.ones(())))
    torch.testing.assert_close(out, model(*inputs), rtol=tolerance, atol=tolerance)
    return slim


@pytest.mark.parametrize("packed", [False, True], ids=["tensor", "packed"])
@pytest.mark.parametrize("settings", LAYERS, ids=lambda settings: ", ".join(settings) or "plain")
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, settings, packed):
    make, more = KINDS[kind]
    layer = make(8, 16, **settings, **more)
    directions = 1 + layer.bidirectional
    lengths = (torch.tensor([2, 4, 3]),) if packed else ()
    example = torch.randn(3, 4, 5) if layer.batch_first else torch.randn(4, 3, 5)
    model = Sequences(layer, directions * (layer.proj_size or layer.hidden_size))
    split = KELS(0.5, example_input=(example, *lengths))
    slim = agrees(model, split, (torch.randn_like(example), *lengths), directions * (3 if layer.proj_size else 8))
    assert (slim.layer.input_size, slim.layer.hidden_size, slim.layer.proj_size) == (4, 8, layer.proj_size // 2)


@pytest.mark.parametrize("make", [nn.GRUCell, nn.RNNCell, nn.LSTMCell])
@pytest.mark.parametrize("rate", [0.5])
def test_cells(make, rate):
    split = KELS(rate, example_input=torch.randn(4, 3, 5))
    slim = agrees(Steps(make(8, 16)), split, (torch.randn(4, 2, 5),), 8)
    assert (slim.cell.input_size, slim.cell.hidden_size) == (4, 8)
