"""One forward pass of a network that brings back a layer's activation, the output, and the way between them.

What follows the layer is computed in double precision, whatever the network's own. A search for a minimum comes to
another end when the last digits change, and rounding changes them with the size of the batch; and only in double
precision can it be told that a function is affine.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pml_extensions.attr._axes import Axes
from pml_extensions.attr._network import undisturbed
from pml_extensions.attr._recording import in_precision
from pml_extensions.attr._warning import warn_user
from pml_extensions.attr._watching import Watch

Run = Callable[[], Tensor]
Tail = Callable[[Tensor], Tensor]
_ALIKE = {False: 1e-2, True: 0.5}  # how far an output in double precision may lie from one in single, or in half


@dataclass(frozen=True)
class Site:
    """The place in a network where a filter goes: the output of ``layer``, or its input."""

    layer: nn.Module
    to_input: bool = False
    device_ids: list[int] | None = None

    @contextmanager
    def replaced_by(self, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let ``replace`` answer for the tensor at this site, for as long as the context lasts."""

        def hook(_: nn.Module, value: Any, result: Any = None) -> Any:
            value = value if self.to_input else result
            self._check_one_tensor(value)
            return tree_map_only(Tensor, replace, value)

        register = self.layer.register_forward_pre_hook if self.to_input else self.layer.register_forward_hook
        handle = register(hook)
        try:
            yield
        finally:
            handle.remove()

    def _check_one_tensor(self, value: object) -> None:
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        if len(tensors) != 1:
            verb = "takes" if self.to_input else "returns"
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(
                f"layer must deal with one tensor, but {_kind(self.layer)} {verb} {len(tensors)}, of shapes {shapes}; "
                "pass a layer before or inside it that deals with one"
            )
        if not tensors[0].is_floating_point():
            raise ValueError(
                f"layer must give floating-point activations, but {_kind(self.layer)} gives {tensors[0].dtype}"
            )


@dataclass(frozen=True)
class Capture:
    """What one forward pass gave.

    Attributes:
        activation: the tensor at the site, a leaf of the graph of ``output``.
        output: what the tail returns for it, with its graph back to it and no further.
        tail: the function from an activation to the output.
        axes: those of the activation, None where they were not seen.
        precise: whether the tail is precise enough to tell what it is by its values.
        dtype: of results: the precision of the network, or single if that is less.
    """

    activation: Tensor
    output: Tensor
    tail: Tail
    axes: Axes | None
    precise: bool
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if len(self.activation) != len(self.output):
            raise ValueError(
                f"layer must keep the examples in its first dimension ({len(self.output)}), got an activation of shape "
                f"{tuple(self.activation.shape)}; pass a layer that does, or build the network with batch_first=True"
            )
        named = {"the activations of layer": self.activation, "the output of forward_func": self.output}
        for name, tensor in named.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinity; check inputs and weights")


def capture(run: Run, site: Site, inputs: Sequence[Tensor]) -> Capture:
    """Run a network once and return the activation at a site, the output, and the tail between them.

    If the network does something that cannot be played back, the tail is the whole network run again with the
    activation put in its place, in its own precision, and a warning says so.
    """
    watch, pieces = Watch(inputs), _Pieces(site.device_ids)
    caller = threading.get_ident()

    def take(tensor: Tensor) -> Tensor:
        refuse_inference_mode()
        piece = tensor.detach().clone().requires_grad_()
        pieces.take(piece)
        given = piece.clone()  # no leaf: the network may write into it
        if threading.get_ident() == caller:
            watch.mark(tensor, given)
        return given

    with undisturbed(), watch.on(), site.replaced_by(take), torch.enable_grad():
        output = run().detach()
    if not pieces.tensors:
        raise ValueError(f"layer {_kind(site.layer)} is never reached when forward_func runs; pass one that is")
    obstacle = "several devices"
    if len(pieces.tensors) == 1:
        (activation,) = pieces.tensors.values()
        captured = _played_back(watch, activation, output)
        if isinstance(captured, Capture):
            return captured
        obstacle = captured
    warn_user(f"what follows the layer cannot be played back on its own ({obstacle}); each step runs the whole network")
    activation, rerun = pieces.joined(), _Rerun(run, site, pieces)
    with torch.enable_grad():
        return Capture(
            activation, rerun(activation.clone()), rerun, watch.axes, precise=not watch.halved, dtype=_single(output)
        )


