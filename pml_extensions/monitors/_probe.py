"""The output of a module's next forward pass, taken to a monitor."""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pml_extensions.monitors.collapse import CollapseMonitor


class Probe:
    """Take the embeddings that a module of a model returns to a monitor, once each time that it is armed.

    The hook that does it is gone when the forward pass ends, also by an exception.
    """

    def __init__(self, monitor: CollapseMonitor, module: str, output: str | int | None) -> None:
        if not isinstance(module, str):
            raise TypeError(f"module must be a name, such as 'net.head' for net.head, got {type(module).__name__}")
        if isinstance(output, bool) or not isinstance(output, str | int | None):
            raise TypeError(f"output must be a key, an index or None, got {type(output).__name__}")
        self.monitor = monitor
        self.module = module
        self.output = output
        self._handle: RemovableHandle | None = None

    def arm(self, model: nn.Module) -> None:
        """Take the output of the module's next forward pass."""
        self.disarm()
        self._handle = self._module_of(model).register_forward_hook(self._take, always_call=True)

    def disarm(self) -> None:
        """Leave the model without a hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def compute(self) -> dict[str, float]:
        """Return the monitor's measures."""
        if not self.monitor.count:
            raise RuntimeError(f"module {self.module!r} returned no embeddings in training: name one that is called")
        return self.monitor.compute()

    def _take(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        armed = self._handle is not None
        self.disarm()
        if armed and output is not None:  # it is None if the forward pass raised
            self.monitor.update(self._embeddings_in(output))

    def _embeddings_in(self, output: Any) -> Tensor:
        embeddings = output
        if self.output is not None:
            try:
                embeddings = output[self.output]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"output must be a key or index of what module {self.module!r} returns, a "
                    f"{type(output).__name__}; got {self.output!r}"
                ) from error
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
            shape = f"of shape {tuple(embeddings.shape)}" if isinstance(embeddings, Tensor) else ""
            raise ValueError(
                f"module and output must name embeddings (b, d), got a {type(embeddings).__name__} {shape} from "
                f"module={self.module!r}, output={self.output!r}"
            )
        return embeddings

    def _module_of(self, model: nn.Module) -> nn.Module:
        try:
            return model.get_submodule(self.module)
        except AttributeError as error:
            names = ", ".join(repr(name) for name, _ in model.named_children())
            raise ValueError(
                f"module must name a submodule of {type(model).__name__}, such as {names}; got {self.module!r}"
            ) from error
