"""What a network gets of the batches of Lightning's train loader, when the trainer is not there to hand it over."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._statistics import inputs_of

__all__ = ["FirstInput", "batches_as_trained"]


def batches_as_trained(trainer: Any) -> Iterator[Any]:
    """Yield the batches of the train loader as ``training_step`` gets them: converted, moved, through the hooks."""
    for batch in trainer.train_dataloader:
        converted = trainer.precision_plugin.convert_input(batch)
        hooked = trainer.lightning_module._on_before_batch_transfer(converted)  # noqa: SLF001 (module's or data module's)
        yield trainer.strategy.batch_to_device(hooked)


class FirstInput:
    """Look once at what a module is called with; after that, or ``forget``, nothing is hooked."""

    def __init__(self, module: nn.Module) -> None:
        self.arguments: tuple[Any, ...] = ()
        self._handle = module.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.arguments = (*args, *kwargs.values())
        self.forget()

    def forget(self) -> None:
        """Look no longer."""
        self._handle.remove()

    def check(self, batch: Any, slim: nn.Module, name: str) -> None:
        """Raise unless the module was called with the inputs of the slim network in ``batch``.

        Raises:
            ValueError: if it was not.
            TypeError: if the batch does not hold any, or it is not clear where.
        """
        inputs = inputs_of(batch, slim, 0)
        got = self.arguments[: len(inputs)]
        if len(got) < len(inputs) or not all(map(_is_same, inputs, got)):
            found = "is called with something else" if self.arguments else "is not called in the first batch"
            raise ValueError(
                "slim takes its statistics from what the train loader's batches hold, but the module"
                f"{name and f' {name!r}'} {found}: transform batches in on_after_batch_transfer rather than in "
                "training_step, or fit without slim and call evolution.slim(data) with batches as the network gets them"
            )


def _is_same(wanted: Tensor, got: Any) -> bool:
    return wanted is got or (isinstance(got, Tensor) and wanted.dtype == got.dtype and torch.equal(wanted, got))
