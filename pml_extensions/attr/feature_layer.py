"""Which layers of a network have places that reach its output, found by running it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pml_extensions._declared_input import declared_input
from pml_extensions.attr._axes import Axes
from pml_extensions.attr._known_layout import known_layout
from pml_extensions.attr._network import undisturbed
from pml_extensions.attr._problem import Problem
from pml_extensions.attr._watching import Watch
from pml_extensions.attr.layouts import ChannelsFirst, Layout, per_place

__all__ = ["last_feature_layer"]

_SCALE_MATTERS = 1e-3
# Change of the output by an even filter, over that by no activation: near 0.9, or 0.03 where only an epsilon feels it
_FELT = 0.1


def last_feature_layer(model: nn.Module, inputs: Tensor | tuple[Tensor, ...] | None = None) -> nn.Module:
    """Return the last layer of a network at which a map says something: the usual ``layer`` of ``L2CAF``.

    The network runs a few times, forward and backward, in eval mode. The last layer wins that has places, whose places
    reach the output, and after which no normalisation takes a place's scale away. In a vision transformer that pools
    its class token this is the norm before the last attention; behind it the patches lead nowhere. Layers as wide as
    ``model.num_features`` (timm's networks have it) come before others. Where the output does not feel a filter that is
    even over the last layer, as when a norm follows the pooling (ConvNeXt) or the embedding has unit length, an even
    map would explain the output best: then it is the last layer before that the whole network passes through and where
    a filter is felt. A class's map may be taken from the last layer all the same.

    Args:
        model: a network that takes images (B, C, H, W) and returns (B, K). Left as it was.
        inputs: what to run it on. Default: noise of the size in a timm model's ``pretrained_cfg``.

    Returns:
        A module of ``model``.

    Raises:
        TypeError: if ``model`` is no module, or returns anything but a tensor.
        ValueError: if no layer will do, or if ``inputs`` is needed and missing.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> last_feature_layer(model, torch.rand(1, 3, 9, 9))
        ReLU()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if inputs is None:
        inputs = _default_inputs(model)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    inputs = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    with _eval_mode(model), undisturbed():
        output = _output(model, inputs)
        visits = [visit for visit in visit_layers(model, lambda: model(*inputs), inputs) if visit.useful]
        if not visits:
            raise ValueError(f"no layer of {type(model).__name__} has places that reach its output")
        width = getattr(model, "num_features", None)
        visits.sort(key=lambda visit: visit.width == width)
        return _last_that_is_felt(model, inputs, output, visits).layer


@dataclass(frozen=True)
class Visit:
    """A layer that has places, as seen in one run.

    Attributes:
        width: its number of channels.
        useful: whether its places reach the output and their scale matters there.
        everything_passes: whether no input reaches the output around it; only known of inputs that require gradients.
    """

    name: str
    layer: nn.Module
    layout: Layout
    shape: torch.Size
    width: int
    useful: bool
    everything_passes: bool


def visit_layers(model: nn.Module, run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> list[Visit]:
    """Run a network and return its layers that have places, in the order in which they were done."""
    watch, examples = Watch(inputs), len(inputs[0])
    seen: list[tuple[str, nn.Module, Tensor, Axes]] = []

    def note(name: str) -> Callable[[nn.Module, object, object], object]:
        def hook(layer: nn.Module, _: object, output: object) -> object:
            if isinstance(output, Tensor) and output.is_floating_point() and len(output) == examples:
                if not output.requires_grad:  # a frozen network's
                    output = output.detach().requires_grad_().clone()
                seen.append((name, layer, output, watch.axes_of(output)))
            return output

        return hook

    handles = [
        module.register_forward_hook(note(name)) for name, module in model.named_modules() if module is not model
    ]
    try:
        with undisturbed(), watch.on(), torch.enable_grad():
            output = run()
    finally:
        for handle in handles:
            handle.remove()
    on_every_way = _nodes_that_everything_passes(output, model.parameters())
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    tensors = [tensor for _, _, tensor, _ in seen]
    gradients = torch.autograd.grad(output, tensors, probe, allow_unused=True)
    visits = []
    for (name, layer, tensor, axes), gradient in zip(seen, gradients, strict=True):
        try:
            layout = known_layout(axes, tensor.shape, layer, model)
        except ValueError:
            continue
        width = tensor.shape[1 if isinstance(layout, ChannelsFirst) else -1]
        useful = gradient is not None and why_useless(layout, tensor.detach(), gradient) is None
        visits.append(Visit(name, layer, layout, tensor.shape, width, useful, tensor.grad_fn in on_every_way))
    return visits


def why_useless(layout: Layout, activation: Tensor, gradient: Tensor) -> str | None:
    """Say why a filter on an activation would be without effect, given the gradient of a random mix of the outputs."""
    if not per_place(layout, torch.abs, gradient).any():
        return "its places do not reach the output"
    slope = per_place(layout, torch.mul, activation, gradient)
    size = per_place(layout, lambda *factors: torch.mul(*factors).abs(), activation, gradient)
    if size.any() and slope.norm() <= _SCALE_MATTERS * size.norm():
        return "what follows normalises every place by itself, so that its scale does not reach the output"
    return None


def refuse_useless_layer(
    problem: Problem, layer: nn.Module, model: nn.Module | None, run: Callable[[], Tensor], inputs: Sequence[Tensor]
) -> None:
    """Raise a ValueError where a filter is without effect; it names the nearest earlier layer that will do."""
    gradient = problem.pull_back(problem.probe())
    reason = why_useless(problem.layout, problem.activation, gradient)
    if reason is None:
        return
    if not gradient.any() and _moves(problem):
        reason = "what follows moves in steps, as rounding does, and has no slope"
    advice = "pass an earlier layer"
    if model is not None:
        visits = visit_layers(model, run, inputs)
        own = [place for place, visit in enumerate(visits) if visit.layer is layer]
        earlier = [visit for visit in visits[: own[-1] if own else None] if visit.useful]
        alike = [visit for visit in earlier if visit.shape == problem.activation.shape] or earlier
        which = "nearest earlier" if own else "last"
        advice = f"the {which} layer that will do is {alike[-1].name!r}" if alike else "no earlier one will do"
    raise ValueError(f"layer {type(layer).__name__} has no map: {reason}; {advice}")


def _moves(problem: Problem) -> bool:
    """Say whether the output changes without the activation."""
    with torch.no_grad():
        nothing = torch.zeros(problem.examples, *problem.grid).to(problem.original)
        return not torch.equal(problem.output(nothing), problem.original)


@torch.no_grad()
def _output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    output = model(*inputs)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"model must return a tensor, got {type(output).__name__}; put a module around it that returns one of them"
        )
    return output


def _last_that_is_felt(model: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, visits: Sequence[Visit]) -> Visit:
    """Return the last layer if an even filter is felt there, or else one before it, rather where everything passes."""

    def felt(visit: Visit) -> bool:
        places = math.prod(visit.layout.grid(visit.shape))
        even, removed = ((_scaled(model, inputs, visit, by) - output).norm() for by in (places**-0.5, 0.0))
        return not even <= _FELT * removed

    last, *earlier = reversed(visits)
    earlier.sort(key=lambda visit: not (visit.everything_passes and visit.width == last.width))
    return next(filter(felt, [last, *earlier]), last)


def _scaled(model: nn.Module, inputs: tuple[Tensor, ...], visit: Visit, factor: float) -> Tensor:
    """Return the output with all places of a layer's output multiplied."""

    def scale(_: nn.Module, __: object, activation: Tensor) -> Tensor:
        filters = activation.new_full((len(activation), *visit.layout.grid(activation.shape)), factor)
        return activation * visit.layout.spread(filters, activation.shape)

    handle = visit.layer.register_forward_hook(scale)
    try:
        return _output(model, inputs)
    finally:
        handle.remove()


def _nodes_that_everything_passes(output: Tensor, parameters: Iterable[Tensor]) -> set[object]:
    """Return the nodes of the graph behind ``output`` that lie on all ways from it to what are no parameters."""
    own = {id(parameter) for parameter in parameters}
    root = cast("Any", output.grad_fn)
    order: dict[Any, int] = {}  # every node after those that it leads to, with its number of ways to the inputs
    stack = [root]
    while stack:
        node = stack[-1]
        ahead = [following for following, _ in node.next_functions if following is not None]
        waiting = [following for following in ahead if following not in order]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        is_input = hasattr(node, "variable") and id(node.variable) not in own
        order[node] = int(is_input) + sum(order[following] for following in ahead)
    ways = dict.fromkeys(order, 0) | {root: 1}
    for node in reversed(order):
        for following, _ in node.next_functions:
            if following is not None:
                ways[following] += ways[node]
    return {node for node in order if ways[node] * order[node] == order[root]}


def _default_inputs(model: nn.Module) -> Tensor:
    size = declared_input(model)
    if size is None:
        raise ValueError(f"inputs must be given: {type(model).__name__} has no pretrained_cfg that tells their size")
    parameter = next(model.parameters())
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
