"""The term over the batch of all processes against the same batch in one process."""

import pytest
import torch
import torch.distributed as dist
from problems import (
    batches,
    cases,
    embedder,
    metric_loss,
    shares,
    silent_loss,
    steps,
)
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.utils import distributed as host

from pml_extensions._host import enclosing_loss_wrapper
from pml_extensions.regularizers import SVMaxRegularizer, svmax


def alone(function, batch):
    leaf = batch.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    return value.detach(), leaf.grad


def assert_close(found, expected, tolerance):
    """Relative to the largest entry of the whole."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def assert_equal_to_one_process(ranks, function, batch, tolerance=1e-9):
    value, gradient = alone(function, batch)
    for found, _ in ranks:
        assert_close(found, value, tolerance)
    assert_close(torch.cat([part for _, part in ranks]), gradient, tolerance)


def test_value_and_gradient(found):
    ranks = found["svmax"]
    checked = 0
    for key, batch, _, settings in cases(len(ranks)):
        tolerance = 1e-5
        if batch.dtype == torch.float64:  # the small directions are held to a part in sqrt(eps) of the large ones
            tolerance = 1e-7 if key[0].startswith("nearly collapsed") else 1e-9
        assert_equal_to_one_process([rank[key] for rank in ranks], SVMaxRegularizer(**settings), batch, tolerance)
        checked += 1
    assert checked > 30


def test_every_process_has_the_same_value_to_the_bit(found):
    for key in found["svmax"][0]:
        assert len({rank[key][0].item() for rank in found["svmax"]}) == 1, key


def test_half_precision_and_autocast(found):
    batch = batches(torch.bfloat16)["tall"]
    value, gradient = alone(SVMaxRegularizer(), batch.float())
    for rank in found["svmax_half_precision"]:
        assert rank[0].dtype == rank[2].dtype == torch.float32
        torch.testing.assert_close(rank[0], value, rtol=1e-5, atol=0)
        torch.testing.assert_close(rank[2], value, rtol=1e-5, atol=0)
    parts = torch.cat([rank[1] for rank in found["svmax_half_precision"]])
    assert parts.dtype == torch.bfloat16
    assert_close(parts.float(), gradient, 1e-2)


def test_statistics(found):
    regularizer = SVMaxRegularizer(collect_stats=True)
    regularizer(batches(torch.float64)["tall"])
    expected = regularizer.mean_singular_value, regularizer.spread, regularizer.effective_rank
    for rank in found["svmax_statistics"]:
        assert rank == pytest.approx(expected, rel=1e-9)


def test_an_entry_that_is_not_finite_reaches_every_process(found):
    for value, gradient in found["svmax_not_finite"]:
        assert value.isnan()
        assert gradient.isnan().all()


def test_all_processes_refuse_what_is_no_batch(found):
    for empty, widths in found["svmax_refuses"]:
        assert "must be one non-empty batch (b, d), got shapes [(0, 4), (0, 4)" in empty
        assert "got shapes [(2, 4), (2, 5)" in widths


def train_alone(loss_of, learning_rate, **settings):
    model = embedder()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for inputs, labels in steps(**settings):
        optimizer.zero_grad()
        loss_of(model(inputs), labels).backward()
        optimizer.step()
    return model.state_dict()


def assert_same_weights(ranks, expected):
    start = embedder().state_dict()
    for state in ranks:
        for name, weight in expected.items():
            assert not torch.allclose(weight, start[name], rtol=1e-2)
            torch.testing.assert_close(state[name], weight, rtol=1e-5, atol=1e-8)


def test_twenty_steps_under_ddp_with_uneven_last_batches(found):
    regularizer = SVMaxRegularizer()
    expected = train_alone(lambda embeddings, _: regularizer(embeddings) + embeddings.square().sum(1).mean(), 0.5)
    assert_same_weights(found["svmax_training"], expected)


@pytest.mark.parametrize("mode", ["whole", "efficient"])
def test_twenty_steps_inside_the_hosts_loss_wrapper(found, mode):
    loss = {"whole": metric_loss, "efficient": silent_loss}[mode]()
    expected = train_alone(loss, 0.1, last=8)
    assert_same_weights([rank[mode] for rank in found["wrapper_training"]], expected)


@pytest.mark.parametrize("mode", ["whole", "efficient", "memory", "whole, not asked"])
def test_inside_the_hosts_loss_wrapper_it_is_counted_once(found, mode):
    batch, labels = batches(torch.float64)["wide"][:4], torch.arange(4) // 2
    loss = CrossBatchMemory(silent_loss(), 24, 32) if mode == "memory" else silent_loss()
    ranks = [rank[mode] for rank in found["svmax_in_wrapper"]]
    by_the_wrapper = [(value / len(ranks), gradient) for value, gradient in ranks]  # it multiplies what it returns
    assert_equal_to_one_process(by_the_wrapper, lambda rows: loss(rows, labels), batch)


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr(svmax, "is_distributed", lambda: True)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", batches(torch.float64))
def test_a_group_of_one_is_one_process(one_process, name):
    batch = batches(torch.float64)[name]
    assert_equal_to_one_process(
        [alone(SVMaxRegularizer(distributed=True), batch)], SVMaxRegularizer(), batch, tolerance=1e-6
    )


def test_a_group_of_one_treats_the_rest_alike(one_process):
    with pytest.raises(ValueError, match="must be one non-empty batch"):
        SVMaxRegularizer(distributed=True)(torch.ones(0, 4))
    assert SVMaxRegularizer(distributed=True, normalize_embeddings=False)(torch.full((3, 2), torch.inf)).isnan()
    wrapper = host.DistributedLossWrapper(silent_loss(distributed=True))
    batch = batches(torch.float64)["tall"]
    assert wrapper(batch, torch.zeros(30).long()) == silent_loss()(batch, torch.zeros(30).long())


def test_the_hosts_wrapper_is_seen_when_it_is_compiled(one_process, monkeypatch):
    wrapper = host.DistributedLossWrapper(silent_loss(distributed=True), efficient=True)
    seen = []
    monkeypatch.setattr(svmax, "enclosing_loss_wrapper", lambda: seen.append(enclosing_loss_wrapper()) or seen[-1])
    batch = batches(torch.float64)["tall"]
    value = torch.compile(wrapper, backend="eager")(batch, torch.zeros(30).long())
    assert seen == [wrapper]
    torch.testing.assert_close(value, silent_loss()(batch, torch.zeros(30).long()))


def test_without_other_processes_it_changes_nothing():
    batch = batches(torch.float64)["tall"]
    assert SVMaxRegularizer(distributed=True)(batch) == SVMaxRegularizer()(batch)
    assert "distributed=True" in repr(SVMaxRegularizer(distributed=True))
    assert len(shares(7, 4)["short"]) == 4
