"""Anchors with many positives are mined and summed up in another way than those with few: no result may show it."""

import pytest
import torch
from pytorch_metric_learning import losses, reducers
from pytorch_metric_learning.distances import (
    BaseDistance,
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
    SNRDistance,
)
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import nn

from pml_extensions._semi_hard import mining
from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner


class Learned(BaseDistance):
    """A metric with parameters, of which only the matrix is defined."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        generator = torch.Generator().manual_seed(3)
        self.map = nn.Parameter(torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator))

    def compute_mat(self, query_emb, ref_emb):
        x, y = query_emb @ self.map.to(query_emb.dtype), ref_emb @ self.map.to(query_emb.dtype)
        return (x.unsqueeze(1) - y).square().sum(2)


class Scaled(LpDistance):
    """A subclass of a distance of the host with a matrix of its own, its ``pairwise_distance`` left as it was."""

    def compute_mat(self, query_emb, ref_emb):
        return 3 * super().compute_mat(query_emb, ref_emb)


class Relative(CosineSimilarity):
    """A similarity whose matrix depends on the whole batch, with a measure of gaps of its own."""

    def compute_mat(self, query_emb, ref_emb):
        matrix = super().compute_mat(query_emb, ref_emb)
        return matrix - matrix.mean()

    def margin(self, x, y):
        return 2 * super().margin(x, y)


class PairwiseOnly(LpDistance):
    """A subclass whose ``pairwise_distance`` is its own: the host asks for the matrix, which is not."""

    def pairwise_distance(self, query_emb, ref_emb):
        return 7 * super().pairwise_distance(query_emb, ref_emb)


DISTANCES = {
    "euclidean": LpDistance,
    "squared": lambda **k: LpDistance(power=2, **k),
    "cubed": lambda **k: LpDistance(power=3, **k),
    "inverse": lambda **k: LpDistance(power=-1, **k),
    "root": lambda **k: LpDistance(power=0.5, **k),
    "not normalized": lambda **k: LpDistance(normalize_embeddings=False, power=2, **k),
    "L1": lambda **k: LpDistance(p=1, **k),
    "L3": lambda **k: LpDistance(p=3, power=2, **k),
    "cosine": CosineSimilarity,
    "cosine cubed": lambda **k: CosineSimilarity(power=3, **k),
    "dot": lambda **k: DotProductSimilarity(normalize_embeddings=False, **k),
    "snr": SNRDistance,
    "learned": Learned,
    "scaled": Scaled,
    "relative": Relative,
    "pairwise only": PairwiseOnly,
}
LABELS = {
    "two classes": torch.arange(70) % 2,
    "mixed": torch.where(torch.arange(70) < 40, 0, torch.arange(70) // 4),
    "far apart": torch.tensor([-(2**60), 2**60, 5])[torch.arange(75) % 3],
}
BATCHES = {
    "spread": lambda n: torch.randn(n, 6),
    "double": lambda n: torch.randn(n, 6).double(),
    "nearly collapsed": lambda n: torch.ones(6) + 1e-3 * torch.randn(n, 6),
    "duplicates": lambda n: (
        (4 * torch.randn(9, 6)).round()[torch.randint(9, (n,))] / 4
    ),  # ties are ties on any processor
}


@pytest.fixture
def either_way(monkeypatch):
    """Call a function with every anchor taken for one with few positives, and for one with many."""

    def results(function):
        found = []
        for few in (10**9, 0):
            monkeypatch.setattr(mining, "FEW", few)
            torch.manual_seed(1)
            found.append(function())
        return found

    return results


def assert_same(few, many, digits=1e-5):
    for one, other in zip(map(torch.as_tensor, few), map(torch.as_tensor, many), strict=True):
        scale = float(one[one.isfinite()].abs().max()) if one.isfinite().any() else 1
        torch.testing.assert_close(other, one, rtol=digits, atol=digits * scale, equal_nan=True)


def call(distance, labels, embeddings, references=(None, None), **settings):
    """Return all that a call of the loss gives: its value, the gradients of whatever may have one, the statistics."""
    leaves = [one.clone().requires_grad_() for one in (embeddings, references[0]) if one is not None]
    loss = SemiHardTripletLoss(distance=distance, **settings)
    loss.margin = nn.Parameter(torch.tensor(0.3))
    value = loss(leaves[0], labels, None, leaves[1] if len(leaves) > 1 else None, references[1])
    value.backward()
    modules = [distance, loss.reducer, *getattr(loss.reducer, "reducers", {}).values()]
    statistics = [getattr(module, name) for module in modules for name in getattr(module, "_record_these_stats", [])]
    return [value.detach(), *(leaf.grad for leaf in [*leaves, *loss.parameters()]), *statistics]


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("make", DISTANCES.values(), ids=DISTANCES)
def test_value_gradients_and_statistics(make, batch, labels, either_way):
    if make is DISTANCES["cosine cubed"] and batch is BATCHES["nearly collapsed"]:
        pytest.skip("cosines to a power other than 1 are not shifted: no digits are left in float32, as in the host")
    few, many = either_way(lambda: call(make(collect_stats=True), labels, batch(len(labels))))
    assert_same(few, many, 1e-4)


@pytest.mark.parametrize("make", DISTANCES.values(), ids=DISTANCES)
def test_references(make, either_way):
    labels, ref_labels = torch.arange(30) % 2, torch.arange(60) % 3
    few, many = either_way(lambda: call(make(), labels, torch.randn(30, 6), (torch.randn(60, 6), ref_labels)))
    assert_same(few, many)


REDUCERS = {
    "mean": reducers.MeanReducer,
    "mean that records": lambda: reducers.MeanReducer(collect_stats=True),
    "non-zero": lambda: reducers.AvgNonZeroReducer(collect_stats=True),
    "sum": reducers.SumReducer,
    "threshold": lambda: reducers.ThresholdReducer(low=0.1, high=0.4, collect_stats=True),
    "weighted": lambda: reducers.ClassWeightedReducer(torch.tensor([0.2, 0.7])),
    "of the regularizer": lambda: reducers.MultipleReducers({"embedding_reg_loss": reducers.SumReducer()}),
    "of the loss": lambda: reducers.MultipleReducers({"loss": reducers.AvgNonZeroReducer(collect_stats=True)}),
    "another default": lambda: reducers.MultipleReducers({}, default_reducer=reducers.SumReducer()),
    "means": lambda: reducers.MultipleReducers({"loss": reducers.MeanReducer()}),
}


@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("make", REDUCERS.values(), ids=REDUCERS)
def test_reducers(make, regularized, either_way):
    labels, regularizer = torch.arange(70) % 2, {"embedding_regularizer": LpRegularizer()} if regularized else {}
    few, many = either_way(lambda: call(LpDistance(), labels, torch.randn(70, 6), reducer=make(), **regularizer))
    assert_same(few, many)
    if make is REDUCERS["mean that records"] and not regularized:
        assert many[-1] == 70 * 34


def test_a_reducer_of_ones_own_sees_every_triplet(either_way):
    class Own(reducers.MeanReducer):
        def triplet_reduction(self, losses, *args):
            self.seen = len(losses)
            return super().triplet_reduction(losses, *args)

    def seen():
        loss = SemiHardTripletLoss(reducer=Own())
        loss(torch.randn(70, 6), torch.arange(70) % 2)
        return loss.reducer.seen

    assert either_way(seen) == [70 * 34] * 2


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("make", [DISTANCES["squared"], DISTANCES["inverse"], DISTANCES["dot"], Learned])
def test_triplets_and_their_order(make, labels, batch, either_way):
    def mined():
        miner = SemiHardMiner(distance=make(collect_stats=True), collect_stats=True)
        triplets = miner(batch(len(labels)), labels)
        loss = SemiHardTripletLoss(distance=make(), reducer=reducers.DoNothingReducer())
        given = loss(batch(len(labels)), labels)["loss"]
        statistics = [getattr(one, name) for one in (miner, miner.distance) for name in one._record_these_stats]
        return [*triplets, *given["indices"], given["losses"], *statistics]

    few, many = either_way(mined)
    assert all(map(torch.equal, few[:6], many[:6]))
    assert_same(few[6:], many[6:])


@pytest.mark.parametrize("anchors", [33, 34])
def test_the_33rd_positive_changes_nothing(anchors):
    """Without any setting changed: a class of so many samples, against the host's loss over the same triplets."""
    labels = torch.where(torch.arange(90) < anchors, 0, torch.arange(90))
    for make in DISTANCES.values():
        distance, embeddings = make(), torch.randn(90, 6)
        host = losses.TripletMarginLoss(margin=0.3, distance=distance, reducer=reducers.MeanReducer())
        ours = SemiHardTripletLoss(margin=0.3, distance=distance)
        leaf = embeddings.clone().requires_grad_()
        triplets = SemiHardMiner(distance=distance)(leaf, labels)
        both = (ours(leaf, labels), host(leaf, labels, triplets))
        if distance.power > 0:  # the host divides by the zeros of its diagonal
            assert_same(torch.autograd.grad(both[1], leaf), torch.autograd.grad(both[0], leaf), 1e-4)
        assert_same([both[1]], [both[0]])


