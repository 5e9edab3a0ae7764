"""Models that keep activations from one call for the next: the slim network agrees in every call, fresh or not."""

import pytest
import torch
from torch import nn

from pml_extensions.evolution import KELS


class Memory(nn.Module):
    """It adds what it saw before to what it sees."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 2)
        self.memory = None

    def forward(self, x):
        hidden = self.first(x)
        known = hidden if self.memory is None else hidden + self.memory
        self.memory = hidden.detach()
        return self.last(self.second(known))


class MemoryOfItsOwnLayer(Memory):
    """What it saw before goes through a layer that no first call uses."""

    def __init__(self):
        super().__init__()
        self.recall = nn.Linear(16, 12)

    def forward(self, x):
        hidden = self.first(x)
        out = self.second(hidden)
        if self.memory is not None:
            out = out + self.recall(self.memory)
        self.memory = hidden.detach()
        return self.last(out)


class MemoryInABuffer(MemoryOfItsOwnLayer):
    def __init__(self):
        super().__init__()
        del self.memory
        self.register_buffer("memory", None)


class MemoryInAList(Memory):
    """A queue of the last two."""

    def __init__(self):
        super().__init__()
        self.recall, self.queue = nn.Linear(16, 12), []

    def forward(self, x):
        hidden = self.first(x)
        out = self.second(hidden)
        for known in self.queue:
            out = out + self.recall(known)
        self.queue = [*self.queue[-1:], hidden.detach()]
        return self.last(out)


class Growing(Memory):
    """It returns what it saw in all calls."""

    def forward(self, x):
        hidden = self.first(x)
        self.memory = hidden.detach() if self.memory is None else torch.cat([self.memory, hidden.detach()])
        return self.last(self.second(self.memory))


@pytest.mark.parametrize("called", ["fresh", "called", "called without gradients"])
@pytest.mark.parametrize("make", [Memory, MemoryOfItsOwnLayer, MemoryInABuffer, MemoryInAList, Growing])
def test_every_call_agrees(make, called):
    torch.manual_seed(0)
    model, split = make(), KELS(0.5, example_input=torch.zeros(2, 4))
    if called != "fresh":
        with torch.set_grad_enabled(called == "called"):
            model(torch.randn(2, 4))
    slim, masks = split.slim(model), split(model)
    assert split.widths(model).whole == []
    assert (slim.first.out_features, slim.second.out_features) == (8, 6)
    if hasattr(model, "recall"):
        assert slim.recall.weight.shape == (6, 8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(masks.get(name, torch.ones(())))
        for x in torch.randn(4, 2, 4):
            torch.testing.assert_close(slim(x), model(x))


def test_a_model_that_must_be_reset_between_calls_is_cut():
    class Once(Memory):
        def forward(self, x):
            if self.memory is not None:
                raise RuntimeError("reset me")
            return super().forward(x)

    assert KELS(0.5, example_input=torch.zeros(2, 4)).slim(Once()).first.out_features == 8
