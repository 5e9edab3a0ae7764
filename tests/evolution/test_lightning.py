"""Generations in Lightning's trainer, against the same generations by hand."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, LaterLayers, LayerDefault, Magnitude
from pml_extensions.evolution.lightning import KnowledgeEvolutionCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
EPOCHS, GENERATIONS = 2, 3
HALF = WELS(0.5)
KELS_HALF = KELS(0.5, example_input=torch.zeros(2, 6))


def loader(size=8, same=False):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1 if same else 24, 6, generator=generator).expand(24, 6)
    return DataLoader(TensorDataset(images, torch.arange(24) % (1 if same else 3)), size)


class Module(pl.LightningModule):
    """A small network with momentum and a schedule; ``made`` counts its optimisers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.lr = 0.1
        self.made = 0

    def forward(self, images):
        return self.head(self.net(images))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self(images), labels)

    def configure_optimizers(self):
        self.made += 1
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Manual(Module):
    """Two optimisers, stepped by hand; the gradients of an epoch's last batch may stay for the next."""

    def __init__(self, carries=False):
        super().__init__()
        self.automatic_optimization = False
        self.carries = carries

    def training_step(self, batch, batch_idx):
        images, labels = batch
        if batch_idx or not self.carries:
            self.zero_grad()
        cross_entropy(self(images), labels).backward()
        for optimizer in self.optimizers():
            optimizer.step()
        if self.trainer.is_last_batch:
            for schedule in self.lr_schedulers():
                schedule.step()

    def configure_optimizers(self):
        self.made += 1
        optimizers = [
            torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam(self.head.parameters(), lr=0.01),
        ]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5) for optimizer in optimizers]


class Validated(Module):
    """Logs what a validation sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.net[3].weight.detach().clone())
        self.log("value", float(self.trainer.current_epoch))

    def val_dataloader(self):
        return loader(24)


def fit(module, *callbacks, max_epochs=EPOCHS * GENERATIONS, data=None, ckpt_path=None, **settings):
    settings = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, **settings}
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, data or loader(), ckpt_path=ckpt_path)
    return trainer


def by_hand(module, *, split=HALF, n=GENERATIONS, accumulate=1):
    """The same generations in a plain loop."""
    for _ in KnowledgeEvolution(module.net, split).generations(n):
        (optimizer,), (schedule,) = module.configure_optimizers()
        for _ in range(EPOCHS):
            batches = list(loader())
            for index, (images, labels) in enumerate(batches):
                (cross_entropy(module(images), labels) / accumulate).backward()
                if (index + 1) % accumulate == 0 or index + 1 == len(batches):
                    optimizer.step()
                    optimizer.zero_grad()
            schedule.step()
    return module


def evolving(split=HALF, epochs=EPOCHS, module="net", **settings):
    return KnowledgeEvolutionCallback(split, epochs, module=module, **settings)


def assert_same(module, other):
    for (name, got), expected in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("split", [HALF, LaterLayers("3"), Magnitude(0.5), KELS_HALF], ids=repr)
def test_generations_are_those_of_a_plain_loop(split):
    module, callback = Module(), evolving(split)
    fit(module, callback)
    assert callback.evolution.generation == GENERATIONS - 1
    assert module.made == GENERATIONS
    assert_same(module, by_hand(Module(), split=split))


def test_accumulated_gradients():
    module = Module()
    fit(module, evolving(), accumulate_grad_batches=2)
    assert_same(module, by_hand(Module(), accumulate=2))


def test_several_optimizers_by_hand():
    """Optimisers, schedules and gradients begin anew, as in trainings of one generation each."""
    module, expected = Manual(carries=True), Manual(carries=True)
    fit(module, evolving())
    evolution = KnowledgeEvolution(expected.net, HALF)
    for _ in evolution.generations(GENERATIONS):
        fit(expected, max_epochs=EPOCHS)
    assert module.made == GENERATIONS
    assert_same(module, expected)


def test_settings_reach_the_evolution():
    module, expected = Module(), Module()
    for own in (module, expected):
        own.net[0].requires_grad_(requires_grad=False)
    callback = evolving(rule=LayerDefault(), seed=3, reset_frozen=True)
    fit(module, callback, max_epochs=4)
    evolution = KnowledgeEvolution(expected.net, HALF, rule=LayerDefault(), seed=3, reset_frozen=True)
    evolution.reset()
    assert torch.equal(module.net[0].weight, expected.net[0].weight)
    assert str(callback.evolution) == str(evolution)


def test_the_whole_module_evolves_by_default():
    module, callback = Module(), KnowledgeEvolutionCallback(HALF, EPOCHS)
    fit(module, callback)
    assert callback.evolution.model is module
    assert set(callback.evolution.masks) == {"net.0.weight", "net.3.weight", "head.weight"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    module, callback = Module(), evolving()
    fit(module, callback, precision=precision)
    assert callback.evolution.generation == 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert module.net[0].weight.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(
        precision, torch.float
    )


@pytest.mark.parametrize("whole", [True, False], ids=["module", "submodule"])
def test_compiled_modules_are_not_compiled_again(whole):
    torch._dynamo.reset()
    counters = []
    for max_epochs in (EPOCHS, EPOCHS * GENERATIONS):
        torch._dynamo.reset()
        module, counter, callback = Module(), CompileCounter(), evolving(KELS_HALF)
        if not whole:
            module.net = torch.compile(module.net, backend=counter)
        fit(torch.compile(module, backend=counter) if whole else module, callback, max_epochs=max_epochs)
        counters.append(counter.frame_count)
    assert counters[0] == counters[1] > 0
    assert callback.evolution.generation == 2
    assert "0.weight" in callback.evolution.masks


# Checkpoints


def checkpoints(folder, module, **settings):
    """Fit with a checkpoint at every chance; return their paths in order."""
    saving = ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **settings)
    fit(module, evolving(), saving, enable_checkpointing=True)
    return sorted(folder.iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name))


@pytest.mark.parametrize("kind", [Module, Manual, Validated])
def test_a_resumed_fit_ends_as_one_without_a_break(tmp_path, kind):
    """From each epoch's end, the ends of generations among them; of Validated, before the epoch is counted."""
    module = kind()
    paths = checkpoints(tmp_path, module, save_on_train_epoch_end=kind is not Validated)
    assert len(paths) == EPOCHS * GENERATIONS
    for path in paths:
        resumed, callback = kind(), evolving()
        fit(resumed, callback, ckpt_path=path)
        assert callback.evolution.generation == 2, path
        assert_same(resumed, module)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 13])
