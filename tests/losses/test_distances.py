"""Distances of the user's own, beside the host's loss over the same triplets, and what the host's distances record."""

import pytest
import torch
from pytorch_metric_learning import losses, reducers
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from torch import nn

from pml_extensions.losses import CrossBatchMemory, SelfSupervisedLoss, SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner

LABELS = {"few": torch.arange(24) // 4, "many": torch.arange(80) % 2}


class Sets(BaseDistance):
    """Between embeddings of three dimensions."""

    def check_shapes(self, query_emb, ref_emb):
        if query_emb.ndim != 3:
            raise ValueError("embeddings must have three dimensions")

    def normalize(self, embeddings, dim=1, **kwargs):
        return nn.functional.normalize(embeddings, dim=2)

    def compute_mat(self, query_emb, ref_emb):
        return torch.cdist(query_emb.flatten(1), ref_emb.flatten(1))


class Bilinear(BaseDistance):
    """A similarity of embeddings with references of another width."""

    def __init__(self, rows=6, columns=4):
        super().__init__(is_inverted=True)
        self.map = nn.Parameter(torch.randn(rows, columns))

    def compute_mat(self, query_emb, ref_emb):
        return query_emb @ self.map @ ref_emb.T


def own_forward():
    class Forward(nn.Module):
        is_inverted = False

        def forward(self, query_emb, ref_emb):
            return torch.cdist(query_emb, ref_emb)

        def margin(self, x, y):
            return x - y

    return Forward()


def with_a_method_of_its_own():
    distance = LpDistance()
    distance.compute_mat = lambda query_emb, ref_emb: torch.cdist(query_emb, ref_emb, p=1)
    return distance


def with_a_hook():
    distance = CosineSimilarity()
    distance.register_forward_hook(lambda module, args, matrix: matrix**3)
    return distance


def with_a_learned_power():
    distance = LpDistance()
    distance.power = nn.Parameter(torch.tensor(1.5))
    return distance


def not_normalized_any_more():
    distance = CosineSimilarity()
    distance.normalize_embeddings = False
    return distance


class Subclass(DotProductSimilarity):
    pass


OWN = [own_forward, with_a_method_of_its_own, with_a_hook, with_a_learned_power, not_normalized_any_more, Subclass]


def beside_the_host(distance, labels, embeddings, *references):
    """Assert that value and gradients are those of the host's loss over the same triplets."""
    ours = SemiHardTripletLoss(0.3, distance=distance)
    host = losses.TripletMarginLoss(0.3, distance=distance, reducer=reducers.MeanReducer())
    leaves = [embeddings.requires_grad_(), *(one.requires_grad_() for one in references[:1]), *ours.parameters()]
    values = ours(embeddings, labels, None, *references)
    triplets = SemiHardMiner(distance=distance)(embeddings, labels, *references)
    expected = host(embeddings, labels, triplets, *references)
    torch.testing.assert_close(values, expected)
    for grad, other in zip(torch.autograd.grad(values, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
class TestOwnDistances:
    @pytest.mark.parametrize("make", OWN)
    def test_of_any_make(self, make, labels):
        beside_the_host(make(), labels, torch.randn(len(labels), 6))

    def test_embeddings_of_three_dimensions(self, labels):
        beside_the_host(Sets(), labels, torch.randn(len(labels), 3, 2))

    def test_references_of_another_width(self, labels):
        beside_the_host(Bilinear(), labels, torch.randn(len(labels), 6), torch.randn(50, 4), torch.arange(50) % 3)

    def test_views_of_another_width(self, labels):
        views, own = (torch.randn(len(labels), 6), torch.randn(len(labels), 4)), torch.arange(len(labels))
        loss = SemiHardTripletLoss(distance=Bilinear())
        expected = loss(views[0], own, ref_emb=views[1], ref_labels=own.clone())
        torch.testing.assert_close(SelfSupervisedLoss(loss, symmetric=False)(*views), expected)

    def test_in_half_precision_where_its_parameters_are(self, labels):
        distance = Bilinear(6, 6).to(torch.bfloat16)
        embeddings = torch.randn(len(labels), 6).to(torch.bfloat16)
        assert SemiHardTripletLoss(distance=distance)(embeddings, labels).dtype == torch.bfloat16
        distance.float()
        assert SemiHardTripletLoss(distance=distance)(embeddings, labels).dtype == torch.float32

    def test_is_asked_once_for_the_whole_matrix(self, labels):
        seen = []

        class Seen(LpDistance):
            def compute_mat(self, query_emb, ref_emb):
                seen.append((len(query_emb), len(ref_emb)))
                return super().compute_mat(query_emb, ref_emb)

        SemiHardTripletLoss(distance=Seen(), block_size=3)(torch.randn(len(labels), 6), labels)
        assert seen == [(len(labels), len(labels))]

    @pytest.mark.parametrize(
        "make", [LpDistance, CosineSimilarity, lambda **k: LpDistance(p=1, **k), DotProductSimilarity]
    )
    def test_statistics_of_a_distance_are_the_hosts(self, make, labels):
        embeddings = torch.randn(len(labels), 6)
        ours, miners, host = (make(collect_stats=True) for _ in range(3))
        SemiHardTripletLoss(distance=ours)(embeddings, labels)
        SemiHardMiner(distance=miners)(embeddings, labels)
        losses.TripletMarginLoss(distance=host)(embeddings, labels)
        for name in host._record_these_stats:
            assert getattr(ours, name) == pytest.approx(getattr(host, name)) == getattr(miners, name) != 0

    def test_memory_mines_by_the_distance_that_its_loss_has(self, labels):
        embeddings = torch.randn(len(labels), 6)
        memory = CrossBatchMemory(SemiHardTripletLoss(), 6, 200)
        for distance in (CosineSimilarity(), LpDistance(p=1), CosineSimilarity()):
            memory.loss.distance = distance
            memory.reset_queue()
            expected = SemiHardTripletLoss(distance=distance)(embeddings, labels)
            torch.testing.assert_close(memory(embeddings, labels), expected)


def test_memory_leaves_a_given_miner_alone():
    given, later = SemiHardMiner(), SemiHardMiner(distance=LpDistance(p=1))
    memory = CrossBatchMemory(SemiHardTripletLoss(), 6, 64, miner=given)
    memory.loss.distance = CosineSimilarity()
    memory(torch.randn(8, 6), torch.arange(8) // 2)
    assert memory.miner is given
    assert isinstance(given.distance, LpDistance)
    memory.miner = later
    memory(torch.randn(8, 6), torch.arange(8) // 2)
    assert memory.miner is later
    assert later.distance.p == 1


def test_memory_of_another_loss_gets_no_miner():
    memory = CrossBatchMemory(SemiHardTripletLoss(), 6, 64)
    assert isinstance(memory.miner, SemiHardMiner)
    memory.loss = losses.ContrastiveLoss()
    memory(torch.randn(8, 6), torch.arange(8) // 2)
    assert memory.miner is None


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 3]])
def test_memory_needs_labels(labels):
    with pytest.raises(TypeError, match=r"labels must be a tensor of class numbers, got (NoneType|list)"):
        CrossBatchMemory(SemiHardTripletLoss(), 6, 64)(torch.randn(4, 6), labels)


def test_distance_without_a_matrix():
    class Pairwise(BaseDistance):
        def pairwise_distance(self, query_emb, ref_emb):
            return (query_emb - ref_emb).abs().sum(1)

    for user in (SemiHardTripletLoss, SemiHardMiner):
        with pytest.raises(NotImplementedError, match=r"distance must define compute_mat.*Pairwise does not"):
            user(distance=Pairwise())(torch.randn(8, 6), torch.arange(8) // 2)


def test_shapes_that_the_distance_does_not_take():
    with pytest.raises(ValueError, match="embeddings must have three dimensions"):
        SemiHardTripletLoss(distance=Sets())(torch.randn(8, 6), torch.arange(8) // 2)
