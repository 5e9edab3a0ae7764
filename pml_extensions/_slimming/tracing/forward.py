"""Run a copy of the model on stand-ins: for its shapes alone, or with its axes, integers and operands watched."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from pml_extensions._slimming.algebra.axes import Axis
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing.copies import held_tensors, surrounding, weightless
from pml_extensions._slimming.tracing.modes import WatchIntegers, WatchTensors, used_records
from pml_extensions._slimming.tracing.module_integers import equations_of_used, trace_attributes
from pml_extensions._slimming.tracing.operands import Operands
from pml_extensions._slimming.tracing.stand_ins import (
    Observer,
    ShapesOnly,
    given,
    outputs_in,
    tensors_in,
    without_values,
)
from pml_extensions._slimming.tracing.trace import INPUT, OUTPUT, Trace
from pml_extensions._slimming.tracing.way import Way


@dataclass
class Watched:
    """A forward pass that was watched.

    Attributes:
        trace: axes and equations.
        axes: the axes of every tensor that the model holds and its forward used, by name.
        operands: how it used the parameters, in eval mode.
        operations: the floating-point operations of that pass.
        way: its operations in order.
        results: names of plain tensors that the pass used and an earlier call has computed.
        complete: whether some pass used every parameter.
        inputs: the stand-ins that it was run with.
        outputs: the shapes that it returned.
        trained: those that it returned in train mode, or None where that uses no further parameter.
        calls: in how many passes the model was watched: two where the first left tensors in it.
    """

    trace: Trace
    axes: dict[str, list[Axis]]
    operands: Operands
    operations: int
    way: Way
    results: list[str]
    complete: bool
    inputs: tuple[Any, ...]
    outputs: list[torch.Size]
    trained: list[torch.Size] | None = None
    calls: int = 1


class CountOperations:
    """An observer that adds up floating-point operations, as torch's FLOP counter has them."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Add those of one operation."""
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=out)


@contextmanager
def undisturbed(copied: nn.Module | None = None) -> Iterator[None]:
    """Leave the random state alone, and keep autocast, gradients and fused CPU kernels out of the way.

    The hooks of a copy for a pass, if one is given, leave alone what they share with the model's.
    """
    with ExitStack() as stack:
        if copied is not None:
            stack.enter_context(surrounding(copied))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a property in disguise
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def watch(model: nn.Module, inputs: tuple[Any, ...]) -> Watched:
    """Trace one forward pass of a copy of ``model``.

    One more is traced where the first leaves tensors in the model, which a second call may use (memories), and one in
    train mode where parameters are left unused (auxiliary heads).
    """
    lean = weightless(model)
    named = dict(held_tensors(lean))
    trace, counted = Trace(), CountOperations()
    way = Way(trace)
    trace.hold(tensors_in(inputs))
    operands = Operands(trace, dict(lean.named_parameters()), tensors_in(inputs))
    tensors = WatchTensors(trace, filter(without_values, tensors_in(inputs)), operands.observe, counted, way)
    trace_attributes(lean, trace.equations)
    _listen(lean, trace)
    for tensor in tensors_in(inputs):
        trace.freeze(tensor, INPUT)

    def traced(run: Callable[[], Any]) -> list[torch.Size]:
        tensors.hide(lean.parameters())
        trace.add_parameters(lean.parameters())
        trace.hold(tensor for _, tensor in held_tensors(lean))
        with tensors, WatchIntegers(trace, tensors.is_unknown):
            outputs = outputs_in(run())
        if any(map(trace.is_record, outputs)):
            raise used_records()
        for tensor in outputs:
            trace.freeze(tensor, OUTPUT)
        return [tensor.shape for tensor in outputs]

    def forward() -> Any:
        return _run(lean, trace, inputs)

    with undisturbed(lean):
        shapes, trained, calls = traced(forward), None, 1
        left = {name: t for name, t in held_tensors(lean) if name in named and not trace.seen(named[name])}
        tensors.observers.clear()  # what a later call or training alone uses is no weight
        if any(named.get(name) is not tensor for name, tensor in held_tensors(lean)):
            with suppress(TracingError):  # a model may have to be reset between calls
                shapes, calls = traced(forward), 2
        if not all(map(trace.seen, lean.parameters())):
            with suppress(TracingError):  # a model may take targets, too, when it trains
                lean.train()
                trained = traced(forward)
            lean.eval()
        with tensors, WatchIntegers(trace, tensors.is_unknown):  # weights that are computed are so once more
            trace.equations.extend(list(equations_of_used(lean, trace)))
    complete = all(map(trace.seen, lean.parameters()))
    axes = {name: trace.axes(tensor) for name, tensor in named.items() if trace.seen(tensor)}
    results = [
        name
        for name, tensor in held_tensors(model)
        if name in axes and (_is_result(model, tensor) or (not complete and _is_computed_anew(model, name, inputs)))
    ]
    axes.update((name, trace.axes(t)) for name, t in left.items() if trace.seen(t) and t.shape == named[name].shape)
    return Watched(trace, axes, operands, counted.total, way, results, complete, inputs, shapes, trained, calls)


