"""Trees of modules as plain values."""

import copy
import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from timm.layers import Format
from torch import nn

from pml_extensions._module_trees import describe, difference, other_modules, restore, tensors_of, ties
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


def test_objects_are_changed_in_a_copy_and_not_made():
    holder = Holder([1, (2, 3)])
    data = packed(Holder([4, (5, 6)]))
    assert unpacked(packed(holder), holder) is holder
    assert unpacked(data, holder).held == [4, (5, 6)]
    assert holder.held == [1, (2, 3)]
    for other in (None, 1, {}, nn.Linear(1, 1)):
        with pytest.raises(NotPlainError):
            unpacked(data, other)


def test_frozen_objects_and_members():
    frozen = dataclasses.make_dataclass("Frozen", ["n"], frozen=True)
    assert unpacked(packed(frozen(2)), frozen(1)) == frozen(2)
    assert unpacked(packed(Format.NHWC), Format.NCHW) is Format.NHWC
    assert Format("NCHW") is not Format("NHWC")
    with pytest.raises(NotPlainError):
        unpacked(packed(Format.NHWC))


def test_arrays():
    long = np.arange(5000) / 3
    assert np.array_equal(unpacked(packed(long)), long)
    assert packed(long) != packed(np.where(np.arange(5000) == 2500, 0, long))
    assert unpacked(packed(np.float32([[1], [2]]))).dtype == np.float32


def test_graphs():
    one, two = torch.fx.symbolic_trace(nn.Linear(2, 2)).graph, torch.fx.symbolic_trace(nn.ReLU()).graph
    assert unpacked(packed(copy.deepcopy(one)), one) is one
    with pytest.raises(NotPlainError):
        unpacked(packed(one), two)


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
    assert tree["1"]["tensors"]["table"] == "passing buffer"
    assert tree["1"]["tensors"]["plain"] == "attribute"


def noted(x):
    """A hook that does nothing."""


HOOKS = {
    "0._forward_hooks": lambda layer: layer.register_forward_hook(noted),
    "0._forward_pre_hooks": lambda layer: layer.register_forward_pre_hook(noted),
    "0._backward_hooks": lambda layer: layer.register_full_backward_hook(noted),
    "0._state_dict_hooks": lambda layer: layer._register_state_dict_hook(noted),
    "0.weight._backward_hooks": lambda layer: layer.weight.register_hook(noted),
    "0.bias._backward_hooks": lambda layer: layer.bias.register_post_accumulate_grad_hook(noted),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_are_told_and_not_made(name):
    other, model = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    HOOKS[name](other[0])
    restore(model, describe(other), tensors_of(other))
    assert difference(describe(model), describe(other)) == f"{name} is ['noted'] and would be not there"
    model(torch.zeros(1, 2)).sum().backward()
    HOOKS[name](model[0])
    assert difference(describe(model), describe(other)) is None


def test_what_is_noted_on_parameters_and_their_order():
    other, model = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight.lr_scale = 0.1
    other._parameters["weight"] = other._parameters.pop("weight")
    restore(model, describe(other), tensors_of(other))
    assert model.weight.lr_scale == 0.1
    assert list(model.state_dict()) == list(other.state_dict()) == ["bias", "weight"]


def test_differences_in_words():
    tree = describe(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert other_modules(describe(nn.Sequential(nn.Linear(2, 2), nn.Tanh())), tree) == "1 is ReLU and would be Tanh"
    assert other_modules(describe(nn.Sequential(nn.Linear(2, 2))), tree) == "1 is ReLU and would be not there"
    found = describe(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert difference(found, tree) == "0.out_features is 2 and would be 3"
    other = type("Linear", (nn.Linear,), {"__module__": "other"})
    assert other_modules(describe(nn.Sequential(other(2, 2), nn.ReLU())), tree) == (
        "0 is torch.nn.modules.linear.Linear and would be other.Linear"
    )
    found = describe(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()))
    assert difference(found, tree) == "0.bias is parameter and would be None"


def test_tied_tensors():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert ties(model) == []
    model[1].weight = model[0].weight
    assert ties(model) == [["0.weight", "1.weight"]]
