"""Trees of modules as plain values."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from pml_extensions._module_trees import describe, difference, names_of, other_modules, restore, tensors_of, ties
from pml_extensions._module_trees.plain_values import NotPlainError, packed, unpacked

VALUES = [
    None, True, 3, 0.1, math.inf, -math.inf, "a", [], (1, (2, "b")), [1, [2]], {"a": 1, 2: (3,)}, {1, 2},
    frozenset("a"), torch.Size([2, 3]), torch.bfloat16,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back(value):
    again = unpacked(json.loads(json.dumps(packed(value), allow_nan=False)))
    assert again == value
    assert type(again) is type(value)


def test_numbers_of_numpy_and_nan():
    assert unpacked(packed(np.float64(0.5))) == 0.5
    assert math.isnan(unpacked(packed(math.nan)))


class Holder:
    def __init__(self, held):
        self.held = held


def test_objects_are_changed_and_not_made():
    holder = Holder([1, (2, 3)])
    data = packed(Holder([4, (5, 6)]))
    assert unpacked(data, holder) is holder
    assert holder.held == [4, (5, 6)]
    for other in (None, 1, {}, nn.Linear(1, 1)):
        with pytest.raises(NotPlainError):
            unpacked(data, other)


@pytest.mark.parametrize("value", [torch.tanh, nn.ReLU, functools.partial(torch.add, alpha=2), lambda x: x])
def test_functions_are_known_and_not_made(value):
    assert unpacked(packed(value), value) is value
    assert packed(value) != packed(torch.relu)
    with pytest.raises(NotPlainError):
        unpacked(packed(value))


def test_what_a_function_closes_over_and_a_partial_holds_is_told():
    def made(n):
        return lambda x: n * x

    assert packed(made(2)) != packed(made(3))
    assert packed(functools.partial(made, 2)) != packed(functools.partial(made, 3))


def test_objects_that_hold_themselves():
    holder = Holder(None)
    holder.held = [holder]
    assert json.dumps(packed(holder))


def network(width, dtype=torch.float32):
    torch.manual_seed(width)
    model = nn.Sequential(
        nn.Linear(3, width, bias=width > 4), nn.BatchNorm1d(width), nn.LSTM(width, 2, batch_first=True)
    )
    model[1].eps, model[0].weight.requires_grad = 1e-3 / width, width > 4
    model[1].register_buffer("table", torch.arange(width), persistent=width > 4)
    model[1].plain = torch.ones(width)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_the_same_modules_becomes_the_other(dtype):
    other, model = network(4, dtype), network(6)
    parameter = model[0].weight
    tree = json.loads(json.dumps(describe(other)))
    assert other_modules(describe(model), tree) is None
    assert difference(describe(model), tree) is not None
    restore(model, tree, tensors_of(other))
    assert difference(describe(model), tree) is None
    assert model[0].weight is parameter
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in tensors_of(other).items():
        assert torch.equal(tensors_of(model)[name], tensor)
    x = torch.randn(5, 3).to(dtype)
    assert torch.equal(model(x)[0], other(x)[0])
    assert names_of(tree, "passing buffer") == ["1.table"]
    assert names_of(tree, "attribute") == ["1.plain"]


def test_differences_in_words():
    tree = describe(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert other_modules(describe(nn.Sequential(nn.Linear(2, 2), nn.Tanh())), tree) == "1 is ReLU and would be Tanh"
    assert other_modules(describe(nn.Sequential(nn.Linear(2, 2))), tree) == "1 is ReLU and would be not there"
    found = describe(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert difference(found, tree) == "0.out_features is 2 and would be 3"
    found = describe(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()))
    assert difference(found, tree) == "0.bias is parameter and would be None"


def test_tied_tensors():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert ties(model) == []
    model[1].weight = model[0].weight
    assert ties(model) == [["0.weight", "1.weight"]]
