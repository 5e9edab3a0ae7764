"""The collapse monitor in Lightning's trainer.

Needs Lightning (the extra ``loops``); nothing else here imports it.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from pml_extensions._constructors import checked_constructor
from pml_extensions.monitors._probe import Probe
from pml_extensions.monitors.collapse import CollapseMonitor

__all__ = ["CollapseMonitorCallback"]


@checked_constructor
class CollapseMonitorCallback(Callback):
    """Watch the embeddings that a module returns in training, and log their measures.

    Every ``Trainer(log_every_n_steps=...)`` steps the measures go to the loggers and to ``trainer.callback_metrics``,
    so that ``EarlyStopping("spread", mode="max")`` finds them. Of each training batch the module's first forward pass
    is seen; validation is not. Checkpoints hold the window. Each process sees its own embeddings.

    Args:
        module: name of the submodule that returns the embeddings (b, d), such as "net.head"; by default the whole
            Lightning module, if its ``forward`` returns them.
        output: key or index of the embeddings in what the module returns; by default that is them.
        **settings: those of ``CollapseMonitor``.

    Attributes:
        monitor: the ``CollapseMonitor``.

    Raises:
        TypeError: if a setting is of another type.
        ValueError: in the first batch, if ``module`` or ``output`` name no embeddings.
        RuntimeError: at the first logging, if the module was not called.

    Examples:
        >>> trainer = Trainer(callbacks=CollapseMonitorCallback("head"), accelerator="cpu", logger=False)
    """

    def __init__(self, module: str = "", output: str | int | None = None, **settings: Any) -> None:
        self.monitor = CollapseMonitor(**settings)
        self._probe = Probe(self.monitor, module, output)
        self._logged = 0

    @property
    @override
    def state_key(self) -> str:
        """One for each module that is watched."""
        return self._generate_state_key(module=self._probe.module, output=self._probe.output)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return self.monitor.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.monitor.load_state_dict(state_dict)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to log after the steps that are done."""
        self._logged = trainer.global_step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the batch."""
        self._probe.arm(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the measures if it is time."""
        self._probe.disarm()
        step = trainer.global_step
        if step == self._logged or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        self._logged = step
        measures = self._probe.compute()
        pl_module.log_dict(measures, logger=False, on_step=True, on_epoch=False)
        for logger in trainer.loggers:
            logger.log_metrics(measures, step=step)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook."""
        self._probe.disarm()
