"""The monitor against the functions of a batch, on windows that are filling, full, collapsing and degenerate."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pml_extensions.monitors import CollapseMonitor
from pml_extensions.regularizers import SVMaxRegularizer, effective_rank, mean_singular_value, svmax_bounds


def watched(*batches, **settings):
    monitor = CollapseMonitor(**settings)
    for batch in batches:
        monitor.update(batch)
    return monitor


def around_one_point(rows, width, noise):
    return torch.ones(1, width) + noise * torch.randn(rows, width)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (7, 7)])
def test_measures_are_those_of_the_functions_and_of_the_regularizer(shape, normalize):
    embeddings = torch.randn(shape) * torch.rand(shape[0], 1)
    found = watched(embeddings, window=100, normalize_embeddings=normalize).compute()
    rows = F.normalize(embeddings) if normalize else embeddings
    s = mean_singular_value(rows).item()
    assert found["mean_singular_value"] == pytest.approx(s)
    assert found["effective_rank"] == pytest.approx(effective_rank(rows).item())
    if normalize:
        low, high = svmax_bounds(*shape)
        assert found["spread"] == pytest.approx((s - low) / (high - low), rel=1e-5)
    regularizer = SVMaxRegularizer(collect_stats=True, normalize_embeddings=normalize)
    regularizer(embeddings)
    for name, value in found.items():
        assert value == pytest.approx(getattr(regularizer, name), rel=1e-6)


def test_bounds():
    assert watched(torch.eye(16)).compute() == {"mean_singular_value": 1.0, "spread": 1.0, "effective_rank": 16.0}
    line = watched(torch.ones(1, 16) * torch.rand(16, 1)).compute()
    assert line["spread"] == pytest.approx(0, abs=1e-6)
    assert line["effective_rank"] == pytest.approx(1, abs=1e-6)


def test_a_window_larger_than_a_batch_tells_more_directions_than_a_batch_has():
    batches = torch.randn(32, 8, 64)
    assert effective_rank(batches[0]) <= 8
    assert watched(*batches, window=256).compute()["effective_rank"] > 50


@pytest.mark.parametrize("sizes", [[3] * 9, [1] * 40, [50], [0, 5, 0, 17, 2], [20, 20], [19, 1, 1], [40, 0, 7]])
def test_the_window_holds_the_last_embeddings(sizes):
    batches = [torch.randn(size, 4) for size in sizes]
    monitor = watched(*batches, window=20)
    rows = torch.cat(batches)[-20:]
    assert monitor.count == len(rows)
    assert monitor.is_full == (len(rows) == 20)
    assert torch.equal(monitor.state_dict()["embeddings"], rows)
    assert monitor.compute()["effective_rank"] == pytest.approx(effective_rank(F.normalize(rows)).item())


def test_by_default_four_embeddings_for_each_dimension():
    assert watched(torch.randn(100, 5)).count == 20


def test_warns_once_when_a_full_window_falls():
    monitor = watched(torch.randn(64, 16), window=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.compute()
    assert set(monitor.highest) == {"spread", "effective_rank"}
    monitor.update(around_one_point(64, 16, 1e-2))
    with pytest.warns(
        RuntimeWarning, match=r"collapse: over the last 64 .* of at most 16 .*SVMaxRegularizer"
    ) as caught:
        monitor.compute()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.compute()
    monitor.reset()
    assert (monitor.warned, monitor.highest, monitor.count) == (False, {}, 0)


def test_warns_of_a_training_that_was_collapsed_from_the_start():
    with pytest.warns(RuntimeWarning, match="the effective rank is 1.0"):
        watched(around_one_point(64, 16, 1e-3), window=64).compute()


@pytest.mark.parametrize(
    "batches",
    [
        [torch.randn(64, 16)[:, :1] * torch.ones(1, 16)],  # not full
        [torch.randn(64, 1)] * 4,  # one dimension is one direction
        [around_one_point(64, 16, 0.3)] * 4,  # an untrained network
        [around_one_point(64, 16, 0.3), torch.randn(64, 16), torch.randn(64, 16)],  # and what it learns
    ],
    ids=["filling", "one dimension", "untrained", "training"],
)
@pytest.mark.filterwarnings("error")
def test_does_not_warn(batches):
    monitor = CollapseMonitor(window=65)
    for batch in batches:
        monitor.update(batch)
        monitor.compute()
    assert not monitor.warned


@pytest.mark.filterwarnings("error")
def test_one_row_is_no_high_mark():
    monitor = watched(torch.randn(1, 8), window=32)
    assert monitor.compute()["spread"] == 1
    for _ in range(4):
        monitor.update(around_one_point(32, 8, 0.5))
        monitor.compute()
    assert monitor.highest["spread"] < 0.9


def test_empty_batches_are_no_embeddings():
    monitor = watched(torch.randn(0, 8))
    with pytest.raises(RuntimeError, match="no embeddings yet"):
        monitor.compute()
    monitor.update(torch.randn(0, 4))
    monitor.update(torch.randn(3, 4))
    monitor.update(torch.randn(0, 4))
    assert monitor.count == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_nan_until_it_leaves_the_window(bad):
    batch = torch.randn(8, 4)
    batch[3, 1] = bad
    monitor = watched(batch, window=8)
    assert all(math.isnan(value) for value in monitor.compute().values())
    assert monitor.highest == {}
    monitor.update(torch.randn(8, 4))
    assert all(math.isfinite(value) for value in monitor.compute().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    batch = torch.randn(32, 8).to(dtype)
    monitor = watched(batch, window=64)
    assert monitor.state_dict()["embeddings"].dtype == dtype
    expected = effective_rank(F.normalize(batch.to(torch.promote_types(dtype, torch.float32)))).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert monitor.compute()["effective_rank"] == pytest.approx(expected)
    monitor.update(torch.randn(8, 8))
    assert math.isfinite(monitor.compute()["spread"])


def test_a_training_is_the_same_with_it():
    def trained(monitor):
        torch.manual_seed(0)
        model, losses = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            embeddings = model(torch.randn(16, 6))
            if monitor is not None:
                monitor.update(embeddings)
                monitor.compute()
            loss = embeddings.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, torch.rand(1).item()

    monitor = CollapseMonitor(window=1000)
    assert trained(monitor) == trained(None)
    assert not monitor.state_dict()["embeddings"].requires_grad


def test_later_changes_of_a_batch_do_not_reach_the_window():
    batch = torch.randn(8, 4)
    monitor, before = watched(batch), batch.clone()
    batch.zero_()
    assert torch.equal(monitor.state_dict()["embeddings"], before)


def test_inference_mode():
    with torch.inference_mode():
        monitor = watched(torch.randn(8, 4))
        monitor.compute()
    monitor.update(torch.randn(40, 4))
    assert monitor.compute()["effective_rank"] > 1


def test_state_dict_resumes():
    first, second = torch.randn(3, 16, 8), around_one_point(48, 8, 1e-2).split(16)
    whole = watched(*first, window=48)
    whole.compute()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = CollapseMonitor(window=48)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for monitor in (whole, resumed):
        for batch in second:
            monitor.update(batch)
        with pytest.warns(RuntimeWarning, match="collapse"):
            monitor.compute()
    again = CollapseMonitor(window=48)
    again.load_state_dict(resumed.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again.compute() == whole.compute()
    smaller = CollapseMonitor(window=10)
    smaller.load_state_dict(whole.state_dict())
    assert torch.equal(smaller.state_dict()["embeddings"], second[-1][-10:])
    smaller.load_state_dict(CollapseMonitor().state_dict())
    assert smaller.count == 0


def test_copies_pickles_and_shows_its_settings():
    monitor = watched(torch.randn(9, 4), window=8, fall=0.25)
    for twin in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):  # noqa: S301
        assert twin.compute() == monitor.compute()
    assert repr(monitor) == "CollapseMonitor(window=8, fall=0.25, normalize_embeddings=True)"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 1}, ValueError, "window must be at least 2, got 1"),
        ({"window": 2.5}, TypeError, "window must be an int, got float"),
        ({"fall": 1.0}, ValueError, r"fall must be a share in \[0, 1\), got 1.0"),
        ({"fall": "half"}, TypeError, "fall must be a number, got str"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        CollapseMonitor(**settings)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (torch.ones(4), ValueError, r"matrix \(b, d\), got shape \(4,\)"),
        (torch.ones(4, 3, 2), ValueError, r"got shape \(4, 3, 2\)"),
        (torch.ones(4, 5), ValueError, "width 3 as before, got 5"),
        (torch.ones(4, 3).long(), TypeError, "floating-point tensor, got torch.int64"),
        ([[1.0]], TypeError, "got list"),
    ],
)
def test_what_is_no_batch_is_refused_and_changes_nothing(embeddings, error, message):
    monitor = watched(torch.randn(4, 3))
    with pytest.raises(error, match=f"embeddings must be .*{message}"):
        monitor.update(embeddings)
    assert monitor.count == 4
