"""What the host's own tests ask of every loss, asked of ours and of the host's nearest class side by side."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, reducers, regularizers
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.samplers import FixedSetOfTriplets, HierarchicalSampler, MPerClassSampler
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from pytorch_metric_learning.utils.inference import CustomKNN, InferenceModel
from torch import nn

from pml_extensions.losses import CrossBatchMemory, SelfSupervisedLoss, SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.models import TwoHeadOutput
from pml_extensions.regularizers import SVMaxRegularizer

DISTANCES = {
    "euclidean": LpDistance,
    "squared": lambda: LpDistance(power=2),
    "not normalized": lambda: LpDistance(normalize_embeddings=False),
    "L1": lambda: LpDistance(p=1),
    "cosine": CosineSimilarity,
    "dot": lambda: DotProductSimilarity(normalize_embeddings=False),
    "snr": SNRDistance,
}
REDUCERS = {
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "non-zero": reducers.AvgNonZeroReducer,
    "threshold": lambda: reducers.ThresholdReducer(low=0.05, high=0.5),
    "weighted": lambda: reducers.ClassWeightedReducer(torch.linspace(0.1, 1, 20)),
    "multiple": lambda: reducers.MultipleReducers({"loss": reducers.SumReducer()}),
    "nothing": reducers.DoNothingReducer,
}
REGULARIZERS = {"none": lambda: None, "Lp": regularizers.LpRegularizer, "SVMax": SVMaxRegularizer}
LABELS = {"few": torch.arange(40) // 4, "many": torch.arange(80) % 2}
LABEL_TYPES = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]


def pair_of_losses(distance, reducer, regularizer=lambda: None):
    """Return our loss and the host's, made alike."""
    kinds = ((SemiHardTripletLoss, 0.3), (losses.TripletMarginLoss, 0.3))
    return [
        kind(margin, distance=distance(), reducer=reducer(), embedding_regularizer=regularizer())
        for kind, margin in kinds
    ]


def total(value):
    """Return one number, also of what DoNothingReducer returns."""
    return sum(term["losses"].sum() for term in value.values()) if isinstance(value, dict) else value


def assert_alike(ours, host, labels, embeddings):
    """Assert that both give the same value and gradient for the triplets that our miner finds."""
    triplets = SemiHardMiner(distance=host.distance)(embeddings, labels)
    leaves = [embeddings.clone().requires_grad_() for _ in range(2)]
    values = [
        total(loss(leaf, labels, given))
        for loss, leaf, given in zip((ours, host), leaves, (None, triplets), strict=True)
    ]
    grads = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip(values, leaves, strict=True)]
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5 * float(grads[1].abs().max()) + 1e-7)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("regularizer", REGULARIZERS.values(), ids=REGULARIZERS)
@pytest.mark.parametrize("reducer", REDUCERS.values(), ids=REDUCERS)
@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_every_distance_reducer_and_regularizer(distance, reducer, regularizer, labels):
    assert_alike(*pair_of_losses(distance, reducer, regularizer), labels, torch.randn(len(labels), 8))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("dtype", LABEL_TYPES, ids=str)
def test_labels_of_every_integer_type(dtype, labels):
    ours, host = pair_of_losses(LpDistance, reducers.MeanReducer)
    assert_alike(ours, host, labels.to(dtype), torch.randn(len(labels), 8))


@pytest.mark.parametrize("mask", [None, torch.arange(40) < 20], ids=["none", "half"])
def test_memories_go_through_the_same_states(mask):
    ours = CrossBatchMemory(SemiHardTripletLoss(0.3, distance=LpDistance()), 8, 96)
    host = losses.CrossBatchMemory(
        losses.TripletMarginLoss(0.3, distance=LpDistance(), reducer=reducers.MeanReducer()),
        8,
        96,
        miner=SemiHardMiner(distance=LpDistance()),
    )
    for _ in range(4):
        embeddings = torch.randn(40, 8)
        values = [memory(embeddings, LABELS["few"], enqueue_mask=mask) for memory in (ours, host)]
        torch.testing.assert_close(*values)
        assert torch.equal(ours.embedding_memory, host.embedding_memory)
        assert torch.equal(ours.label_memory, host.label_memory)
        assert (ours.queue_idx, ours.has_been_filled) == (host.queue_idx, host.has_been_filled)


SUPPORTED = {
    "ours": SemiHardTripletLoss, "triplets": losses.TripletMarginLoss, "pairs": losses.ContrastiveLoss,
    "softmax": losses.NTXentLoss, "mean of pairs": losses.IntraPairVarianceLoss,
}  # fmt: skip


@pytest.mark.parametrize("make", SUPPORTED.values(), ids=SUPPORTED)
def test_memory_of_nothing_is_empty(make):
    """The library's own takes a memory for full after a batch of no rows, and compares with the zeros in it."""
    memory, untouched = CrossBatchMemory(make(), 8, 96), CrossBatchMemory(make(), 8, 96)
    embeddings, labels = torch.randn(40, 8, requires_grad=True), LABELS["few"]
    for rows, mask in ((40, torch.zeros(40).bool()), (0, None), (0, torch.zeros(0).bool())):
        nothing = memory(embeddings[:rows], labels[:rows], enqueue_mask=mask)
        nothing.backward()
        assert nothing == 0
        assert not memory.has_been_filled
    assert not embeddings.grad.any()
    torch.testing.assert_close(memory(embeddings, labels), untouched(embeddings, labels))
    torch.testing.assert_close(memory(embeddings[:0], labels[:0]), torch.zeros(()))
    torch.testing.assert_close(memory(-embeddings, labels), untouched(-embeddings, labels))


