"""The collapse monitor in the Trainer of Hugging Face's transformers.

Needs transformers and accelerate (the extra ``loops``); nothing else here imports them.
"""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from typing_extensions import override

from pml_extensions._constructors import checked_constructor
from pml_extensions.monitors._probe import Probe
from pml_extensions.monitors.collapse import CollapseMonitor

__all__ = ["CollapseMonitorCallback"]


@checked_constructor
class CollapseMonitorCallback(TrainerCallback, ExportableState):
    """Watch the embeddings that a module returns in training, and add their measures to the logs.

    Whenever the trainer logs its loss, the measures join it in ``trainer.state.log_history`` and for the callbacks
    behind this one. Reporters (``report_to``) stand before the callbacks that ``Trainer(callbacks=...)`` gets; to reach
    them, ``trainer.callback_handler.callbacks.insert(0, callback)``. Of each batch the module's first call is seen;
    evaluation is not. Each process sees its own embeddings.

    transformers keeps callbacks' states in JSON, and restores them by
    ``TrainingArguments(restore_callback_states_from_checkpoint=True)`` in a new callback: the highest measures and
    whether the warning has come. The window fills anew.

    Args:
        module: name of the submodule that returns the embeddings (b, d), such as "head"; by default the whole model.
        output: key or index of the embeddings in what the module returns, such as "pooler_output"; by default that is
            them.
        **settings: those of ``CollapseMonitor``.

    Attributes:
        monitor: the ``CollapseMonitor``.

    Raises:
        TypeError: if a setting is of another type.
        ValueError: in the first step, if ``module`` or ``output`` name no embeddings.
        RuntimeError: at the first logging, if the module was not called.

    Examples:
        >>> callback = CollapseMonitorCallback(output="pooler_output", window=1024)
    """

    def __init__(self, module: str = "", output: str | int | None = None, **settings: Any) -> None:
        self._settings = {"module": module, "output": output, **settings}
        self.monitor = CollapseMonitor(**settings)
        self._probe = Probe(self.monitor, module, output)

    @override
    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, as JSON can."""
        return {"args": self._settings, "attributes": {"seen": self.seen}}

    @property
    def seen(self) -> dict[str, Any]:
        """The state of the monitor but for its window."""
        return {**self.monitor.state_dict(), "embeddings": None}

    @seen.setter
    def seen(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state)

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the first pass of a step."""
        self._probe.arm(_model_in(kwargs))

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the next pass of an accumulated step."""
        self._probe.arm(_model_in(kwargs))

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave no hook."""
        self._probe.disarm()

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the measures to the logs of training."""
        if logs is not None and "loss" in logs:
            measures = self._probe.compute()
            logs.update(measures)
            state.log_history[-1].update(measures)


def _model_in(kwargs: dict[str, Any]) -> nn.Module:
    model: nn.Module = kwargs["model"]
    return model