def _played_back(watch: Watch, activation: Tensor, output: Tensor) -> Capture | str:
    """Return what was captured, with the tail played back in double precision, or why that is impossible."""
    tail, dtype = watch.tail(output), torch.float32 if activation.device.type == "mps" else torch.float64
    if tail is None:
        return watch.obstacle or "nothing was recorded"
    try:
        replayed = watch.replayed(tail, dtype) if watch.halved else None
        start, wide = replayed or (in_precision(activation, dtype), tail.in_precision(dtype))
        start = start.detach().clone().requires_grad_()
        with torch.enable_grad():
            again = wide(start.clone())
    except (RuntimeError, NotImplementedError) as error:
        return f"in {dtype}: {error}"
    if output.isfinite().all() and not wide.is_random() and _distance(output, again) > _ALIKE[watch.halved]:
        return f"it gives something else in {dtype}"
    return Capture(start, again, wide, watch.axes, precise=True, dtype=_single(output))


def _distance(output: Tensor, again: Tensor) -> float:
    """Return the relative distance of an output and its twin in double precision."""
    wide = again.detach()
    size = torch.linalg.vector_norm(wide)
    return float(torch.linalg.vector_norm(output - wide) / size) if size > 0 else float(output.any())


def _single(output: Tensor) -> torch.dtype:
    return torch.promote_types(output.dtype, torch.float32)


@dataclass
class _Pieces:
    """The activation at a site, in pieces where a network splits its batch over devices."""

    device_ids: list[int] | None
    tensors: dict[torch.device, Tensor] = field(default_factory=dict)
    calls: Counter[torch.device] = field(default_factory=Counter)

    def take(self, tensor: Tensor) -> None:
        self.tensors[tensor.device] = tensor
        self.calls[tensor.device] += 1

    def devices(self) -> list[torch.device]:
        """Return the devices in the order of the batch."""
        if len(self.tensors) == 1:
            return list(self.tensors)
        order = {index: place for place, index in enumerate(self.device_ids or [])}
        if not {device.index for device in self.tensors} <= order.keys():
            raise ValueError(
                f"device_ids must name the devices of the batch in their order, {sorted(map(str, self.tensors))}; "
                f"got {self.device_ids}"
            )
        return sorted(self.tensors, key=lambda device: order[device.index])

    def joined(self) -> Tensor:
        first, *_ = devices = self.devices()
        return torch.cat([self.tensors[device].detach().to(first) for device in devices]).requires_grad_()

    def split(self, activation: Tensor) -> dict[torch.device, Tensor]:
        devices = self.devices()
        parts = torch.split(activation, [len(self.tensors[device]) for device in devices])
        return {device: part.to(device) for device, part in zip(devices, parts, strict=True)}


@dataclass(frozen=True)
class _Rerun:
    """The whole network, run with an activation put in the place of the one that it would have made."""

    run: Run
    site: Site
    pieces: _Pieces

    def __call__(self, activation: Tensor) -> Tensor:
        parts, calls = self.pieces.split(activation), Counter[torch.device]()
        graph = torch.is_grad_enabled()

        def put(tensor: Tensor) -> Tensor:
            calls[tensor.device] += 1
            part = parts[tensor.device]
            last = calls[tensor.device] == self.pieces.calls[tensor.device]
            return (part if graph else part.detach().requires_grad_().clone()) if last else tensor

        with undisturbed(), torch.enable_grad(), self.site.replaced_by(put):
            output = self.run()
        return output if graph else output.detach()


def refuse_inference_mode() -> None:
    """Raise a RuntimeError where no gradient can be had."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "attribute() needs gradients, which torch.inference_mode() rules out; call it outside, or under "
            "torch.no_grad(), which it lifts for itself"
        )


def _kind(layer: nn.Module) -> str:
    return type(layer).__name__
