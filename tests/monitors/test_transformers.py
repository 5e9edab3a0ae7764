"""The monitor in the Trainer of transformers."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from pml_extensions.monitors.transformers import CollapseMonitorCallback


class Model(nn.Module):
    """A backbone with a head; ``fails`` names the call at which it raises."""

    def __init__(self, fails=None):
        super().__init__()
        self.net, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.fails = fails
        self.seen = []

    def forward(self, images, labels=None):
        embedding = self.head(self.net(images))
        if self.training:
            self.seen.append(embedding.detach().clone())
        if len(self.seen) == self.fails:
            raise ZeroDivisionError
        return {"loss": embedding.square().mean(), "embedding": embedding}


DATA = [{"images": row, "labels": 0} for row in torch.randn(24, 6, generator=torch.Generator().manual_seed(1))]


def trainer(folder, callback, model=None, **settings):
    torch.manual_seed(0)
    defaults = {"num_train_epochs": 2, "logging_steps": 2, "save_strategy": "no", "eval_strategy": "epoch"}
    arguments = TrainingArguments(
        str(folder),
        **{**defaults, **settings},
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callbacks = [callback] if callback else []
    return Trainer(model or Model(), arguments, train_dataset=DATA, eval_dataset=DATA, callbacks=callbacks)


def hooks(model):
    return sum(len(part._forward_hooks) for part in model.modules())


@pytest.mark.parametrize(("module", "output"), [("head", None), ("", "embedding")])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_sees_the_embeddings_of_every_training_batch_and_of_no_other(tmp_path, module, output, accumulated):
    callback = CollapseMonitorCallback(module, output, window=1000)
    run = trainer(tmp_path, callback, gradient_accumulation_steps=accumulated)
    run.train()
    assert torch.equal(callback.monitor.state_dict()["embeddings"], torch.cat(run.model.seen))
    assert hooks(run.model) == 0


def test_joins_the_logs_of_training(tmp_path):
    read = []

    class Reader(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            read.append(logs)

    run = trainer(tmp_path, CollapseMonitorCallback("head"))
    run.add_callback(Reader())
    run.train()
    names = {"mean_singular_value", "spread", "effective_rank"}
    of_training = [row for row in run.state.log_history if "loss" in row]
    assert [row["step"] for row in of_training] == [2, 4, 6]
    assert all(names <= set(row) for row in of_training)
    assert not any(names & set(row) for row in run.state.log_history if "loss" not in row)
    assert sum(names <= set(logs) for logs in read) == 3


def test_a_training_is_the_same_with_it(tmp_path):
    watched, alone = trainer(tmp_path, CollapseMonitorCallback("head")), trainer(tmp_path, None)
    for run in (watched, alone):
        run.train()
    for one, other in zip(watched.model.seen, alone.model.seen, strict=True):
        assert torch.equal(one, other)


def test_resumes_as_the_host_resumes_callbacks(tmp_path):
    settings = {"save_strategy": "epoch", "restore_callback_states_from_checkpoint": True}
    callback = CollapseMonitorCallback("head", window=8, fall=0.125)
    trainer(tmp_path, callback, **settings).train()
    callback.monitor.highest["spread"] = 0.0  # not what was saved
    run = trainer(tmp_path, CollapseMonitorCallback("head", window=8, fall=0.125), num_train_epochs=3, **settings)
    start = {}

    class Start(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            found = [c for c in run.callback_handler.callbacks if isinstance(c, CollapseMonitorCallback)]
            start.update(found[0].monitor.highest, count=found[0].monitor.count, all=len(found))
            start["settings"] = repr(found[0].monitor)

    run.add_callback(Start())
    run.train(resume_from_checkpoint=True)
    assert start["spread"] > 0
    assert (start["count"], start["all"]) == (0, 1)
    assert "window=8, fall=0.125" in start["settings"]


@pytest.mark.parametrize("fails", [1, 4])
def test_an_exception_leaves_no_hook(tmp_path, fails):
    model = Model(fails)
    for name in ("head", ""):
        with pytest.raises(ZeroDivisionError):
            trainer(tmp_path, CollapseMonitorCallback(name, "embedding" if not name else None), model).train()
        assert hooks(model) == 0
        model.seen.clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heda",), "module must name a submodule of Model, such as 'net', 'head'; got 'heda'"),
        (("", "embeding"), "output must be a key or index .* a dict; got 'embeding'"),
        (("",), r"must name embeddings \(b, d\), got a dict"),
    ],
)
def test_names_that_lead_to_no_embeddings(tmp_path, arguments, message):
    run = trainer(tmp_path, CollapseMonitorCallback(*arguments))
    with pytest.raises(ValueError, match=message):
        run.train()
    assert hooks(run.model) == 0
