import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance

from pml_extensions._semi_hard.sorted_rows import sort_keys
from pml_extensions.miners import SemiHardMiner


def squared_euclidean(x, y):
    """The distances of unit vectors, from differences in float64."""
    x, y = (F.normalize(z.double(), dim=1) for z in (x, y))
    return torch.stack([(row - y).square().sum(1) for row in x]) if len(x) else x.new_zeros(0, len(y))


def published(distances, labels, ref_labels=None):
    """The definition of FaceNet, pair by pair: anchor, positive, distance of the negative, whether that is farther."""
    others = labels if ref_labels is None else ref_labels
    found = []
    for a, row in enumerate(distances):
        negatives = row[others != labels[a]]
        for p, distance in enumerate(row):
            if others[p] != labels[a] or (ref_labels is None and p == a) or not len(negatives):
                continue
            farther = negatives[negatives > distance]
            found.append((a, p, *((farther.min(), True) if len(farther) else (negatives.max(), False))))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 4)


def in_order(triplets, width):
    anchors, positives, _ = triplets
    order = torch.argsort(anchors * width + positives)
    return [column[order] for column in triplets]


def assert_published(miner, distances, embeddings, labels, *references):
    ref_labels = references[1] if references else None
    expected = published(distances, labels, ref_labels)
    a, p, n = in_order(miner(embeddings, labels, *references), distances.shape[1])
    assert a.dtype == p.dtype == n.dtype == torch.int64
    assert torch.equal(a.double(), expected[:, 0])
    assert torch.equal(p.double(), expected[:, 1])
    if len(a):
        torch.testing.assert_close(distances[a, n], expected[:, 2], rtol=0, atol=1e-6 * float(distances.max()))


