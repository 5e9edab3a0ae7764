"""SVMax against a float64 transcription of its formula by a full SVD, alone and inside pytorch-metric-learning."""

import copy
import inspect
import itertools
import math
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.regularizers import BaseRegularizer

from pml_extensions.regularizers import SVMaxRegularizer, effective_rank, mean_singular_value, svmax_bounds


def formula(embeddings, form="exponential", normalize=True):
    """The published term (arXiv:2103.02770, equations 1 and 4), in float64."""
    embeddings = embeddings.double()
    if normalize:
        embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
    b, d = embeddings.shape
    s = torch.linalg.svdvals(embeddings).sum() / d
    if form == "linear":
        return -s
    low = (math.sqrt(b) if normalize else embeddings.norm()) / d
    high = low * math.sqrt(min(b, d))
    return torch.exp((high - s) / (high - low))


def value_and_gradient(function, embeddings):
    embeddings = embeddings.detach().clone().requires_grad_()
    value = function(embeddings)
    (gradient,) = torch.autograd.grad(value, embeddings)
    return value.detach(), gradient


def relative_error(got, expected):
    return ((got.double() - expected).norm() / expected.norm()).item()


LINE = torch.tensor([0.3, -2.0, 0.7, 1.1])
SIZES = ((40, 8), (24, 64), (72, 128), (33, 32))


