"""What is done with a model beside its forward pass, watched: it tells of itself, gets a new classifier, is fused.

Each use is watched in a copy of its own, whose tensors have the axes that the forward pass gave them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._slimming.algebra.axes import Axes
from pml_extensions._slimming.algebra.integers import Equation
from pml_extensions._slimming.algebra.unification import unify
from pml_extensions._slimming.tracing.contracts import Contract, has_contract
from pml_extensions._slimming.tracing.copies import held_tensors, weightless
from pml_extensions._slimming.tracing.forward import undisturbed
from pml_extensions._slimming.tracing.modes import WatchIntegers, WatchTensors
from pml_extensions._slimming.tracing.module_integers import equations_of, trace_attributes
from pml_extensions._slimming.tracing.stand_ins import given, tensors_in, without_values
from pml_extensions._slimming.tracing.trace import INPUT, Trace

__all__ = ["ask", "can_be_asked", "can_be_fused", "fuse"]

_FUSES = ("fuse", "reparameterize", "switch_to_deploy")  # what timm.utils.reparameterize_model calls


def can_be_asked(model: nn.Module) -> bool:
    """Tell whether there is a timm model in a model, or it is one."""
    return any(map(has_contract, model.modules()))


def ask(model: nn.Module, inputs: tuple[Any, ...], axes: Mapping[str, Axes]) -> list[Equation]:
    """Ask the timm models in a copy of ``model`` for all that they offer; return what holds between its integers.

    Args:
        model: the dense model; it is not touched.
        inputs: what its forward takes, as stand-ins.
        axes: the axes of its tensors, by name.
    """
    for method in ["forward_features"] * ("pretrained_cfg" in vars(model)) + ["forward"]:
        copy = _Copy(model, inputs, axes)
        with suppress(Exception):  # of a timm model the features will do, if it has some
            copy.ask(method)
            return copy.trace.equations
    return []


def can_be_fused(model: nn.Module) -> bool:
    """Tell whether a model has parts that ``timm.utils.reparameterize_model`` fuses."""
    return any(callable(getattr(module, name, None)) for module in model.modules() for name in _FUSES)


def fuse(model: nn.Module, inputs: tuple[Any, ...], axes: Mapping[str, Axes]) -> list[Equation]:
    """Fuse a copy of ``model`` and run it; return what holds between its integers, nothing if it cannot be fused.

    The whole of it is fused if that works, else the timm models in it: where these fuse themselves, timm's function
    works on them, but not on what is around them.
    """
    for parts in (lambda whole: [whole], _outermost_timm_models):
        copy = _Copy(model, inputs, axes)
        with suppress(Exception):  # what cannot be fused when dense need not be when slim
            copy.fuse(parts(copy.model))
            return copy.trace.equations
    return []


def _outermost_timm_models(model: nn.Module) -> list[nn.Module]:
    return [model] if has_contract(model) else [inner for m in model.children() for inner in _outermost_timm_models(m)]


class _Copy:
    """A traced copy of a model, with known axes."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], axes: Mapping[str, Axes]) -> None:
        self.model = weightless(model)
        self.trace = Trace()
        self._inputs = inputs
        unknown = [*filter(without_values, tensors_in(inputs)), *self.model.parameters()]
        self._tensors = _WatchMemory(self.trace, unknown)
        trace_attributes(self.model, self.trace.equations)
        for tensor in tensors_in(inputs):
            self.trace.freeze(tensor, INPUT)
        for name, tensor in held_tensors(self.model):
            if name in axes:
                self.trace.give(tensor, axes[name])
                self._tensors.remember(tensor)

    @contextmanager
    def watched(self, mode: type[WatchIntegers] = WatchIntegers) -> Iterator[None]:
        """Watch what is done with the copy."""
        with undisturbed(self.model), self._tensors, mode(self.trace, self._tensors.is_unknown):
            yield

    def ask(self, method: str) -> None:
        """Run a method of the copy that makes features, and ask its timm models for the rest."""
        named = [(name, inner) for name, inner in self.model.named_modules() if has_contract(inner)]
        contracts = [Contract(self.trace, name, inner) for name, inner in named]
        with self.watched():
            getattr(self.model, method)(*given(self._inputs))
            for contract in contracts:
                contract.ask()
            self.note_layers()

    def fuse(self, parts: Iterable[nn.Module]) -> None:
        """Fuse parts of the copy, and run all of it."""
        from timm import utils  # noqa: PLC0415  # importing this package takes no timm

        host: Any = utils
        with self.watched(_ButSingleNumbers):
            self.note_layers()
            for part in parts:
                host.reparameterize_model(part, inplace=True).eval()
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                self._tensors.recall(tensor)
            self.model(*given(self._inputs))
            self.note_layers()

    def note_layers(self) -> None:
        """Note what holds between the integers of torch's layers and their weights."""
        for module in self.model.modules():
            self.trace.equations.extend(equations_of(module, self.trace.axes))


class _ButSingleNumbers(WatchIntegers):
    """Leave out the writing of single numbers: no shape depends on it, and identity kernels take thousands."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function, unless it writes one number."""
        if getattr(func, "__name__", "") == "__setitem__" and isinstance(args[2], int | float):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if all(isinstance(place, int) for place in index):
                return None
        return super().run(func, args, kwargs)


class _WatchMemory(WatchTensors):  # type: ignore[no-untyped-call]  # torch is untyped there
    """Know a tensor again that comes in another wrapper: ``weight.data``, or a parameter made of it."""

    def __init__(self, trace: Trace, unknown: list[Tensor]) -> None:
        super().__init__(trace, unknown)
        self._axes: dict[tuple[int, torch.Size], Axes] = {}
        self._alive: list[Tensor] = []  # memory that was freed could lend its number to another

    def remember(self, tensor: Tensor) -> None:
        """Remember the axes of a tensor by its memory and shape."""
        self._alive.append(tensor)
        self._axes.setdefault(_memory(tensor), self._trace.axes(tensor))

    def recall(self, tensor: Tensor) -> None:
        """Give a tensor the axes that its memory is known by; where it has some already, they are the same."""
        known = self._axes.get(_memory(tensor))
        if known is not None and self._trace.seen(tensor):
            for ours, theirs in zip(self._trace.axes(tensor), known, strict=True):
                unify(ours, theirs)
        elif known is not None:
            self._trace.give(tensor, known)

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Know the operands again before the results get their axes, and remember the results."""
        for tensor in tensors_in((args, kwargs)):
            if not self._trace.seen(tensor):
                self.recall(tensor)
        super().observe(func, args, kwargs, out)
        for tensor in tensors_in(out):
            self.remember(tensor)


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    return int(tensor.untyped_storage()._cdata), tensor.shape  # the one number of shared memory
