"""The monitor in Lightning's trainer."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_extensions.monitors.lightning import CollapseMonitorCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Module(pl.LightningModule):
    """A backbone with a head; it returns both outputs. ``fails`` names the step at which its loss raises."""

    def __init__(self, fails=None):
        super().__init__()
        self.net = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)
        self.fails = fails
        self.seen = []

    def forward(self, images):
        features = self.net(images)
        return {"features": features, "embedding": self.head(features)}

    def training_step(self, batch, batch_idx):
        embedding = self(batch[0])["embedding"]
        self.seen.append(embedding.detach().clone())
        if self.global_step == self.fails:
            raise ZeroDivisionError
        return embedding.square().mean()

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback, module=None, folder=None, ckpt_path=None, **settings):
    torch.manual_seed(0)
    module = module or Module()
    loader = DataLoader(TensorDataset(torch.randn(24, 6)), 8)
    defaults = {"max_epochs": 2, "log_every_n_steps": 2}
    trainer = pl.Trainer(
        **{**defaults, **settings},
        callbacks=callback,
        accelerator="cpu",
        logger=CSVLogger(folder) if folder else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer, module


def logged_steps(trainer):
    """The steps of which the logger's file holds all measures."""
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["spread"]]
    assert all(row["mean_singular_value"] and row["effective_rank"] for row in rows)
    return [int(row["step"]) for row in rows]


def hooks(module):
    return sum(len(part._forward_hooks) for part in module.modules())


@pytest.mark.parametrize(("module", "output"), [("head", None), ("", "embedding")])
def test_sees_the_embeddings_of_every_training_batch_and_of_no_other(module, output):
    callback = CollapseMonitorCallback(module, output, window=1000)
    trainer, trained = fit(callback)
    assert torch.equal(callback.monitor.state_dict()["embeddings"], torch.cat(trained.seen))
    assert hooks(trained) == 0
    assert {name: float(trainer.callback_metrics[name]) for name in callback.monitor.compute()} == pytest.approx(
        callback.monitor.compute()
    )


def test_logs_every_n_steps(tmp_path):
    trainer, _ = fit(CollapseMonitorCallback("head"), folder=tmp_path)
    assert logged_steps(trainer) == [2, 4, 6]


def test_logs_once_a_step_with_accumulated_gradients(tmp_path):
    trainer, _ = fit(
        CollapseMonitorCallback("head"), folder=tmp_path, accumulate_grad_batches=3, max_epochs=4, log_every_n_steps=1
    )
    assert logged_steps(trainer) == [1, 2, 3, 4]


def test_early_stopping_finds_the_measures():
    stopping = EarlyStopping("spread", mode="max", patience=0, min_delta=10.0, check_on_train_epoch_end=True)
    trainer, _ = fit([CollapseMonitorCallback("head"), stopping], max_epochs=9)
    assert trainer.current_epoch == 2


def test_a_training_is_the_same_with_it():
    _, watched = fit(CollapseMonitorCallback("head"))
    _, alone = fit([])
    for one, other in zip(watched.seen, alone.seen, strict=True):
        assert torch.equal(one, other)


def test_two_monitors_and_a_checkpoint(tmp_path):
    callbacks = [CollapseMonitorCallback("head", window=12), CollapseMonitorCallback("net", window=12)]
    trainer, _ = fit(callbacks)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    resumed = [CollapseMonitorCallback("head", window=12), CollapseMonitorCallback("net", window=12)]
    fit(resumed, ckpt_path=tmp_path / "state.ckpt")  # no epoch is left
    for before, after in zip(callbacks, resumed, strict=True):
        assert before.monitor.count == 12
        assert torch.equal(before.monitor.state_dict()["embeddings"], after.monitor.state_dict()["embeddings"])
        assert before.monitor.highest == after.monitor.highest


def test_an_exception_leaves_no_hook():
    module = Module(fails=3)
    with pytest.raises(ZeroDivisionError):
        fit(CollapseMonitorCallback("head"), module)
    assert hooks(module) == 0
    wrong = Module()
    wrong.net = nn.Linear(5, 8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(CollapseMonitorCallback("head"), wrong)
    assert hooks(wrong) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("heda",), ValueError, "module must name a submodule of Module, such as 'net', 'head'; got 'heda'"),
        (("", "embeding"), ValueError, "output must be a key or index .* a dict; got 'embeding'"),
        (("",), ValueError, r"must name embeddings \(b, d\), got a dict"),
        (("head", 0), ValueError, r"must name embeddings \(b, d\), got a Tensor of shape \(4,\)"),
    ],
)
def test_names_that_lead_to_no_embeddings(arguments, error, message):
    module = Module()
    with pytest.raises(error, match=message):
        fit(CollapseMonitorCallback(*arguments), module)
    assert hooks(module) == 0


def test_a_module_that_is_not_called():
    module = Module()
    module.unused = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="module 'unused' returned no embeddings in training"):
        fit(CollapseMonitorCallback("unused"), module)
    assert hooks(module) == 0


@pytest.mark.parametrize("arguments", [(3,), ("head", True), ("head", 1.5)])
def test_settings_of_another_type(arguments):
    with pytest.raises(TypeError, match=r"(module|output) must be"):
        CollapseMonitorCallback(*arguments)