def lacks(use):
    """Return whether torch, by itself, cannot do something yet: so it is with the lowest version."""
    try:
        use(torch.ones(2, 3))
    except (NotImplementedError, RuntimeError):
        return True
    return False


CDIST = lacks(lambda x: torch.autograd.functional.hessian(lambda x: torch.cdist(x, x + 1, p=1).sum(), x))
VALUES = lacks(torch.func.grad(lambda x: x.sum() * (torch.arange(3) + 1).tolist()[0]))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("make", DISTANCES.values(), ids=DISTANCES)
def test_second_derivatives(make, smooth, either_way):
    if CDIST and make in {DISTANCES[name] for name in ("L1", "L3", "scaled", "pairwise only")}:
        pytest.skip("torch.cdist has no second derivative")
    labels = torch.where(torch.arange(24) < 12, 0, torch.arange(24) // 4)

    def second():
        embeddings = torch.randn(24, 6).double().requires_grad_()
        loss = SemiHardTripletLoss(distance=make(), smooth_loss=smooth)
        loss.margin = nn.Parameter(torch.tensor(0.3).double())
        inputs = [embeddings, *loss.parameters()]
        first = torch.autograd.grad(loss(embeddings, labels), inputs, create_graph=True)
        along = sum((torch.randn_like(grad) * grad).sum() for grad in first)
        return torch.autograd.grad(along, inputs, allow_unused=True, materialize_grads=True)

    few, many = either_way(second)
    assert few[0].abs().max() > 0
    assert_same(few, many, 1e-8)


def test_second_derivative_is_that_of_the_first():
    labels = torch.arange(70) % 2
    loss = SemiHardTripletLoss(smooth_loss=True, distance=LpDistance())
    assert torch.autograd.gradgradcheck(
        lambda e: loss(e, labels), torch.randn(70, 3).double().requires_grad_(), fast_mode=True
    )


@pytest.mark.parametrize("labels", [torch.arange(24) // 4, torch.arange(70) % 2], ids=["few", "many"])
@pytest.mark.parametrize("make", [DISTANCES["squared"], DISTANCES["euclidean"], DISTANCES["dot"], Learned])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning", "ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.skipif(VALUES, reason="torch.func hides the values of tensors made in a transform")
def test_transforms_of_torch(labels, make):
    embeddings, loss = torch.randn(len(labels), 6), SemiHardTripletLoss(distance=make())
    leaf = embeddings.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, labels), leaf)
    torch.testing.assert_close(torch.func.grad(lambda e: loss(e, labels))(embeddings), expected)
    torch.testing.assert_close(torch.func.jacrev(lambda e: loss(e, labels))(embeddings), expected)
    along = torch.randn_like(expected)
    value, slope = torch.func.jvp(lambda e: loss(e, labels), (embeddings,), (along,))
    torch.testing.assert_close(value, loss(embeddings, labels))
    torch.testing.assert_close(slope, (along * expected).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(embeddings, along), labels)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("classes", [2, 20])
def test_without_gradients(mode, classes):
    embeddings, labels = torch.randn(80, 6), torch.arange(80) % classes
    expected = SemiHardTripletLoss()(embeddings, labels)
    with mode():
        assert torch.equal(SemiHardTripletLoss()(embeddings, labels), expected)
        assert torch.equal(SemiHardTripletLoss()(embeddings.clone(), labels.clone()), expected)