class TestRegularizer:
    @pytest.mark.parametrize("form", ["exponential", "linear"])
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("size", SIZES)
    def test_formula(self, form, normalize, size):
        embeddings = torch.randn(size) * torch.rand(size[0], 1) * 5
        regularizer = SVMaxRegularizer(form=form, normalize_embeddings=normalize)
        value, gradient = value_and_gradient(regularizer, embeddings)
        expected, expected_gradient = value_and_gradient(lambda e: formula(e, form, normalize), embeddings)
        assert relative_error(value, expected) < 1e-6
        assert relative_error(gradient, expected_gradient.double()) < 1e-5

    @pytest.mark.parametrize("rows", [torch.ones(6, 4), torch.outer(LINE, LINE), torch.zeros(6, 4)])
    def test_collapsed_batch_is_e_and_gets_no_gradient(self, rows):
        value, gradient = value_and_gradient(SVMaxRegularizer(), rows)
        assert value.item() == pytest.approx(math.e, rel=1e-5)
        torch.testing.assert_close(gradient, torch.zeros_like(rows), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1)])
    def test_one_row_or_column_is_constant(self, shape):
        value, gradient = value_and_gradient(SVMaxRegularizer(), torch.randn(shape))
        assert value == 1
        assert not gradient.any()

    def test_nearly_collapsed_batch_is_pushed_apart(self):
        embeddings = (torch.randn(1, 16) + 1e-4 * torch.randn(32, 16)).requires_grad_()
        before = effective_rank(embeddings)
        for _ in range(20):
            (gradient,) = torch.autograd.grad(SVMaxRegularizer()(embeddings), embeddings)
            embeddings = (embeddings - 50 * gradient).detach().requires_grad_()
        assert before < 1.01
        assert effective_rank(embeddings) > 8

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_comes_out_as_nan(self, bad):
        embeddings = torch.randn(6, 4)
        embeddings[0, 1] = bad
        value, gradient = value_and_gradient(SVMaxRegularizer(), embeddings)
        assert value.isnan()
        assert gradient.isnan().all()

    def test_zero_and_duplicate_rows(self):
        rows = torch.randn(6, 4)
        with_zeros = torch.cat([rows, torch.zeros(2, 4)])
        value, gradient = value_and_gradient(SVMaxRegularizer(), with_zeros)
        torch.testing.assert_close(value, SVMaxRegularizer()(rows))
        assert not gradient[6:].any()
        duplicates = rows.repeat(3, 1)
        value, gradient = value_and_gradient(SVMaxRegularizer(), duplicates)
        assert relative_error(value, formula(duplicates)) < 1e-6
        torch.testing.assert_close(gradient[:6], gradient[6:12])

    def test_length_of_the_rows_changes_nothing(self):
        rows = torch.randn(10, 6)
        for normalize in (True, False):
            regularizer = SVMaxRegularizer(normalize_embeddings=normalize)
            for scale in (1e-4, 1e4):
                torch.testing.assert_close(regularizer(rows * scale), regularizer(rows))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_half_precision_is_computed_in_float32(self, dtype, scale):
        embeddings = (torch.randn(20, 6) * scale).to(dtype)
        value, gradient = value_and_gradient(SVMaxRegularizer(), embeddings)
        expected, expected_gradient = value_and_gradient(SVMaxRegularizer(), embeddings.float())
        assert value.dtype == torch.float32
        assert gradient.dtype == dtype
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, expected_gradient.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_does_not_reach_it(self, dtype):
        embeddings = torch.randn(20, 6)
        expected = value_and_gradient(SVMaxRegularizer(), embeddings)
        with torch.autocast("cpu", dtype=dtype):
            got = value_and_gradient(SVMaxRegularizer(), embeddings)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)

    def test_float64(self):
        assert SVMaxRegularizer()(torch.randn(4, 3).double()).dtype == torch.float64

    def test_statistics_come_from_the_same_decomposition(self):
        regularizer = SVMaxRegularizer(collect_stats=True)
        embeddings = F.normalize(torch.randn(12, 5))
        with mock.patch("torch.linalg.eigh", wraps=torch.linalg.eigh) as eigh:
            regularizer(embeddings)
        assert eigh.call_count == 1
        low, high = svmax_bounds(12, 5)
        s = mean_singular_value(embeddings).item()
        assert regularizer.mean_singular_value == pytest.approx(s)
        assert regularizer.spread == pytest.approx((s - low) / (high - low), rel=1e-5)
        assert regularizer.effective_rank == pytest.approx(effective_rank(embeddings).item())
        assert set(regularizer._record_these_stats) == {"mean_singular_value", "spread", "effective_rank"}

    def test_no_statistics_unless_asked(self):
        assert not hasattr(SVMaxRegularizer(), "spread")

    def test_copies_pickles_and_shows_its_settings(self):
        regularizer = SVMaxRegularizer(form="linear", normalize_embeddings=False)
        embeddings = torch.randn(4, 3)
        for twin in (copy.deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))):  # noqa: S301
            assert twin(embeddings) == regularizer(embeddings)
        assert "form='linear', normalize_embeddings=False" in repr(regularizer)
        assert isinstance(regularizer, BaseRegularizer)

    @pytest.mark.parametrize(
        ("embeddings", "error", "message"),
        [
            (torch.randn(4), ValueError, r"non-empty matrix \(b, d\), got shape \(4,\)"),
            (torch.randn(2, 3, 4), ValueError, r"got shape \(2, 3, 4\)"),
            (torch.randn(0, 4), ValueError, r"got shape \(0, 4\)"),
            (torch.ones(3, 4, dtype=torch.long), TypeError, "floating-point tensor, got torch.int64"),
            (torch.ones(3, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
            ([[1.0, 2.0]], TypeError, "got list"),
        ],
    )
    @pytest.mark.parametrize("function", [SVMaxRegularizer().compute_loss, mean_singular_value, effective_rank])
    def test_bad_embeddings(self, function, embeddings, error, message):
        with pytest.raises(error, match=f"embeddings must be a .*{message}"):
            function(embeddings)

    def test_unknown_form(self):
        with pytest.raises(ValueError, match="form must be one of 'exponential', 'linear', got 'cubic'"):
            SVMaxRegularizer(form="cubic")


def test_compiles_in_one_graph_that_serves_every_batch_size():
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(SVMaxRegularizer(), fullgraph=True, backend=count)
    for b in (20, 30, 40, 50):
        embeddings = torch.randn(b, 8)
        torch.testing.assert_close(
            value_and_gradient(compiled, embeddings), value_and_gradient(SVMaxRegularizer(), embeddings)
        )
    assert len(graphs) == 2  # the first size, then any size


EMBEDDING_SIZE, CLASSES = 8, 4
ARGUMENTS = {
    "num_classes": CLASSES,
    "embedding_size": EMBEDDING_SIZE,
    "descriptors_dim": EMBEDDING_SIZE,
    "l": EMBEDDING_SIZE,
    "margin": 0.1,
    "Tn": 1.0,
    "K": CLASSES,
}
LOSSES = sorted(
    name
    for name, cls in inspect.getmembers(losses, inspect.isclass)
    if issubclass(cls, losses.BaseMetricLossFunction)
    and not name.startswith(("Base", "Generic"))
    and name != "VICRegLoss"  # refuses every regularizer
)


def make_loss(name, **kwargs):
    cls = getattr(losses, name)
    parameters = itertools.chain(*(inspect.signature(c.__init__).parameters.values() for c in cls.__mro__[:-1]))
    needed = {p.name for p in parameters if p.name in ARGUMENTS and (p.default is p.empty or p.name == "K")}
    torch.manual_seed(1)
    return cls(**{argument: ARGUMENTS[argument] for argument in needed}, **kwargs)


def call(loss, name, embeddings, labels):
    torch.manual_seed(2)  # some losses sample
    return loss(embeddings) if name == "ManifoldLoss" else loss(embeddings, labels)


class TestInPytorchMetricLearning:
    @pytest.mark.parametrize("name", LOSSES)
    def test_every_loss_adds_weight_times_term(self, name):
        embeddings, labels = torch.randn(16, EMBEDDING_SIZE), torch.arange(CLASSES).repeat_interleave(4)
        plain, _ = value_and_gradient(lambda e: call(make_loss(name), name, e, labels), embeddings)
        loss = make_loss(name, embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=0.7)
        value, gradient = value_and_gradient(lambda e: call(loss, name, e, labels), embeddings)
        torch.testing.assert_close(value.double(), plain.double() + 0.7 * formula(embeddings), rtol=1e-5, atol=1e-5)
        assert gradient.isfinite().all()

    def test_the_walk_covers_the_losses(self):
        assert len(LOSSES) > 25

    def test_weight_can_change_during_training(self):
        embeddings, labels = torch.randn(16, EMBEDDING_SIZE), torch.arange(CLASSES).repeat_interleave(4)
        loss = losses.ContrastiveLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=1.0)
        before = loss(embeddings, labels)
        loss.embedding_reg_weight = 0.25
        torch.testing.assert_close(before - loss(embeddings, labels), 0.75 * formula(embeddings).float())

    @pytest.mark.parametrize(
        "reducer",
        [
            reducers.MeanReducer(),
            reducers.SumReducer(),
            reducers.AvgNonZeroReducer(),
            reducers.ThresholdReducer(low=0),
            reducers.PerAnchorReducer(),
            reducers.ClassWeightedReducer(weights=torch.ones(CLASSES)),
            reducers.DivisorReducer(),
        ],
        ids=lambda r: type(r).__name__,
    )
    def test_reducers_leave_it_whole(self, reducer):
        embeddings = torch.randn(16, EMBEDDING_SIZE)
        torch.testing.assert_close(SVMaxRegularizer(reducer=reducer)(embeddings), SVMaxRegularizer()(embeddings))

    def test_multiple_losses_miner_and_self_supervised(self):
        embeddings, labels = torch.randn(16, EMBEDDING_SIZE), torch.arange(CLASSES).repeat_interleave(4)
        regularized = losses.TripletMarginLoss(
            embedding_regularizer=SVMaxRegularizer(), distance=distances.CosineSimilarity()
        )
        plain = losses.TripletMarginLoss(distance=distances.CosineSimilarity())
        term = SVMaxRegularizer()(embeddings)
        both = losses.MultipleLosses([regularized, losses.NTXentLoss()], miners=[miners.MultiSimilarityMiner(), None])
        without = losses.MultipleLosses([plain, losses.NTXentLoss()], miners=[miners.MultiSimilarityMiner(), None])
        torch.testing.assert_close(both(embeddings, labels), without(embeddings, labels) + term)

        views = embeddings[:8], embeddings[8:]
        self_supervised = losses.SelfSupervisedLoss(regularized)(*views)
        torch.testing.assert_close(self_supervised, losses.SelfSupervisedLoss(plain)(*views) + term)

    def test_plain_loop_without_any_loss(self):
        embeddings = torch.nn.Parameter(torch.randn(1, 4) + 0.1 * torch.randn(12, 4))
        optimizer = torch.optim.SGD([embeddings], lr=1.0)
        before = mean_singular_value(F.normalize(embeddings.detach()))
        for _ in range(10):
            optimizer.zero_grad()
            SVMaxRegularizer()(embeddings).backward()
            optimizer.step()
        assert mean_singular_value(F.normalize(embeddings.detach())) > before
