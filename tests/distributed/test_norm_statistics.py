"""Statistics that several processes estimate together, against one process that has all batches."""

import itertools

import pytest
import torch
from problems import FSDP2, WithNorms, randn, shared_batches
from torch import nn

from pml_extensions.evolution import KELS, reestimate_statistics


def assert_close(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def assert_same_everywhere(ranks):
    for found in ranks[1:]:
        for name, tensor in ranks[0].items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("share", "counts"),
    [("even", [3, 3, 3, 3]), ("uneven", [3, 1, 2, 2]), ("empty", [0, 2, 2, 2]), ("wrapped", [3, 3, 3, 3])],
)
def test_batch_norms_are_those_of_one_process_with_all_batches(found, share, counts):
    ranks = [states["batch", share] for states in found["statistics"]]
    assert_same_everywhere(ranks)
    model = WithNorms()
    reestimate_statistics(model, list(itertools.chain(*shared_batches(len(ranks), counts))))
    assert_close(ranks[0], model.state_dict())


@pytest.mark.parametrize(("share", "passes"), [("even", 3), ("uneven", 1)])
def test_synchronised_norms_are_those_of_one_process_with_the_batches_joined(found, share, passes):
    ranks = [states["synchronised", share] for states in found["statistics"]]
    assert_same_everywhere(ranks)
    parts = shared_batches(len(ranks), [3] * len(ranks))
    model = WithNorms()
    reestimate_statistics(model, [torch.cat([own[step] for own in parts]) for step in range(passes)])
    assert_close(ranks[0], model.state_dict())


def test_slim_networks_are_the_same_everywhere(found):
    ranks = found["slim_with_statistics"]
    assert_same_everywhere(ranks)
    data = list(itertools.chain(*shared_batches(len(ranks), [2] * len(ranks))))
    expected = KELS(0.5, example_input=torch.zeros(2, 3, 8, 8)).slim(WithNorms().body, data)
    assert_close(ranks[0], expected.state_dict())


ERRORS = {
    "data": ("ArithmeticError: the disk is full", -1),
    "no tensor": ("TypeError: data must yield batches", 0),
    "not finite": ("ValueError: the statistics of norm 'body.1' are not finite", None),
    "no batch": ("ValueError: data must yield at least one batch", None),
    "another size": ("ValueError: data must yield what the network was trained on", 0),
}


@pytest.mark.parametrize("norm", ["BatchNorm2d", "SyncBatchNorm"])
@pytest.mark.parametrize("case", ERRORS)
def test_an_error_in_one_process_is_one_in_all(found, norm, case):
    words, culprit = ERRORS[case]
    if norm == "SyncBatchNorm" and case == "another size":
        return
    ranks = [errors[norm, case] for errors in found["failing_statistics"]]
    before = WithNorms().state_dict()
    for rank, (error, state) in enumerate(ranks):
        own = culprit is None or rank == culprit % len(ranks)
        assert error.startswith(words if own else "RuntimeError: another process could not"), (rank, error)
        for name, tensor in before.items():
            assert torch.equal(state[name], tensor)


@pytest.mark.skipif(not FSDP2, reason="fully_shard is public since torch 2.6")
def test_statistics_of_a_sharded_model(found):
    ranks = found["statistics_of_a_sharded_model"]
    assert_same_everywhere(ranks)
    model = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    steps = range(2)  # as many as the first process has
    reestimate_statistics(model, [randn(5, 7, seed=10 * rank + step) for rank in range(len(ranks)) for step in steps])
    assert_close(ranks[0], dict(model.named_buffers()))
