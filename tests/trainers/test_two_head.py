import pytest
import torch
from pytorch_metric_learning import losses, testers, trainers
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import nn
from torch.utils.data import TensorDataset

from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.trainers import TrainTwoHead

# the host prints its losses with their gradients
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")

LABELS = torch.arange(64) % 4
IMAGES = nn.functional.one_hot(LABELS, 6).float() + 0.3 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def settings(classifier_width, **more):
    torch.manual_seed(0)
    models = {"trunk": nn.Linear(6, 8), "embedder": nn.Linear(8, 3), "classifier": nn.Linear(classifier_width, 4)}
    return {
        "models": models,
        "optimizers": {f"{name}_optimizer": torch.optim.SGD(m.parameters(), lr=0.5) for name, m in models.items()},
        "batch_size": 16,
        "loss_funcs": {"metric_loss": SemiHardTripletLoss(), "classifier_loss": nn.CrossEntropyLoss()},
        "loss_weights": {"metric_loss": 1, "classifier_loss": 1},
        "dataset": TensorDataset(IMAGES, LABELS),
        "sampler": MPerClassSampler(LABELS, 4, length_before_new_iter=64),
        "dataloader_num_workers": 0,
        "data_device": torch.device("cpu"),
        **more,
    }


def test_both_heads_read_the_trunk():
    trainer = TrainTwoHead(**settings(classifier_width=8))
    trainer.calculate_loss((IMAGES, LABELS))
    features = trainer.models["trunk"](IMAGES)
    expected = nn.functional.cross_entropy(trainer.models["classifier"](features), LABELS)
    assert trainer.losses["classifier_loss"].item() == pytest.approx(expected.item())
    expected = SemiHardTripletLoss()(trainer.models["embedder"](features), LABELS)
    assert trainer.losses["metric_loss"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("trainer", "width"), [(trainers.TrainWithClassifier, 3), (TrainTwoHead, 8)])
def test_the_name_is_all_that_changes(trainer, width):
    run = trainer(**settings(width, mining_funcs={"tuple_miner": SemiHardMiner()}))
    run.train(num_epochs=4)
    found = run.models["trunk"](IMAGES)
    logits = run.models["classifier"](found if width == 8 else run.models["embedder"](found))
    assert (logits.argmax(1) == LABELS).float().mean() > 0.7


def test_frozen_parts_and_missing_weights_work_as_in_the_host():
    trainer = TrainTwoHead(**settings(8, loss_weights={"metric_loss": 1, "classifier_loss": 0}))
    trainer.calculate_loss((IMAGES, LABELS))
    assert trainer.losses["classifier_loss"] == 0
    with pytest.raises(AssertionError, match="loss_funcs keys must be one of metric_loss, classifier_loss"):
        TrainTwoHead(**{**settings(8), "loss_funcs": {"nonsense": losses.ContrastiveLoss()}})


class Records:
    """What the host's logging presets ask of a record keeper."""

    def __init__(self):
        self.names, self.hash_map = set(), {}

    def update_records(self, record, iteration, parent_name="", **kwargs):
        self.names |= {f"{parent_name}/{name}" for name in record}

    def table_exists(self, name):
        return False

    def save_records(self):
        pass


def test_testers_hooks_and_logging_presets_work(tmp_path):
    hooks = logging_presets.HookContainer(Records(), primary_metric="precision_at_1", log_freq=1)
    calculator = AccuracyCalculator(include=("precision_at_1",), knn_func=CustomKNN(LpDistance()))
    tester = testers.GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator, dataloader_num_workers=0, data_device=torch.device("cpu")
    )
    hooks.get_best_epoch_and_accuracy = lambda *_: (None, 0)
    more = {
        "end_of_iteration_hook": hooks.end_of_iteration_hook,
        "end_of_epoch_hook": hooks.end_of_epoch_hook(tester, {"val": TensorDataset(IMAGES, LABELS)}, str(tmp_path)),
    }
    TrainTwoHead(**settings(8, **more)).train(num_epochs=2)
    assert {"loss_histories/metric_loss", "loss_histories/classifier_loss"} <= hooks.record_keeper.names
    assert {path.name for path in tmp_path.iterdir()} >= {"trunk_2.pth", "embedder_2.pth", "classifier_2.pth"}
    assert tester.all_accuracies["val"]["precision_at_1_level0"] > 0.5


def test_a_classifier_of_the_embedding_is_told_what_it_reads_here():
    trainer = TrainTwoHead(**settings(classifier_width=3))
    with pytest.raises(
        RuntimeError, match=r"the classifier fails on the trunk's output, of shape \(64, 8\): .*not the emb"
    ):
        trainer.calculate_loss((IMAGES, LABELS))
