import copy
import pickle
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, reducers
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.regularizers import LpRegularizer
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch.multiprocessing.spawn import spawn

from pml_extensions._semi_hard import shipped
from pml_extensions.losses import CrossBatchMemory, SelfSupervisedLoss, SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner


def squared_euclidean(x, y):
    return (F.normalize(x, dim=1).unsqueeze(1) - F.normalize(y, dim=1)).square().sum(2)


def published(distances, labels, margin=0.2, smooth=False, ref_labels=None):
    """The whole B x B x B tensor of triplets, as TensorFlow's function defines it, differentiable."""
    others = labels if ref_labels is None else ref_labels
    same = labels.unsqueeze(1) == others
    pairs = same if ref_labels is not None else same & ~torch.eye(len(labels), dtype=torch.bool)
    pairs = pairs & ~same.all(1, keepdim=True)
    if not pairs.any():
        return distances.sum() * 0
    an = distances.unsqueeze(1).expand(-1, len(others), -1)
    farther = (an > distances.unsqueeze(2)) & ~same.unsqueeze(1)
    nearest = an.masked_fill(~farther, torch.inf).amin(2)
    farthest = distances.masked_fill(same, -torch.inf).amax(1, keepdim=True)
    violation = (distances - torch.where(farther.any(2), nearest, farthest) + margin)[pairs]
    return (F.softplus(violation) if smooth else violation.clamp_min(0)).mean()


def value_and_grad(loss, embeddings):
    leaf = embeddings.detach().clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    return value.detach().double(), leaf.grad.double()


def assert_published(embeddings, labels, loss=None, distances=squared_euclidean, **settings):
    loss = loss or SemiHardTripletLoss()
    value, grad = value_and_grad(lambda e: loss(e, labels), embeddings)
    expected = value_and_grad(lambda e: published(distances(e, e), labels, **settings), embeddings.double())
    torch.testing.assert_close(value, expected[0], rtol=1e-5, atol=1e-6)
    scale = float(expected[1].abs().max())
    torch.testing.assert_close(
        grad, expected[1], rtol=0, atol=max(2e-3 if embeddings.dtype == torch.half else 2e-5, 1e-12) * scale
    )


