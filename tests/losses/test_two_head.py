import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import DoNothingReducer
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import nn

from pml_extensions.losses import CrossBatchMemory, SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHeadOutput
from pml_extensions.regularizers import SVMaxRegularizer


@pytest.fixture
def outputs():
    return TwoHeadOutput(torch.randn(16, 5, requires_grad=True), torch.randn(16, 8, requires_grad=True))


@pytest.fixture
def labels():
    return torch.arange(16) % 5


def test_default_is_cross_entropy_and_semi_hard_triplets(outputs, labels):
    expected = F.cross_entropy(outputs.logits, labels) + 0.5 * SemiHardTripletLoss()(outputs.embeddings, labels)
    value = TwoHeadLoss(metric_weight=0.5)(outputs, labels)
    assert value.item() == pytest.approx(expected.item())
    for ours, theirs in zip(torch.autograd.grad(value, outputs), torch.autograd.grad(expected, outputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "metric_loss",
    [
        losses.TripletMarginLoss(),
        losses.MultipleLosses([losses.ContrastiveLoss(), SemiHardTripletLoss()]),
        losses.ProxyAnchorLoss(5, 8),
        CrossBatchMemory(SemiHardTripletLoss(), 8),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_any_loss_of_the_host_beside_any_loss_of_torch(metric_loss, outputs, labels):
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    value = TwoHeadLoss(copy.deepcopy(metric_loss), smooth)(outputs, labels)
    expected = smooth(outputs.logits, labels) + metric_loss(outputs.embeddings, labels)
    assert value.item() == pytest.approx(expected.item())


def test_triplets_of_a_miner(outputs, labels):
    triplets = BatchHardMiner()(outputs.embeddings, labels)
    expected = F.cross_entropy(outputs.logits, labels) + SemiHardTripletLoss()(outputs.embeddings, labels, triplets)
    assert TwoHeadLoss()(outputs, labels, triplets).item() == pytest.approx(expected.item())


def test_parameters_of_a_metric_loss_are_parameters_of_the_whole():
    assert len(list(TwoHeadLoss(losses.ProxyAnchorLoss(5, 8)).parameters())) == 1


def test_parts_are_recorded_as_the_host_records(outputs, labels):
    loss = TwoHeadLoss(metric_weight=2, collect_stats=True)
    total = loss(outputs, labels)
    assert loss.sub_loss_names() == ["classification_loss", "metric_loss"]
    assert loss.classification_value == pytest.approx(F.cross_entropy(outputs.logits, labels).item())
    assert loss.classification_value + loss.metric_value == pytest.approx(total.item())
    assert "metric_weight" in loss._record_these
    assert loss._record_these_stats == ["classification_value", "metric_value"]


def test_parts_without_reduction(outputs, labels):
    parts = TwoHeadLoss(reducer=DoNothingReducer())(outputs, labels)
    assert sum(part["losses"] for part in parts.values()).item() == pytest.approx(TwoHeadLoss()(outputs, labels).item())


def test_unlabelled_rows(outputs, labels):
    unlabelled = torch.where(torch.arange(16) < 6, -1, labels)
    rest = TwoHeadOutput(outputs.logits[6:], outputs.embeddings[6:])
    loss = TwoHeadLoss(ignore_label=-1)
    assert loss(outputs, unlabelled).item() == pytest.approx(TwoHeadLoss()(rest, labels[6:]).item())
    triplets = tuple(torch.tensor([row]) for row in (0, 1, 9))
    expected = F.cross_entropy(rest.logits, labels[6:]) + SemiHardTripletLoss()(outputs.embeddings, None, triplets)
    assert loss(outputs, unlabelled, triplets).item() == pytest.approx(expected.item())
    nothing = loss(outputs, torch.full((16,), -1))
    nothing.backward()
    assert nothing == 0
    assert not outputs.logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_lose_nothing_in_the_sum(dtype, labels):
    outputs = TwoHeadOutput(torch.randn(16, 5).to(dtype), torch.randn(16, 8).to(dtype))
    value = TwoHeadLoss(classification_loss=lambda logits, labels: F.cross_entropy(logits.float(), labels))(
        outputs, labels
    )
    assert value.dtype == torch.float32
    wide = TwoHeadOutput(outputs.logits.float(), outputs.embeddings.float())
    assert value.item() == pytest.approx(TwoHeadLoss()(wide, labels).item(), rel=1e-6)


def test_pickles_and_copies(outputs, labels):
    loss = TwoHeadLoss(ignore_label=-1)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):  # noqa: S301
        assert other(outputs, labels) == loss(outputs, labels)


class Handing(nn.Module):
    """A wrapper that hands on whatever it gets."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *args, **kwargs):
        return self.loss(*args, **kwargs)


def handing(loss):
    def call(*args):
        return loss(*args)

    return call


WRAPPERS = {
    "compiled": lambda loss: torch.compile(loss, backend="eager"),
    "data parallel": nn.DataParallel,
    "a module": Handing,
    "a function": handing,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:FutureWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)
def test_a_metric_loss_inside_a_wrapper(wrap, outputs, labels):
    expected = TwoHeadLoss()(outputs, labels)
    assert TwoHeadLoss(wrap(SemiHardTripletLoss()))(outputs, labels).item() == pytest.approx(expected.item())
    inside = wrap(TwoHeadLoss())
    assert inside(outputs, labels).item() == pytest.approx(expected.item())


REGULARIZED = {
    "ours": lambda regularizer: SemiHardTripletLoss(embedding_regularizer=regularizer),
    "the host's": lambda regularizer: losses.ContrastiveLoss(embedding_regularizer=regularizer),
    "several": lambda regularizer: losses.MultipleLosses(
        [SemiHardTripletLoss(embedding_regularizer=regularizer), losses.ContrastiveLoss()]
    ),
    "in a wrapper": lambda regularizer: Handing(SemiHardTripletLoss(embedding_regularizer=regularizer)),
}


@pytest.mark.parametrize("regularizer", [SVMaxRegularizer(), LpRegularizer()], ids=["SVMax", "Lp"])
@pytest.mark.parametrize("make", REGULARIZED.values(), ids=REGULARIZED)
def test_no_labelled_row_costs_nothing_with_a_regularizer_inside(make, regularizer, outputs, labels):
    loss = TwoHeadLoss(make(regularizer), ignore_label=-1)
    nothing = loss(outputs, torch.full((16,), -1))
    nothing.backward()
    assert nothing == 0
    assert not outputs.logits.grad.any()
    assert loss(outputs, labels) > TwoHeadLoss(make(None), ignore_label=-1)(outputs, labels)  # it takes part again


@pytest.mark.parametrize("ignore_label", [None, -1])
@pytest.mark.parametrize("memory", [False, True])
def test_no_row_costs_nothing(memory, ignore_label, outputs, labels):
    metric = CrossBatchMemory(SemiHardTripletLoss(), 8, 64) if memory else SemiHardTripletLoss()
    loss = TwoHeadLoss(metric, ignore_label=ignore_label)
    for rows, unlabelled in ((0, False), *([(16, True)] if ignore_label else [])):
        given = TwoHeadOutput(*(output[:rows] for output in outputs))
        nothing = loss(given, torch.full((rows,), -1) if unlabelled else labels[:rows])
        nothing.backward()
        assert nothing == 0
    assert not outputs.logits.grad.any()
    assert loss(outputs, labels) > 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool], ids=str)
def test_labels_of_every_integer_type(dtype, outputs, labels):
    labels = labels.to(dtype)
    torch.testing.assert_close(TwoHeadLoss()(outputs, labels), TwoHeadLoss()(outputs, labels.long()))


def test_an_ignored_label_of_any_integer_type(outputs, labels):
    expected = TwoHeadLoss(ignore_label=2)(outputs, labels)
    torch.testing.assert_close(TwoHeadLoss(ignore_label=torch.tensor(2))(outputs, labels), expected)


def test_a_weight_that_is_trained(outputs, labels):
    weight = nn.Parameter(torch.tensor(0.5))
    value = TwoHeadLoss(metric_weight=weight)(outputs, labels)  # warnings are errors here
    value.backward()
    torch.testing.assert_close(weight.grad, SemiHardTripletLoss()(outputs.embeddings, labels))


@pytest.mark.parametrize("error", [IndexError, RuntimeError, ValueError, KeyError])
def test_an_error_of_the_classification_loss_says_what_it_got(error, outputs, labels):
    def failing(*_):
        raise error("its own words")

    told = (
        "its own words" if error is KeyError else r"classification_loss, failing, .*\(16, 5\).* from 0 to 4.*own words"
    )
    with pytest.raises(error, match=told):
        TwoHeadLoss(classification_loss=failing)(outputs, labels)


@pytest.mark.parametrize("make", [REGULARIZED["ours"], REGULARIZED["the host's"]], ids=["ours", "the host's"])
def test_a_memory_that_takes_in_the_whole_batch_costs_nothing(make, outputs, labels):
    memory = CrossBatchMemory(make(SVMaxRegularizer()), 8, 64)
    assert memory(outputs.embeddings, labels, enqueue_mask=torch.ones(16, dtype=torch.bool)) == 0
    assert memory.queue_idx == 16
    assert memory(outputs.embeddings, labels, enqueue_mask=torch.arange(16) < 8) > 1


def test_the_regularizer_is_there_again_after_an_error(outputs):
    regularizer = SVMaxRegularizer()
    loss = SemiHardTripletLoss(embedding_regularizer=regularizer)
    with pytest.raises(TypeError, match="indices_tuple must be three tensors"):
        loss(torch.randn(0, 8), torch.zeros(0).long(), (1, 2, 3))
    assert loss.embedding_regularizer is regularizer


def test_a_loss_that_returns_more_than_one_number(outputs, labels):
    with pytest.raises(ValueError, match=r"classification_loss must return one number, got shape \(16,\)"):
        TwoHeadLoss(classification_loss=nn.CrossEntropyLoss(reduction="none"))(outputs, labels)
    with pytest.raises(TypeError, match="metric_loss must return one number, a tensor, got dict"):
        TwoHeadLoss(SemiHardTripletLoss(reducer=DoNothingReducer()))(outputs, labels)
    with pytest.raises(ValueError, match="metric_loss must return one number, got shape"):
        TwoHeadLoss(lambda *args: args[0])(outputs, labels)


@pytest.mark.parametrize("metric_loss", [nn.CrossEntropyLoss(), "triplet", nn.TripletMarginLoss(), losses.VICRegLoss])
def test_a_metric_loss_that_is_not_called_as_the_hosts(metric_loss):
    with pytest.raises(TypeError, match="metric_loss must be a loss of pytorch-metric-learning"):
        TwoHeadLoss(metric_loss)


def test_a_classification_loss_that_is_not_callable():
    with pytest.raises(TypeError, match="classification_loss must be callable, got str"):
        TwoHeadLoss(classification_loss="cross entropy")


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "message"),
    [
        (torch.randn(4, 3), torch.arange(4), TypeError, r"outputs must be \(logits, embeddings\).*got Tensor"),
        ((torch.randn(4, 3), torch.randn(4, 2)), torch.arange(5), ValueError, "labels must be as many .* got 5 for 4"),
        ((torch.randn(4, 3), torch.randn(4, 2)), torch.zeros(4, 1), ValueError, "labels must have shape"),
        ((torch.randn(4, 3), torch.randn(4, 2)), torch.zeros(4), TypeError, "labels must be integers"),
        ((torch.randn(3, 3), torch.randn(4, 2)), torch.arange(4), ValueError, "logits must be as many .* got 3 for 4"),
    ],
)
def test_bad_batches(outputs, labels, error, message):
    with pytest.raises(error, match=message):
        TwoHeadLoss()(outputs, labels)