LABELS = {
    "P x K": torch.arange(60) // 4,
    "unsorted": torch.randperm(60, generator=torch.Generator().manual_seed(1)) % 9,
    "two classes": torch.arange(67) % 2,
    "many of two": torch.arange(90) % 2,
    "one huge class": torch.where(torch.arange(70) < 45, 0, torch.arange(70) // 3),
    "all the same": torch.zeros(40, dtype=torch.long),
    "all different": torch.arange(40),
    "beyond 2^53": (torch.arange(40) // 4 - 5) * 2**58 + torch.arange(40) % 2,
    "int8": (torch.arange(40) // 4 - 100).to(torch.int8),
    "uint8": (torch.arange(240) // 24 + 240).to(torch.uint8),
    "bool": torch.arange(30) % 3 == 0,
}


def duplicates(n):
    return torch.randn(7, 12)[torch.randint(7, (n,))]


EMBEDDINGS = {
    "spread": lambda n: torch.randn(n, 12),
    "half": lambda n: torch.randn(n, 12).half(),
    "bfloat16": lambda n: torch.randn(n, 12).bfloat16(),
    "double": lambda n: torch.randn(n, 12).double(),
    "nearly collapsed": lambda n: torch.randn(1, 12) + 1e-4 * torch.randn(n, 12),
    "more nearly collapsed": lambda n: torch.randn(1, 12) + 1e-6 * torch.randn(n, 12),
    "collapsed to a grid": lambda n: torch.randn(1, 12).half() + torch.zeros(n, 12).half(),
    "duplicates": duplicates,
    "identical": lambda n: torch.randn(1, 12).repeat(n, 1),
    "one-hot ties": lambda n: F.one_hot(torch.randint(5, (n,)), 12).float(),
    "zeros": lambda n: torch.zeros(n, 12),
    "huge": lambda n: 1e25 * torch.randn(n, 12),
    "tiny": lambda n: 1e-11 * torch.randn(n, 12),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("make", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_equals_the_published_definition(make, labels):
    embeddings = make(len(labels))
    assert_published(SemiHardMiner(), squared_euclidean(embeddings, embeddings), embeddings, labels)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_batches_of_almost_nothing(n):
    for labels in (torch.zeros(n, dtype=torch.long), torch.arange(n), torch.tensor([0, 0, 1])[:n]):
        embeddings = torch.randn(n, 3)
        assert_published(SemiHardMiner(), squared_euclidean(embeddings, embeddings), embeddings, labels)


@pytest.mark.parametrize("block_size", [1, 7, 1000])
@pytest.mark.parametrize("classes", [2, 15])
def test_block_size_does_not_change_the_triplets(block_size, classes):
    embeddings, labels = torch.randn(90, 5), torch.arange(90) % classes
    expected = in_order(SemiHardMiner()(embeddings, labels), 90)
    assert all(map(torch.equal, in_order(SemiHardMiner(block_size=block_size)(embeddings, labels), 90), expected))


@pytest.mark.parametrize("classes", [2, 9])
def test_references(classes):
    embeddings, labels = torch.randn(30, 5), torch.arange(30) % classes
    ref_emb, ref_labels = torch.randn(100, 5), torch.randint(classes + 1, (100,))
    distances = squared_euclidean(embeddings, ref_emb)
    assert_published(SemiHardMiner(), distances, embeddings, labels, ref_emb, ref_labels)
    assert_published(SemiHardMiner(), distances.T, ref_emb, ref_labels, embeddings, labels)


def test_self_pairs_are_left_out_exactly_where_the_host_leaves_them_out():
    embeddings, labels = torch.randn(12, 5), torch.arange(12) // 3
    assert len(SemiHardMiner()(embeddings, labels)[0]) == 24
    assert len(SemiHardMiner()(embeddings, labels, embeddings, labels)[0]) == 24
    assert len(SemiHardMiner()(embeddings, labels, embeddings, labels.clone())[0]) == 36


def test_references_without_negatives_or_nothing_at_all():
    embeddings, labels = torch.randn(6, 3), torch.arange(6) % 2
    assert len(SemiHardMiner()(embeddings, labels, torch.randn(4, 3), torch.zeros(4, dtype=torch.long))[0]) == 0
    assert len(SemiHardMiner()(embeddings, labels, torch.randn(0, 3), torch.zeros(0, dtype=torch.long))[0]) == 0


def test_without_fallback_only_semi_hard_triplets_remain():
    for classes in (2, 20):
        embeddings, labels = torch.randn(80, 2), torch.arange(80) % classes
        embeddings[:10] = -embeddings[0]  # of every class: their farthest positives are farther than any negative
        embeddings[10:20] = embeddings[0]
        distances = squared_euclidean(embeddings, embeddings)
        a, p, n = SemiHardMiner(fallback=None)(embeddings, labels)
        assert (distances[a, n] > distances[a, p]).all()
        assert len(a) == int(published(distances, labels)[:, 3].sum()) < len(SemiHardMiner()(embeddings, labels)[0])


class Chebyshev(LpDistance):
    """A distance of the user's own."""

    def compute_mat(self, query_emb, ref_emb):
        return (query_emb.unsqueeze(1) - ref_emb).abs().amax(2)


DISTANCES = {
    "euclidean": LpDistance(),
    "cubed": LpDistance(power=3),
    "not normalized": LpDistance(normalize_embeddings=False, power=2),
    "L1": LpDistance(p=1, normalize_embeddings=False),
    "cosine": CosineSimilarity(),
    "dot": DotProductSimilarity(normalize_embeddings=False),
    "snr": SNRDistance(),
    "own": Chebyshev(),
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("labels", [torch.arange(48) // 4, torch.arange(80) % 2], ids=["P x K", "two classes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_distance_of_the_host(distance, labels, dtype):
    embeddings = torch.randn(len(labels), 6).to(dtype)
    distances = distance(embeddings.double())
    assert_published(
        SemiHardMiner(distance=distance), -distances if distance.is_inverted else distances, embeddings, labels
    )


def test_cosine_similarity_of_nearly_collapsed_embeddings():
    embeddings, labels = torch.randn(1, 8) + 1e-5 * torch.randn(60, 8), torch.arange(60) // 4
    distances = squared_euclidean(embeddings, embeddings)  # cosine orders alike, and is 1 to float32's last digit here
    assert_published(SemiHardMiner(distance=CosineSimilarity()), distances, embeddings, labels)


def test_autocast_does_not_round_the_distances():
    embeddings, labels = torch.randn(64, 8), torch.arange(64) // 4
    expected = SemiHardMiner()(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, SemiHardMiner()(embeddings, labels), expected))


@pytest.mark.parametrize("distance", [LpDistance(power=2), CosineSimilarity()])
def test_statistics(distance):
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    embeddings = torch.randn(6, 3)
    miner = SemiHardMiner(distance=distance, collect_stats=True)
    a, p, n = miner(embeddings, labels)
    distances = distance(embeddings.double())
    semi_hard = (distances[a, n] < distances[a, p]) if distance.is_inverted else (distances[a, n] > distances[a, p])
    assert miner.num_triplets == 8
    assert miner.anchors_without_positive == 1
    assert miner.semi_hard_share == pytest.approx(semi_hard.double().mean().item())
    assert miner.semi_hard_share + miner.fallback_share == pytest.approx(1)
    assert miner.pos_pair_dist == pytest.approx(distances[a, p].mean().item(), rel=1e-5)
    assert miner.neg_pair_dist == pytest.approx(distances[a, n].mean().item(), rel=1e-5)
    miner(embeddings, torch.arange(6))
    assert (miner.num_triplets, miner.semi_hard_share, miner.anchors_without_positive) == (0, 0, 6)


def test_statistics_without_fallback():
    miner = SemiHardMiner(fallback=None, collect_stats=True)
    a, _, _ = miner(torch.randn(24, 2), torch.arange(24) // 4)
    assert miner.semi_hard_share == pytest.approx(len(a) / 72)
    assert miner.fallback_share == 0


TAKING_TRIPLETS = [
    losses.TripletMarginLoss(),
    losses.ContrastiveLoss(),
    losses.MarginLoss(),
    losses.MultiSimilarityLoss(),
    losses.NTXentLoss(),
    losses.SupConLoss(),
    losses.CircleLoss(),
    losses.AngularLoss(),
    losses.NPairsLoss(),
    losses.TupletMarginLoss(),
    losses.LiftedStructureLoss(),
    losses.GeneralizedLiftedStructureLoss(),
    losses.IntraPairVarianceLoss(),
    losses.SignalToNoiseRatioContrastiveLoss(),
    losses.NCALoss(),
]


@pytest.mark.parametrize("loss", TAKING_TRIPLETS, ids=lambda loss: type(loss).__name__)
def test_losses_of_the_host_take_the_triplets(loss):
    embeddings, labels = torch.randn(32, 8, requires_grad=True), torch.arange(32) // 4
    loss(embeddings, labels, SemiHardMiner()(embeddings, labels)).backward()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("enqueue", [False, True])
def test_cross_batch_memory_of_the_host(enqueue):
    memory = losses.CrossBatchMemory(losses.TripletMarginLoss(), 8, memory_size=48, miner=SemiHardMiner())
    for _ in range(5):
        embeddings, labels = torch.randn(32, 8, requires_grad=True), torch.arange(32) % 8
        mask = torch.arange(32) < 16 if enqueue else None
        memory(embeddings, labels, enqueue_mask=mask).backward()
        assert embeddings.grad.isfinite().all()


def test_host_device_and_global_state_are_left_alone():
    embeddings, labels = torch.randn(90, 4, requires_grad=True), torch.arange(90) % 2
    before = torch.get_rng_state(), threading.active_count(), embeddings.detach().clone()
    SemiHardMiner()(embeddings, labels)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert threading.active_count() == before[1]
    assert torch.equal(embeddings, before[2])
    assert embeddings.grad is None


def test_keys_are_sorted_alike_where_there_is_no_numpy_view():
    keys = torch.randint(-(1 << 62), 1 << 62, (5, 33))
    expected = keys.sort(1).values
    assert torch.equal(sort_keys(keys.clone()), expected)
    assert sort_keys(keys.to("meta")).shape == keys.shape


def test_pickles_and_copies():
    embeddings, labels = torch.randn(20, 4), torch.arange(20) // 4
    miner = SemiHardMiner(fallback=None, collect_stats=True)
    for other in (copy.deepcopy(miner), pickle.loads(pickle.dumps(miner))):  # noqa: S301
        assert all(map(torch.equal, other(embeddings, labels), miner(embeddings, labels)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(4, 2), torch.arange(5)), ValueError, r"labels must be as many as embeddings, got 5 for 4"),
        ((torch.randn(4, 2), torch.zeros(4, 1).long()), ValueError, r"labels must have shape \(batch,\), got \(4, 1\)"),
        ((torch.randn(4, 2), torch.zeros(4)), TypeError, r"labels must be integers, got torch.float32"),
        ((torch.randn(4), torch.arange(4)), ValueError, r"embeddings must have shape \(batch, dimension\), got \(4,\)"),
        ((torch.randn(4, 2), torch.arange(4), torch.randn(3, 2), torch.arange(2)), ValueError, "ref_labels must be as"),
    ],
)
def test_bad_batches(arguments, error, message):
    with pytest.raises(error, match=message):
        SemiHardMiner()(*arguments)


def test_bad_settings():
    with pytest.raises(ValueError, match="fallback must be \"farthest\" or None, got 'nearest'"):
        SemiHardMiner(fallback="nearest")
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        SemiHardMiner(block_size=0)