def test_given_triplets_of_a_memory_name_its_rows():
    ours = CrossBatchMemory(SemiHardTripletLoss(0.3, distance=LpDistance()), 8, 96)
    host = losses.CrossBatchMemory(
        losses.TripletMarginLoss(0.3, distance=LpDistance(), reducer=reducers.MeanReducer()),
        8,
        96,
        miner=SemiHardMiner(distance=LpDistance()),
    )
    triplets = tuple(torch.tensor([row]) for row in (0, 60, 79))
    for given in (None, triplets):
        embeddings = torch.randn(40, 8)
        torch.testing.assert_close(*(memory(embeddings, LABELS["few"], given) for memory in (ours, host)))


def test_memory_stores_nothing_that_does_not_fit():
    memory = CrossBatchMemory(SemiHardTripletLoss(), 8, 96)
    for labels in (torch.zeros(40), LABELS["few"][:30], LABELS["few"].unsqueeze(1)):
        with pytest.raises((TypeError, ValueError), match="labels must"):
            memory(torch.randn(40, 8), labels)
    assert memory.queue_idx == 0
    assert not memory.embedding_memory.any()


def test_memory_with_a_state_dict():
    memory, other = (CrossBatchMemory(SemiHardTripletLoss(), 8, 64) for _ in range(2))
    host = losses.CrossBatchMemory(losses.TripletMarginLoss(), 8, 64)
    memory(torch.randn(40, 8), LABELS["few"])
    assert list(memory.state_dict()) == list(host.state_dict())
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.embedding_memory, memory.embedding_memory)


@pytest.mark.parametrize("symmetric", [True, False])
def test_views_of_one_sample(symmetric):
    views = torch.randn(2, 20, 8)
    for wrap, loss in (
        (SelfSupervisedLoss, SemiHardTripletLoss()),
        (losses.SelfSupervisedLoss, losses.TripletMarginLoss()),
    ):
        leaf = views.clone().requires_grad_()
        wrap(loss, symmetric=symmetric)(*leaf).backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("efficient", [False, True])
def test_the_distributed_wrapper_in_one_process_returns_the_loss_as_it_is(efficient):
    ours, host = pair_of_losses(LpDistance, reducers.MeanReducer)
    for loss in (ours, host):
        embeddings = torch.randn(40, 8)
        with pytest.warns(UserWarning, match="non-distributed setting"):
            value = DistributedLossWrapper(loss, efficient=efficient)(embeddings, LABELS["few"])
        assert torch.equal(value, loss(embeddings, LABELS["few"]))


SAMPLERS = {
    "per class": lambda labels: MPerClassSampler(labels, 4, length_before_new_iter=40),
    "hierarchical": lambda labels: HierarchicalSampler(
        torch.stack([labels, labels // 2], 1), 16, 4, super_classes_per_batch=2
    ),
    "fixed triplets": lambda labels: FixedSetOfTriplets(labels, 20),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_batches_of_samplers(make):
    batch = torch.from_numpy(np.hstack(list(make(LABELS["few"])))).long()[:40]
    ours, host = pair_of_losses(LpDistance, reducers.MeanReducer)
    assert_alike(ours, host, LABELS["few"][batch], torch.randn(40, 8)[batch])


ALL = {
    "semi-hard": SemiHardTripletLoss,
    "regularized": lambda: SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), collect_stats=True),
    "memory": lambda: CrossBatchMemory(SemiHardTripletLoss(), 8, 96),
    "two heads": lambda: TwoHeadLoss(collect_stats=True),
    "the host's": losses.TripletMarginLoss,
}


def called(loss, embeddings, labels):
    return loss(TwoHeadOutput(embeddings, embeddings) if isinstance(loss, TwoHeadLoss) else embeddings, labels)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_copies_pickles_and_modes(make, labels):
    embeddings = torch.randn(len(labels), 80 if len(labels) == 80 else 40)[:, :8]
    if make is ALL["two heads"]:
        labels = labels % 8
    expected = called(make(), embeddings, labels)
    for other in (copy.deepcopy(make()), pickle.loads(pickle.dumps(make())), make().eval(), make().double().float()):  # noqa: S301
        torch.testing.assert_close(called(other, embeddings, labels), expected)
    for mode in (torch.no_grad, torch.inference_mode):  # so validate Lightning and others
        with mode():
            torch.testing.assert_close(called(make(), embeddings, labels), expected)


def test_statistics_are_recorded_under_the_names_that_the_host_logs():
    ours = SemiHardTripletLoss(
        collect_stats=True,
        distance=LpDistance(collect_stats=True),
        reducer=reducers.AvgNonZeroReducer(collect_stats=True),
    )
    host = losses.TripletMarginLoss(
        collect_stats=True,
        distance=LpDistance(collect_stats=True),
        reducer=reducers.AvgNonZeroReducer(collect_stats=True),
    )
    for part in (lambda loss: loss, lambda loss: loss.distance, lambda loss: loss.reducer):
        for names in ("_record_these", "_record_these_stats"):
            assert getattr(part(ours), names, []) == getattr(part(host), names, [])


def test_inference_model_with_what_was_trained():
    trunk = nn.Linear(6, 8)
    model = InferenceModel(trunk, knn_func=CustomKNN(CosineSimilarity()), data_device="cpu")
    optimizer, images = (
        torch.optim.SGD(trunk.parameters(), lr=1.0),
        torch.eye(6).repeat(8, 1) + 0.1 * torch.randn(48, 6),
    )
    labels = torch.arange(48) % 6
    for _ in range(20):
        optimizer.zero_grad()
        SemiHardTripletLoss()(trunk(images), labels).backward()
        optimizer.step()
    embeddings = model.get_embeddings(images)
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)
    assert (labels[nearest] == labels).float().mean() > 0.9