LABELS = {
    "P x K": torch.arange(60) // 4,
    "two classes": torch.arange(80) % 2,
    "one huge class": torch.where(torch.arange(70) < 45, 0, torch.arange(70) // 3),
    "all the same": torch.zeros(40, dtype=torch.long),
    "all different": torch.arange(40),
    "far and negative": (torch.arange(40) // 4 - 5) * 2**58,
    "int8": (torch.arange(40) // 4 - 100).to(torch.int8),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("smooth", [False, True])
def test_value_and_gradient_equal_the_published_formula(labels, dtype, smooth):
    torch.manual_seed(1)  # no two distances of a row closer than float32 resolves
    loss = SemiHardTripletLoss(margin=0.3, smooth_loss=smooth)
    assert_published(torch.randn(len(labels), 12).to(dtype), labels, loss, margin=0.3, smooth=smooth)


@pytest.mark.parametrize("labels", [LABELS["P x K"], LABELS["two classes"]], ids=["P x K", "two classes"])
@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_nearly_collapsed(labels, spread):
    embeddings = torch.randn(1, 12) + spread * torch.randn(len(labels), 12)
    assert_published(embeddings, labels)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_is_finite_at_zero_distance(labels, power, dtype):
    loss = SemiHardTripletLoss(distance=LpDistance(power=power))
    for row in (torch.randn(1, 6), torch.zeros(1, 6)):
        value, grad = value_and_grad(lambda e: loss(e, labels), row.repeat(len(labels), 1).to(dtype))
        assert grad.isfinite().all()
        assert value == 0 or value == pytest.approx(0.2)


@pytest.mark.parametrize("labels", [LABELS["P x K"], LABELS["one huge class"]], ids=["P x K", "one huge class"])
@pytest.mark.parametrize(
    "distance",
    [
        LpDistance(),
        LpDistance(power=3),
        LpDistance(normalize_embeddings=False, power=2),
        LpDistance(p=1, normalize_embeddings=False),
        CosineSimilarity(),
        SNRDistance(),
    ],
    ids=["euclidean", "cubed", "not normalized", "L1", "cosine", "snr"],
)
def test_any_distance_of_the_host(distance, labels):
    def distances(x, y):
        return -distance(x, y) if distance.is_inverted else distance(x, y)

    assert_published(torch.randn(len(labels), 6), labels, SemiHardTripletLoss(distance=distance), distances)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_batches_of_almost_nothing_give_zero_that_has_a_gradient(n):
    value, grad = value_and_grad(lambda e: SemiHardTripletLoss()(e, torch.arange(n)), torch.randn(n, 3))
    assert value == 0
    assert torch.equal(grad, torch.zeros(n, 3, dtype=torch.float64))


@pytest.mark.parametrize("classes", [2, 9])
def test_references_get_gradients_too(classes):
    labels, ref_labels = torch.arange(30) % classes, torch.randint(classes + 1, (100,))
    both = torch.randn(130, 5)
    value, grad = value_and_grad(lambda e: SemiHardTripletLoss()(e[:30], labels, None, e[30:], ref_labels), both)
    expected, expected_grad = value_and_grad(
        lambda e: published(squared_euclidean(e[:30], e[30:]), labels, ref_labels=ref_labels), both.double()
    )
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 20])
def test_given_triplets_are_used(classes):
    embeddings, labels = torch.randn(80, 6), torch.arange(80) % classes
    loss = SemiHardTripletLoss()
    mined = value_and_grad(lambda e: loss(e, labels, SemiHardMiner()(e, labels)), embeddings)
    for part, own in zip(mined, value_and_grad(lambda e: loss(e, labels), embeddings), strict=True):
        torch.testing.assert_close(part, own, rtol=1e-4, atol=1e-7)
    a, p, n = (torch.tensor(column) for column in ([0, 1], [20, 21], [3, 4]))
    x = F.normalize(embeddings, dim=1)
    expected = ((x[a] - x[p]).square().sum(1) - (x[a] - x[n]).square().sum(1) + 0.2).relu().mean()
    assert loss(embeddings, None, (a, p, n)) == pytest.approx(expected.item(), rel=1e-5)
    empty = torch.zeros(0, dtype=torch.long)
    assert loss(embeddings, labels, (empty, empty, empty)) == 0
    assert loss(embeddings[:0], labels[:0], (empty, empty, empty)) == 0


def test_given_pairs_become_triplets_as_in_the_host():
    embeddings, labels = torch.randn(12, 6), torch.arange(12) // 3
    pairs = (torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([0, 0, 3]), torch.tensor([5, 6, 7]))
    host = losses.TripletMarginLoss(margin=0.2, distance=LpDistance(power=2), reducer=reducers.MeanReducer())
    assert SemiHardTripletLoss()(embeddings, labels, pairs) == pytest.approx(host(embeddings, labels, pairs).item())


def test_many_pairs_are_taken_run_by_run(monkeypatch):
    embeddings, labels = torch.randn(64, 6), torch.arange(64) // 4
    expected = value_and_grad(lambda e: SemiHardTripletLoss()(e, labels), embeddings)
    monkeypatch.setattr(shipped, "PAIR_ELEMENTS", 60)
    for part, whole in zip(
        value_and_grad(lambda e: SemiHardTripletLoss()(e, labels), embeddings), expected, strict=True
    ):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("classes", [2, 16])
def test_gradient_keeps_no_matrix_of_the_batch(classes):
    embeddings, labels = torch.randn(128, 4, requires_grad=True), torch.arange(128) % classes
    kept = weakref.WeakSet()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        loss = SemiHardTripletLoss()(embeddings, labels)
    assert max(saved.tensor.numel() for saved in kept) < 128 * 128 // 2
    loss.backward()


@pytest.mark.parametrize("classes", [2, 16])
@pytest.mark.parametrize(
    "reducer",
    [
        reducers.AvgNonZeroReducer(),
        reducers.SumReducer(),
        reducers.ThresholdReducer(low=0.1),
        reducers.ClassWeightedReducer(torch.rand(16)),
    ],
    ids=lambda reducer: type(reducer).__name__,
)
def test_reducers_of_the_host(reducer, classes):
    embeddings, labels = torch.randn(80, 6), torch.arange(80) % classes
    triplets = SemiHardMiner()(embeddings, labels)
    host = losses.TripletMarginLoss(margin=0.2, distance=LpDistance(power=2), reducer=reducer)
    ours = SemiHardTripletLoss(reducer=reducer)
    assert ours(embeddings, labels).item() == pytest.approx(host(embeddings, labels, triplets).item(), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 16])
def test_without_reduction_the_host_gets_every_loss_with_its_triplet(classes):
    found = SemiHardTripletLoss(reducer=reducers.DoNothingReducer())(torch.randn(80, 6), torch.arange(80) % classes)
    assert found["loss"]["reduction_type"] == "triplet"
    assert len(found["loss"]["losses"]) == len(found["loss"]["indices"][0])


@pytest.mark.parametrize("classes", [2, 16])
def test_loss_terms(classes):
    embeddings, labels = torch.randn(80, 6), torch.arange(80) % classes
    loss = SemiHardTripletLoss(embedding_regularizer=LpRegularizer())
    terms = loss.loss_terms(embeddings, labels)
    assert set(terms) == {"loss", "embedding_reg_loss"}
    triplets = SemiHardMiner()(embeddings, labels)
    assert all(map(torch.equal, terms["loss"]["indices"], triplets))
    assert torch.equal(terms["loss"]["indices"].anchors, triplets[0])
    total = terms["loss"]["losses"].mean() + terms["embedding_reg_loss"]["losses"]
    assert loss(embeddings, labels).item() == pytest.approx(total.item())
    assert SemiHardTripletLoss().loss_terms(embeddings, torch.arange(80)) == {}
    assert SemiHardTripletLoss().loss_terms(embeddings[:0], labels[:0]) == {}


@pytest.mark.parametrize("indices", [(torch.arange(2),), "all", (torch.arange(2), torch.arange(2), [1, 2])])
def test_indices_that_are_neither_pairs_nor_triplets(indices):
    with pytest.raises(TypeError, match=r"indices_tuple must be three tensors, \(anchors, positives, negatives\)"):
        SemiHardTripletLoss()(torch.randn(4, 3), torch.arange(4) // 2, indices)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_indices_of_every_integer_type(dtype):
    embeddings, labels = torch.randn(16, 3), torch.arange(16) // 4
    triplets = SemiHardMiner()(embeddings, labels)
    narrow = tuple(column.to(dtype) for column in triplets)
    for loss in (SemiHardTripletLoss(), SemiHardTripletLoss(distance=LpDistance(normalize_embeddings=False))):
        assert torch.equal(loss(embeddings, labels, narrow), loss(embeddings, labels, triplets))


@pytest.mark.parametrize("classes", [2, 16])
def test_embedding_regularizer(classes):
    embeddings, labels = torch.randn(80, 6), torch.arange(80) % classes
    loss = SemiHardTripletLoss(embedding_regularizer=LpRegularizer(), embedding_reg_weight=0.5)
    expected = SemiHardTripletLoss()(embeddings, labels) + 0.5 * embeddings.norm(dim=1).mean()
    assert loss(embeddings, labels).item() == pytest.approx(expected.item())
    assert loss.sub_loss_names() == ["loss", "embedding_reg_loss"]


def test_multiple_losses_of_the_host():
    embeddings, labels = torch.randn(32, 6, requires_grad=True), torch.arange(32) // 4
    both = losses.MultipleLosses([SemiHardTripletLoss(), losses.ContrastiveLoss()], miners=[SemiHardMiner(), None])
    both(embeddings, labels).backward()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("miner", [None, SemiHardMiner()])
def test_cross_batch_memory(miner):
    memory = CrossBatchMemory(SemiHardTripletLoss(), embedding_size=6, memory_size=48, miner=miner)
    labels = torch.arange(32) // 4
    first = torch.randn(32, 6)
    assert memory(first, labels).item() == pytest.approx(published(squared_euclidean(first, first), labels).item())
    second = torch.randn(32, 6, requires_grad=True)
    value = memory(second, labels)
    value.backward()
    stored, stored_labels = memory.embedding_memory, memory.label_memory
    distances = squared_euclidean(second.detach(), stored)
    distances[labels.unsqueeze(1) != stored_labels] += 0  # the queue has wrapped: rows 32-47 and 0-15 are this batch
    places = torch.arange(32, 64) % 48
    pairs = distances.new_full(distances.shape, 1.0).bool()
    pairs[torch.arange(32), places] = False
    same = labels.unsqueeze(1) == stored_labels
    expected = []
    for a, p in (same & pairs).nonzero().tolist():
        negatives = distances[a][~same[a]]
        farther = negatives[negatives > distances[a, p]]
        expected.append((distances[a, p] - (farther.min() if len(farther) else negatives.max()) + 0.2).relu())
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert second.grad.isfinite().all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss(symmetric):
    views = torch.randn(2, 16, 6)
    value = SelfSupervisedLoss(SemiHardTripletLoss(), symmetric=symmetric)(*views)
    labels = torch.arange(16)
    if symmetric:
        expected = published(squared_euclidean(views.flatten(0, 1), views.flatten(0, 1)), labels.repeat(2))
    else:
        expected = published(squared_euclidean(*views), labels, ref_labels=labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("wrapper", [lambda loss: CrossBatchMemory(loss, 6), SelfSupervisedLoss])
def test_the_wrappers_take_what_the_host_takes_and_nothing_more(wrapper):
    wrapper(losses.TripletMarginLoss())
    with pytest.raises(Exception, match="not supported for VICRegLoss"):
        wrapper(losses.VICRegLoss())


def warnings_without_triplets(embeddings, labels):
    """How often each wrapper warns that it was called without triplets: efficient or not, once or twice."""
    counts = {}
    for efficient, miner in ((False, None), (True, None), (True, MultiSimilarityMiner())):
        wrapper = DistributedLossWrapper(SemiHardTripletLoss(), efficient=efficient)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                pairs = miner and DistributedMinerWrapper(miner, efficient=True)(embeddings, labels)
                wrapper(embeddings, labels, pairs)
        counts[efficient, bool(miner)] = sum("efficient=True) was called without triplets" in str(w) for w in caught)
    return counts


def on_two_ranks(rank, port, results):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    everything, labels = torch.randn(24, 4, generator=torch.Generator().manual_seed(5)), torch.arange(24) // 3
    mine = slice(12 * rank, 12 * rank + 12)
    found = {"warnings": warnings_without_triplets(everything[mine], labels[mine])}
    for efficient in (False, True):
        embeddings = everything[mine].clone().requires_grad_()
        triplets = DistributedMinerWrapper(SemiHardMiner(), efficient=efficient)(embeddings, labels[mine])
        given = triplets if efficient else None
        value = DistributedLossWrapper(SemiHardTripletLoss(), efficient=efficient)(embeddings, labels[mine], given)
        value.backward()
        found[efficient] = len(triplets[0]), value.item() / 2, embeddings.grad.isfinite().all().item()
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_wrappers_of_the_host(tmp_path, free_port):
    spawn(on_two_ranks, args=(free_port, str(tmp_path)), nprocs=2)
    everything, labels = torch.randn(24, 4, generator=torch.Generator().manual_seed(5)), torch.arange(24) // 3
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for found in ranks:
        assert found["warnings"] == {(False, False): 0, (True, False): 1, (True, True): 0}
    expected = published(squared_euclidean(everything, everything), labels).item()
    for efficient, values in ((False, [expected] * 2), (True, None)):
        assert [found[efficient][0] for found in ranks] == ([24, 24] if efficient else [48, 48])
        assert all(found[efficient][2] for found in ranks)
        if values:
            assert [found[efficient][1] for found in ranks] == pytest.approx(values)
    assert sum(found[True][1] for found in ranks) / 2 == pytest.approx(expected)


def test_autocast_gives_the_loss_in_float32():
    embeddings, labels = torch.randn(32, 6), torch.arange(32) // 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SemiHardTripletLoss()(embeddings, labels)
    assert value.dtype == torch.float32
    assert value == SemiHardTripletLoss()(embeddings, labels)


@pytest.mark.parametrize("classes", [2, 20])
def test_pickles_copies_and_repeats_itself(classes):
    embeddings, labels = torch.randn(80, 4), torch.arange(80) % classes
    loss = SemiHardTripletLoss(margin=0.1)
    expected = value_and_grad(lambda e: loss(e, labels), embeddings)
    for other in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):  # noqa: S301
        for part, whole in zip(value_and_grad(lambda e, it=other: it(e, labels), embeddings), expected, strict=True):
            assert torch.equal(part, whole)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(4, 2), torch.arange(5)), ValueError, "labels must be as many as embeddings, got 5 for 4"),
        ((torch.randn(4, 2), torch.zeros(4, 1).long()), ValueError, r"labels must have shape \(batch,\), got \(4, 1\)"),
        ((torch.randn(4, 2), torch.zeros(4)), TypeError, r"labels must be integers, got torch.float32"),
        ((torch.randn(4, 2),), ValueError, "are needed to mine triplets"),
        ((torch.randn(4, 2), torch.arange(4), None, torch.randn(3, 2)), ValueError, "are needed to mine triplets"),
        (
            (torch.randn(4, 2), torch.arange(4), None, torch.randn(3), torch.arange(3)),
            ValueError,
            "ref_embeddings must",
        ),
    ],
)
def test_bad_batches(arguments, error, message):
    with pytest.raises(error, match=message):
        SemiHardTripletLoss()(*arguments)


def test_bad_settings():
    with pytest.raises(ValueError, match="block_size must be at least 1, got -1"):
        SemiHardTripletLoss(block_size=-1)
