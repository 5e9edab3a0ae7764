"""Run a copy of the model once, on stand-ins, with its axes and integers watched."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pml_extensions._slimming.algebra.axes import Axis
from pml_extensions._slimming.algebra.integers import Attribute
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing.copies import held_tensors, weightless
from pml_extensions._slimming.tracing.modes import WatchIntegers, WatchTensors
from pml_extensions._slimming.tracing.module_integers import trace_attributes
from pml_extensions._slimming.tracing.stand_ins import ShapesOnly, tensors_in
from pml_extensions._slimming.tracing.timm_contract import Contract, new_classifier
from pml_extensions._slimming.tracing.trace import Trace


@dataclass
class Watched:
    """A forward pass that was watched.

    Attributes:
        trace: axes and equations.
        axes: the axes of every tensor that the model holds and its forward used, by name.
        weight_axes: the axes of the model's own weights, in order of use, with the line of code; the trace has those of
            a new classifier besides.
        tells: integers by which a timm model tells of its widths, with the axes they are about.
        inputs: the stand-ins that it was run with.
        outputs: the shapes that it returned.
        trained: those that it returned in train mode, or None where that uses no further parameter.
    """

    trace: Trace
    axes: dict[str, list[Axis]]
    weight_axes: list[tuple[Axis, str]]
    tells: dict[Attribute, Axis]
    inputs: tuple[Any, ...]
    outputs: list[torch.Size]
    trained: list[torch.Size] | None = None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the random state alone, and keep autocast, gradients and fused CPU kernels out of the way."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a property in disguise
        yield


def watch(model: nn.Module, inputs: tuple[Any, ...]) -> Watched:
    """Trace one forward pass of a copy of ``model``.

    One more is traced in train mode where the first leaves parameters unused (auxiliary heads), and one with a new
    classifier where the model can be given one.
    """
    lean = weightless(model)
    named = dict(held_tensors(lean))
    trace = Trace()
    tensors = WatchTensors(trace, tensors_in(inputs))
    trace_attributes(lean, trace.equations)
    contract = Contract(trace, lean)
    for name, module in lean.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: trace.enter(name))
        module.register_forward_hook(lambda *_: trace.leave())
    contract.listen()
    for tensor in tensors_in(inputs):
        trace.freeze(tensor, "an input of the network")

    def forward() -> list[torch.Size]:
        trace.modules.clear()
        trace.add_parameters(lean.parameters())
        tensors.hide(lean.parameters())
        with tensors, WatchIntegers(trace):
            outputs = tensors_in(run_watched(trace, lean, inputs))
        for tensor in outputs:
            trace.freeze(tensor, "an output of the network")
        return [tensor.shape for tensor in outputs]

    with undisturbed():
        shapes, trained = forward(), None
        if not all(map(trace.seen, lean.parameters())):
            with suppress(TracingError):  # a model may take targets, too, when it trains
                lean.train()
                trained = forward()
            lean.eval()
        with tensors, WatchIntegers(trace):
            contract.head()
        weight_axes = list(trace.weight_axes)
        new_classifier(lean, trace, forward)
    axes = {name: trace.axes(tensor) for name, tensor in named.items() if trace.seen(tensor)}
    return Watched(trace, axes, weight_axes, contract.tells, inputs, shapes, trained)


def run_watched(trace: Trace, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Run the model; an error of its own becomes one that names the operation and the submodule."""
    try:
        return model(*inputs)
    except Exception as error:
        module = trace.modules[-1] if trace.modules else ""
        raise TracingError(
            f"the forward pass could not be traced in submodule {module!r}: {type(error).__name__}: {error}"
        ) from error


def shapes_of_output(model: nn.Module, inputs: tuple[Any, ...], training: bool = False) -> list[torch.Size]:
    """Return the shapes of what ``model`` returns for ``inputs``, without computing values."""
    lean = weightless(model).train(training)
    with undisturbed(), ShapesOnly([*tensors_in(inputs), *lean.parameters()]):
        return [tensor.shape for tensor in tensors_in(lean(*inputs))]


def operations(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Return the floating-point operations of one forward pass, as torch's FLOP counter has them."""
    lean = weightless(model)
    counter = FlopCounterMode(display=False)
    with undisturbed(), ShapesOnly([*tensors_in(inputs), *lean.parameters()]), counter:
        lean(*inputs)
    return counter.get_total_flops()
