"""Knowledge Evolution in Lightning's trainer: one fit, several generations.

Needs Lightning (the extra ``loops``); nothing else here imports it.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer, check_object
from pml_extensions._statistics import reestimate_statistics, unwrapped
from pml_extensions.evolution.knowledge_evolution import KnowledgeEvolution, Split
from pml_extensions.evolution.lightning_batches import FirstInput, batches_as_trained
from pml_extensions.evolution.resetting import KaimingUniform, ResettingRule

__all__ = ["KnowledgeEvolutionCallback"]


@checked_constructor
class KnowledgeEvolutionCallback(Callback):
    """Train a Lightning module, or a part of it, in generations.

    ``Trainer(max_epochs=...)`` counts the epochs of all generations. Before the first epoch of each generation but the
    first, the reset-hypothesis is drawn anew, gradients are dropped, and optimisers and schedules are made anew by the
    module's ``configure_optimizers``, which must therefore describe one generation. What validates, saves or stops at
    the end of an epoch sees the trained network. Checkpoints hold the state, and ``fit(ckpt_path=...)`` goes on within
    the generation.

    Args:
        split: as for ``KnowledgeEvolution``; called when ``fit`` starts.
        epochs: of one generation.
        module: name of the submodule that evolves, such as "net" for ``self.net``; by default the whole Lightning
            module.
        rule: as for ``KnowledgeEvolution``.
        seed: as for ``KnowledgeEvolution``.
        reset_frozen: as for ``KnowledgeEvolution``.
        slim: cut out the slim network when ``fit`` ends, with statistics from at most 50 batches of the train loader,
            which pass the module's and data module's hooks of the transfer to the device as in training.

    Attributes:
        evolution: the ``KnowledgeEvolution``, from the start of ``fit``.
        slim_network: the slim network, from the end of ``fit``, if ``slim``.

    Raises:
        TypeError: if a setting is of another type, if ``slim`` is asked of a split without a slim network, or if the
            trainer is not of ``lightning.pytorch``.
        ValueError: when ``fit`` starts, if ``module`` names no module, the strategy is neither of a single device nor
            DDP, a callback changes optimisers or weights over several generations (stochastic weight averaging, fine-
            tuning), the frequency of a schedule does not divide ``epochs``, or a checkpoint is of a run without this
            callback or with other ``epochs``. In the first batch, if ``slim`` and the network is not called with what
            the batch holds.
        RuntimeError: if an epoch belongs to another generation than the network.

    Examples:
        >>> from pml_extensions.evolution import KELS
        >>> evolution = KnowledgeEvolutionCallback(KELS(0.5), epochs=30, module="net")
        >>> trainer = Trainer(max_epochs=150, callbacks=evolution, accelerator="cpu", logger=False)  # 5 generations

    Source: Taha, Shrivastava and Davis, arXiv:2103.05152.
    """

    def __init__(
        self,
        split: Split,
        epochs: int,
        *,
        module: str = "",
        rule: ResettingRule = KaimingUniform(),  # noqa: B008 (immutable)
        seed: int = 0,
        reset_frozen: bool = False,
        slim: bool = False,
    ) -> None:
        check_object("split", split, "WELS(0.5)")
        check_integer("epochs", epochs, least=1)
        check_object("rule", rule, "KaimingUniform()")
        check_integer("seed", seed)
        if not isinstance(module, str):
            raise TypeError(f"module must be a name, such as 'net' for self.net, got {type(module).__name__}")
        if slim and not hasattr(split, "slim"):
            raise TypeError(f"slim needs a split that holds a slim network, such as KELS(0.5), got {split}")
        self.split = split
        self.epochs = epochs
        self.module = module
        self.rule = rule
        self.seed = seed
        self.reset_frozen = reset_frozen
        self.slim = slim
        self.evolution: KnowledgeEvolution | None = None
        self.slim_network: nn.Module | None = None
        self._saved: dict[str, Any] | None = None
        self._unseen = slim
        self._first_input: FirstInput | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be trained in generations."""
        if stage == "fit":
            _check_trainer(trainer)
            _check_strategy(trainer.strategy)
            _check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
            _check_epochs(trainer, self.epochs)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on training from a checkpoint without a generation."""
        if trainer.state.fn == "fit" and self.state_key not in checkpoint["callbacks"]:
            raise ValueError(
                "ckpt_path must be of a run with this callback, but this checkpoint holds no generation; to start "
                "generations from its weights, load them (load_from_checkpoint) and fit without ckpt_path"
            )

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint, for the fit that starts."""
        self._saved = state_dict

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the epochs of a generation and the state of the evolution."""
        return {"epochs": self.epochs, "evolution": self.evolution and self.evolution.state_dict()}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Split the weights, or go on with those that were split."""
        _check_schedules(trainer, self.epochs)
        self._unseen = self.slim
        network = unwrapped(self._module_of(pl_module))
        begun = self.evolution is not None and self.evolution.model is network and trainer.global_step > 0
        if begun and self._saved is None:
            return
        evolution = KnowledgeEvolution(
            network, self.split, rule=self.rule, seed=self.seed, reset_frozen=self.reset_frozen
        )
        if self._saved is not None:
            if self._saved["epochs"] != self.epochs:
                raise ValueError(f"epochs must be {self._saved['epochs']} as in the checkpoint, got {self.epochs}")
            if self._saved["evolution"] is not None:
                evolution.load_state_dict(self._saved["evolution"])
        self.evolution = evolution

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the next generation if this is its first epoch."""
        assert self.evolution is not None  # noqa: S101 (since on_fit_start)
        generation, epoch = divmod(trainer.current_epoch, self.epochs)
        if generation == self.evolution.generation:
            return
        if generation != self.evolution.generation + 1 or epoch:
            raise RuntimeError(
                f"epoch {trainer.current_epoch} belongs to generation {generation}, at {self.epochs} epochs each, but "
                f"the network is in generation {self.evolution.generation}; go on with fit(ckpt_path=...), or with the "
                "trainer and the module that began"
            )
        self.evolution.reset()
        pl_module.zero_grad()
        trainer.strategy.setup_optimizers(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):  # an average of one generation
                callback.setup(trainer, pl_module, stage="fit")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the network's input in the first batch, if the slim network will need the like."""
        if self._unseen and self._first_input is None:
            self._first_input = FirstInput(self._module_of(pl_module))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse a slim network if the network's inputs are not those of the batches."""
        if self._first_input is not None and self.evolution is not None:
            first_input, self._first_input, self._unseen = self._first_input, None, False
            first_input.forget()
            first_input.check(batch, self.evolution.slim(), self.module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook."""
        if self._first_input is not None:
            self._first_input.forget()
            self._first_input = None

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut out the slim network; all callbacks have ended their training."""
        if self.slim and self.evolution is not None:
            slim = self.evolution.slim()
            home = next(slim.parameters()).device  # strategies bring networks back to the CPU
            reestimate_statistics(slim.to(trainer.strategy.root_device), batches_as_trained(trainer))
            self.slim_network = slim.to(home)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the state of a checkpoint: one that was evaluated is not for the next fit."""
        self._saved = None

    def _module_of(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            names = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise ValueError(
                f"module must name a submodule of {type(pl_module).__name__}, such as {names}; got {self.module!r}"
            ) from error


def _check_trainer(trainer: Any) -> None:
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"the trainer must be of lightning.pytorch, got {type(trainer).__module__}.{type(trainer).__name__}; "
            "import lightning.pytorch in place of pytorch_lightning"
        )


def _check_strategy(strategy: Any) -> None:
    replicates = isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(
        strategy, DeepSpeedStrategy
    )
    if not replicates:
        raise ValueError(
            f"strategy must be a single device or 'ddp', got {type(strategy).__name__}, which shards or copies weights "
            "or optimisers; KnowledgeEvolution in a loop of your own works with fully_shard"
        )


def _check_callbacks(callbacks: list[Callback]) -> None:
    lasting = [type(c).__name__ for c in callbacks if isinstance(c, StochasticWeightAveraging | BaseFinetuning)]
    if lasting:
        raise ValueError(
            f"callbacks must not hold {', '.join(lasting)}, whose averages or optimisers go over several generations; "
            "EMAWeightAveraging averages within a generation"
        )


def _check_epochs(trainer: Any, epochs: int) -> None:
    most = trainer.max_epochs
    if most is not None and most > 0 and most % epochs and not trainer.fast_dev_run:
        rank_zero_warn(
            f"max_epochs={most} counts the epochs of all generations and is no multiple of epochs={epochs}: the last "
            f"generation ends after {most % epochs}"
        )


def _check_schedules(trainer: Trainer, epochs: int) -> None:
    for schedule in trainer.lr_scheduler_configs:
        if schedule.interval == "epoch" and epochs % schedule.frequency:
            raise ValueError(
                f"epochs must be a multiple of a schedule's frequency, which counts the epochs of all generations; got "
                f"epochs={epochs} and frequency={schedule.frequency}"
            )
