"""Nothing piles up over many calls, and nothing of ours keeps the user's model alive."""

import gc
import resource
import weakref

import pytest
import timm
import torch
from classes import convolutional, randn, two_linear
from watching import assert_untouched, fingerprint

from pml_extensions.attr import L2CAF, LBFGS
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution
from pml_extensions.models import TwoHead

CALLS = [50, pytest.param(2000, marks=pytest.mark.slow)]
X = randn(2, 3, 9, 9)


@pytest.fixture(autouse=True)
def only_new_objects():
    """Let the garbage collector see what this test makes alone: what others left behind may go at any time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def most_memory():
    """The most memory that this process has had so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def assert_flat(call, calls):
    """No further tensor lives after many calls than after a few, and the process has not grown."""
    for _ in range(10):
        call()
    alive, size = tensors(), most_memory()
    for _ in range(calls):
        call()
    assert tensors() == alive
    assert most_memory() - size < 16 * 1024


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("solver", [None, LBFGS(steps=3)], ids=["closed form", "iterative"])
def test_attributions(calls, solver):
    model = convolutional()
    explain = L2CAF(model, model[1])
    before = fingerprint(model)
    assert_flat(lambda: explain.attribute(X, 1, solver=solver), calls)
    assert_untouched(model, before)


@pytest.mark.parametrize("calls", CALLS)
def test_resets(calls):
    model = two_linear()
    ke = KnowledgeEvolution(model, WELS(0.5))
    hooks = fingerprint(model)["modules"]
    assert_flat(ke.reset, calls)
    assert fingerprint(model)["modules"] == hooks
    assert ke.generation == calls + 10


def used_by_attention():
    model = convolutional()
    L2CAF(model, model[1]).attribute(X, 1)
    return model


def used_by_iterations():
    model = convolutional()
    L2CAF(model, model[1]).attribute(X, 1, solver=LBFGS(steps=3))
    return model


def used_by_evolution():
    model = two_linear()
    ke = KnowledgeEvolution(model, WELS(0.5))
    ke.reset()
    str(ke.summary())
    return model


def cut():
    model = timm.create_model("test_resnet", num_classes=3)
    KELS(0.5).slim(model)
    return model


def wrapped():
    model = timm.create_model("test_resnet", num_classes=3)
    TwoHead(model, 4)(torch.zeros(2, 3, 32, 32))
    return model


@pytest.mark.parametrize("use", [used_by_attention, used_by_iterations, used_by_evolution, cut, wrapped])
def test_the_model_dies_with_its_last_user(use):
    model = use()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_slim_network_does_not_hold_the_dense_one():
    dense = two_linear()
    slim = KELS(0.5, example_input=torch.zeros(2, 6)).slim(dense)
    gone = weakref.ref(dense)
    del dense
    gc.collect()
    assert gone() is None
    assert slim(torch.zeros(2, 6)).shape == (2, 3)