def test_a_fit_resumes_within_an_epoch(tmp_path, step):
    """Batches are all the same here, as loaders begin anew where they cannot be resumed."""
    module, data = Module(), loader(same=True)
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=step)
    fit(module, evolving(), saving, data=data, enable_checkpointing=True)
    resumed, callback = Module(), evolving()
    fit(resumed, callback, data=data, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert callback.evolution.generation == 2
    assert_same(resumed, module)


def test_max_steps(tmp_path):
    """The third generation, from step 12 on, is cut short, in one fit and in one that goes on."""
    module, callback = Module(), evolving()
    trainer = fit(module, callback, max_epochs=-1, max_steps=14)
    assert (module.made, callback.evolution.generation, trainer.global_step) == (3, 2, 14)
    first = fit(Module(), evolving(), max_epochs=-1, max_steps=8)
    first.save_checkpoint(tmp_path / "last.ckpt")
    callback = evolving()
    fit(Module(), callback, max_epochs=-1, max_steps=14, ckpt_path=tmp_path / "last.ckpt")
    assert callback.evolution.generation == 2


def test_a_fit_goes_on_with_more_epochs():
    module, callback = Module(), evolving()
    trainer = fit(module, callback, max_epochs=EPOCHS)
    first = callback.evolution
    trainer.fit_loop.max_epochs = EPOCHS * 2
    trainer.fit(module, loader())
    assert callback.evolution is first
    assert first.generation == 1
    assert_same(module, by_hand(Module(), n=2))


def test_another_trainer_begins_with_the_first_generation():
    callback, module, expected = evolving(), Module(), Module()
    for _ in range(2):
        fit(module, callback)
        assert_same(module, by_hand(expected))
    other = Module()
    fit(other, callback)
    assert_same(other, by_hand(Module()))


def test_a_checkpoint_that_is_evaluated_changes_nothing_in_the_next_fit(tmp_path):
    module, callback = Validated(), evolving()
    trainer = fit(module, callback, max_epochs=EPOCHS * 2)
    trainer.save_checkpoint(tmp_path / "later.ckpt")
    other = evolving()
    evaluated = fit(Validated(), other, max_epochs=EPOCHS)
    evaluated.validate(Validated(), ckpt_path=tmp_path / "later.ckpt", verbose=False)
    again = Validated()
    fit(again, other)
    assert_same(again, by_hand(Module()))


def test_the_state_is_plain(tmp_path):
    module, callback = Module(), evolving()
    path = tmp_path / "last.ckpt"
    fit(module, callback).save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"]["KnowledgeEvolutionCallback"]
    assert state["epochs"] == EPOCHS
    assert state["evolution"]["generation"] == 2


def test_a_finished_run_gives_its_slim_network_again(tmp_path):
    callback = evolving(KELS_HALF, slim=True)
    fit(Module(), callback).save_checkpoint(tmp_path / "last.ckpt")
    again = evolving(KELS_HALF, slim=True)
    fit(Module(), again, ckpt_path=tmp_path / "last.ckpt")
    assert_same(again.slim_network, callback.slim_network)


@pytest.mark.parametrize(
    ("saved", "settings", "message"),
    [
        ((), {}, "this checkpoint holds no generation"),
        ((evolving(epochs=3),), {}, "epochs must be 3 as in the checkpoint, got 2"),
        ((evolving(WELS(0.3)),), {}, "saved for another split"),
        ((evolving(),), {"module": "head"}, "saved for another architecture"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, saved, settings, message):
    path = tmp_path / "last.ckpt"
    fit(Module(), *saved, max_epochs=6).save_checkpoint(path)
    with pytest.raises(ValueError, match=message):
        fit(Module(), evolving(**settings), ckpt_path=path)


# Other callbacks


def test_validations_and_checkpoints_see_the_trained_network(tmp_path):
    module, plain = Validated(), Validated()
    paths = checkpoints(tmp_path, module, monitor="value")
    fit(plain, max_epochs=EPOCHS)  # the first generation alone
    assert torch.equal(module.seen[EPOCHS - 1], plain.net[3].weight)
    saved = torch.load(paths[EPOCHS - 1], weights_only=True)["state_dict"]["net.3.weight"]
    assert torch.equal(saved, plain.net[3].weight)


def test_early_stopping_ends_the_fit():
    callback = evolving()
    trainer = fit(Validated(), EarlyStopping("value", patience=3), callback, max_epochs=40)
    assert trainer.current_epoch == 4
    assert callback.evolution.generation == 1


def test_an_average_of_weights_begins_anew_and_the_last_is_what_remains():
    module, expected = Module(), Module()
    fit(module, EMAWeightAveraging(decay=0.9), evolving())
    by_hand(expected, n=GENERATIONS - 1)
    following = KnowledgeEvolution(expected.net, HALF)
    following.load_state_dict({**following.state_dict(), "generation": GENERATIONS - 2})
    following.reset()
    fit(expected, EMAWeightAveraging(decay=0.9), max_epochs=EPOCHS)
    assert_same(module, expected)


def test_a_resumed_average(tmp_path):
    module = Module()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(module, EMAWeightAveraging(decay=0.9), evolving(), saving, enable_checkpointing=True)
    for path in sorted(tmp_path.iterdir())[1:3]:
        resumed = Module()
        fit(resumed, EMAWeightAveraging(decay=0.9), evolving(), ckpt_path=path)
        assert_same(resumed, module)


def test_a_learning_rate_that_is_looked_for_first():
    module, callback = Module(), evolving()
    finder = LearningRateFinder(num_training_steps=5, update_attr=True, attr_name="lr")
    fit(module, callback, finder)
    assert callback.evolution.generation == 2
    expected = Module()
    expected.lr = module.lr
    assert_same(module, by_hand(expected))


def test_learning_rates_are_logged_from_the_new_schedules(tmp_path):
    monitor = LearningRateMonitor()
    fit(Module(), evolving(), monitor, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert monitor.lrs["lr-SGD"] == [0.1, 0.05] * GENERATIONS


@pytest.mark.parametrize(
    "other", [StochasticWeightAveraging(0.1), BackboneFinetuning()], ids=lambda callback: type(callback).__name__
)
def test_callbacks_over_several_generations_are_refused(other):
    with pytest.raises(ValueError, match=f"callbacks must not hold {type(other).__name__}"):
        fit(Module(), evolving(), other)


# The slim network


class Augmented(Module):
    """Batches are scaled on their way to the network, in one of the trainer's hooks or in the step."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] * 2, batch[1]) if self.where == "before" else batch

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] * 2, batch[1]) if self.where == "after" else batch

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] * 2, batch[1]) if self.where == "step" else batch, batch_idx)


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_slim_network_has_statistics_of_what_the_network_gets(where):
    module, callback = Augmented(where), evolving(KELS_HALF, slim=True)
    fit(module, callback)
    expected = callback.evolution.slim([images * 2 for images, _ in loader()])
    assert_same(callback.slim_network, expected)
    assert not torch.equal(expected[1].running_var, callback.evolution.slim()[1].running_var)


def test_the_slim_network_of_true_half_precision():
    callback = evolving(KELS_HALF, slim=True)
    fit(Module(), callback, precision="bf16-true")
    assert_same(callback.slim_network, callback.evolution.slim([images.bfloat16() for images, _ in loader()]))


def test_the_slim_network_is_that_of_the_average():
    module, callback = Module(), evolving(KELS_HALF, slim=True)
    fit(module, callback, EMAWeightAveraging(decay=0.9))
    assert_same(callback.slim_network, KnowledgeEvolution(module.net, KELS_HALF).slim([x for x, _ in loader()]))


def test_the_slim_network_of_a_whole_module_trains_on():
    callback = evolving(KELS_HALF, module="", slim=True)
    fit(Module(), callback)
    slim = callback.slim_network
    assert isinstance(slim, Module)
    assert slim.net[0].out_features == 4
    assert_same(slim, callback.evolution.slim([images for images, _ in loader()]))
    before = slim.net[0].weight.detach().clone()
    fit(slim, max_epochs=1)
    assert not torch.equal(slim.net[0].weight, before)


def hooks(module):
    return [name for name, child in module.named_modules() if child._forward_pre_hooks]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_is_looked_at_once(compiled):
    module = Module()
    if compiled:
        module.net = torch.compile(module.net, backend="eager")
    found = []
    module.on_train_batch_end = lambda *args: found.append(hooks(module))
    fit(module, evolving(KELS_HALF, slim=True), max_epochs=2)
    assert found == [[]] * 6


def test_a_network_that_gets_something_else_has_no_slim_network_by_itself():
    module = Augmented("step")
    with pytest.raises(ValueError, match="the module 'net' is called with something else"):
        fit(module, evolving(KELS_HALF, slim=True))
    assert not hooks(module)
    fit(Augmented("step"), evolving(KELS_HALF))


def test_a_module_whose_forward_is_not_called_has_no_slim_network_by_itself():
    module = Module()
    module.training_step = lambda batch, batch_idx: cross_entropy(module.head(module.net(batch[0])), batch[1])
    with pytest.raises(ValueError, match="the module is not called in the first batch"):
        fit(module, evolving(KELS_HALF, module="", slim=True))


def test_a_step_that_raises_leaves_no_hook():
    module = Module()

    def training_step(batch, batch_idx):
        raise ArithmeticError

    module.training_step = training_step
    with pytest.raises(ArithmeticError):
        fit(module, evolving(KELS_HALF, slim=True))
    assert not hooks(module)


# Refusals


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"split": WELS}, TypeError, "split must be an object, got the class WELS"),
        ({"rule": 3}, TypeError, "rule must be a callable"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 2.0}, TypeError, "epochs must be an int"),
        ({"module": nn.Linear(1, 1)}, TypeError, "module must be a name, such as 'net' for self.net, got Linear"),
        ({"slim": True}, TypeError, r"slim needs a split that holds a slim network, such as KELS\(0.5\), got WELS"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        evolving(**settings)


@pytest.mark.parametrize("name", ["backbone", "net.9", "lr"])
def test_an_unknown_module(name):
    module = Module()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        ValueError, match=f"module must name a submodule of Module, such as 'net', 'head'; got '{name}'"
    ):
        fit(module, evolving(module=name))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_last_generation_that_is_cut_short():
    with pytest.warns(
        UserWarning, match="max_epochs=5 .* is no multiple of epochs=2: the last generation ends after 1"
    ):
        fit(Module(), evolving(), max_epochs=5)
    fit(Module(), evolving(), fast_dev_run=True)


def test_a_schedule_that_differs_between_generations():
    module = Module()

    def configure_optimizers():
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "frequency": 2}}

    module.configure_optimizers = configure_optimizers
    with pytest.raises(ValueError, match="got epochs=3 and frequency=2"):
        fit(module, evolving(epochs=3))
    fit(module, evolving(epochs=4), max_epochs=8)


def test_sharding_strategies_are_refused():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match="strategy must be a single device or 'ddp', got FSDPStrategy"):
        evolving().setup(trainer, Module(), stage="fit")


def test_a_trainer_of_the_other_package_is_refused():
    trainer = type("Trainer", (), {"__module__": "pytorch_lightning.trainer.trainer"})()
    with pytest.raises(TypeError, match=r"got pytorch_lightning.trainer.trainer.Trainer; import lightning.pytorch"):
        evolving().setup(trainer, Module(), stage="fit")


def test_epochs_of_another_generation_are_refused():
    """The trainer counts on, but the module is another one."""
    callback = evolving()
    trainer = fit(Module(), callback, max_epochs=EPOCHS * 2)
    trainer.fit_loop.max_epochs = EPOCHS * 3
    with pytest.raises(RuntimeError, match=r"epoch 4 belongs to generation 2, at 2 epochs each, but .* generation 0"):
        trainer.fit(Module(), loader())


def test_two_evolutions_in_one_trainer_are_refused():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `KnowledgeEvolutionCallback`"):
        fit(Module(), evolving(), evolving(module="head"))