def _is_result(model: nn.Module, tensor: Tensor) -> bool:
    """Tell whether a tensor that a model holds is known to be computed in a call, and not set at its start."""
    born_in_inference = any(parameter.is_inference() for parameter in model.parameters())
    return tensor.grad_fn is not None or (tensor.is_inference() and not born_in_inference)


def _is_computed_anew(model: nn.Module, name: str, inputs: tuple[Any, ...]) -> bool:
    """Tell whether a plain attribute that is emptied holds tensors again after a pass: results of an earlier call."""
    lean = weightless(model)
    path, _, attribute = name.partition("[")[0].rpartition(".")
    held = vars(lean.get_submodule(path))
    if attribute not in held:  # a parameter or a buffer
        return False
    held[attribute] = type(held[attribute])() if type(held[attribute]) in {list, dict} else None
    unknown = [*filter(without_values, tensors_in(inputs)), *lean.parameters()]
    with suppress(Exception), undisturbed(lean), ShapesOnly(unknown):
        lean(*given(inputs))
    return bool(tensors_in(held[attribute]))


def watch_operands(model: nn.Module, inputs: tuple[Tensor, ...]) -> Operands:
    """Watch how one forward pass of a copy of ``model``, in eval mode, uses its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inner = unwrapped(model)
    lean, trace = weightless(inner), Trace()
    parameters = {names[id(p)]: own for p, own in zip(inner.parameters(), lean.parameters(), strict=True)}
    operands = Operands(trace, parameters, inputs)
    trace.add_parameters(lean.parameters())
    _listen(lean, trace)
    unknown = [*filter(without_values, inputs), *lean.parameters()]
    with undisturbed(lean), WatchTensors(trace, unknown, operands.observe):
        _run(lean, trace, inputs)
    return operands


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch's parallel and compiling wrappers."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = getattr(model, "module" if parallel else "_orig_mod", None)
    return model if inner is None else unwrapped(inner)


def _listen(model: nn.Module, trace: Trace) -> None:
    """Let the modules of a copy note when they begin and end."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            continue
        module.register_forward_pre_hook(lambda *_, name=name: trace.enter(name))
        module.register_forward_hook(lambda *_: trace.leave())


def _run(model: nn.Module, trace: Trace, inputs: tuple[Any, ...]) -> Any:
    """Run the model; an error of its own becomes one that names the operation and the submodule."""
    trace.modules.clear()
    try:
        return model(*given(inputs))
    except Exception as error:
        raise TracingError(
            f"the forward pass could not be traced in submodule {trace.module!r}: {type(error).__name__}: {error}"
        ) from error


def shapes_of_output(
    model: nn.Module, inputs: tuple[Any, ...], *observers: Observer, training: bool = False, calls: int = 1
) -> list[torch.Size]:
    """Return the shapes of what ``model`` returns for ``inputs``, in the last of some calls, without computing values.

    ``observers`` see the first call.
    """
    lean = weightless(model).train(training)
    unknown = [*filter(without_values, tensors_in(inputs)), *lean.parameters()]
    with undisturbed(lean), ShapesOnly(unknown, *observers) as shapes:
        for _ in range(calls - 1):
            lean(*given(inputs))
            shapes.observers.clear()
        return [tensor.shape for tensor in outputs_in(lean(*given(inputs)))]
