"""How a forward pass uses parameters that no layer of ``torch.nn`` accounts for: as weights, or as tables and tokens.

A parameter is a weight if a matrix product or a convolution applies it to features, that is, to floating-point values
computed from the input. On the way there it may be viewed, cast, rescaled or standardised, but not indexed or
interpolated, as tables of positions are. A table that enters a product all the same shows itself by what follows: the
axis that it adds is padded or gathered, so its entries are places and not features (relative positions in attention).

The pass runs once, in evaluation mode, in a copy of the model whose tensors have shapes and no data; floating-point
inputs get the type of the model's parameters.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["NOT_MULTIPLIED", "operand_uses"]

NOT_MULTIPLIED = "table, token or scale: not multiplied with features"
PLACES = "table of positions: the axis that it adds to a product is padded or gathered"
NO_INPUT = "use unknown: the model declares no input size, and the split was given no example_input"

_aten = torch.ops.aten
_OPERANDS = {  # matrix products and convolutions, and where their two operands stand among the arguments
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten.mv: (0, 1),
    _aten.dot: (0, 1),
    _aten.linear: (0, 1),
    _aten.convolution: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.addmv: (1, 2),
}
_SELECTED_AXES: dict[
    Any, Callable[..., list[int]]
] = {  # operations that choose among the places of an axis, and which axes
    _aten.constant_pad_nd: lambda pad, *_: [-1 - i for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]],
    _aten.index: lambda indices: [axis for axis, index in enumerate(indices) if index is not None],
    _aten.index_select: lambda axis, _: [axis],
    _aten.gather: lambda axis, *_: [axis],
}


def operand_uses(
    model: nn.Module,
    candidates: Mapping[str, nn.Parameter],
    known: Iterable[nn.Parameter],
    example_input: Tensor | tuple[Tensor, ...] | None,
) -> dict[str, str | None]:
    """Return for each candidate None if the model uses it as a weight, else the reason why it counts as none.

    ``known`` are the weights known beforehand: what rescales one of them on its way is a scale.
    """
    if not candidates:
        return {}
    inputs = _inputs(model, example_input)
    if inputs is None:
        return dict.fromkeys(candidates, NO_INPUT)
    try:
        watch = _watched_pass(model, candidates, known, inputs)
    except Exception as error:  # noqa: BLE001 (whatever a model raises when it runs without data; the reason is handed on)
        first_line = next(iter(str(error).strip().splitlines()), "")
        return dict.fromkeys(candidates, f"use unknown: the forward pass failed: {type(error).__name__}: {first_line}")
    return {name: watch.verdict(name) for name in candidates}


def _inputs(model: nn.Module, example_input: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    if example_input is not None:
        return example_input if isinstance(example_input, tuple) else (example_input,)
    for layer in model.modules():
        config = getattr(layer, "pretrained_cfg", None)  # of a timm model
        if isinstance(config, Mapping) and "input_size" in config:
            channels, *size = config["input_size"]
            size = getattr(getattr(layer, "patch_embed", None), "img_size", None) or size
            return (torch.empty(2, channels, *size, device="meta"),)
    return None


def _watched_pass(
    model: nn.Module,
    candidates: Mapping[str, nn.Parameter],
    known: Iterable[nn.Parameter],
    inputs: tuple[Tensor, ...],
) -> "_Watch":
    model = _unwrapped(model)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    device = next(model.parameters()).device

    def shell(tensor: Tensor) -> Tensor:
        hollow = fake.from_tensor(tensor.detach())
        return nn.Parameter(hollow, requires_grad=False) if isinstance(tensor, nn.Parameter) else hollow

    plain = [value for layer in model.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    shells = {id(tensor): shell(tensor) for tensor in [*model.parameters(), *model.buffers(), *plain]}
    hollow_model = copy.deepcopy(model, dict(shells)).eval()
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    with fake:
        hollow_inputs = [
            torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device=device)
            for value in inputs
        ]
    watch = _Watch(
        {name: shells[id(parameter)] for name, parameter in candidates.items()},
        [shells[id(weight)] for weight in known],
        hollow_inputs,
    )
    with torch.no_grad(), fake, watch:
        hollow_model(*hollow_inputs)
    return watch


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch's parallel and compiling wrappers."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = getattr(model, "module" if parallel else "_orig_mod", None)
    return model if inner is None else _unwrapped(inner)


class _Product(NamedTuple):
    """A product of features with parameters: stride and size of the axis that these added."""

    names: set[str]
    stride: int
    size: int


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is untyped there
    """Follow parameters and features through the operations of a forward pass; views are followed by their storage."""

    def __init__(self, candidates: Mapping[str, Tensor], known: Iterable[Tensor], inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch is untyped there
        self.sizes = {name: parameter.numel() for name, parameter in candidates.items()}
        self.sources = {_storage(parameter): {name} for name, parameter in candidates.items()}
        self.known = {_storage(weight) for weight in known}
        self.features = {_storage(value) for value in inputs if value.is_floating_point()}
        self.products: dict[int, _Product] = {}
        self.weights: set[str] = set()
        self.places: set[str] = set()
        self.alive: list[Tensor] = []  # a storage that was freed could lend its number to another

    def verdict(self, name: str) -> str | None:
        if name in self.places:
            return PLACES
        return None if name in self.weights else NOT_MULTIPLIED

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for output in tree_leaves(result):
            if isinstance(output, Tensor):
                self.alive.append(output)
                self._hand_on(operation, inputs, output)
        if operation in _OPERANDS:
            first, second = (args[place] for place in _OPERANDS[operation])
            self._multiply(first, second, result, axis=-1)
            self._multiply(second, first, result, axis=-2)
        elif operation in _SELECTED_AXES:
            self._select(args[0], _SELECTED_AXES[operation](*args[1:]))
        return result

    def _hand_on(self, operation: Any, inputs: list[Tensor], output: Tensor) -> None:
        """Mark an output as made from features, or from the parameters that its inputs were made from."""
        stores = [_storage(value) for value in inputs]
        here = _storage(output)
        if self.features.intersection(stores):
            if output.is_floating_point():
                self.features.add(here)
            for value, store in zip(inputs, stores, strict=True):  # as long as the strides hold, the axis can be told
                if store in self.products and (value.shape, value.stride()) == (output.shape, output.stride()):
                    self.products[here] = self.products[store]
        elif self.known.intersection(stores):
            self.known.add(here)
        elif operation not in _OPERANDS and operation not in _SELECTED_AXES:
            names = set().union(*(self.sources.get(store, set()) for store in stores))
            whole = {name for name in names if self.sizes[name] == output.numel()}
            self.sources[here] = self.sources.get(here, set()) | whole

    def _multiply(self, features: Tensor, weight: Tensor, product: Tensor, axis: int) -> None:
        """Mark the parameter behind ``weight`` if the other operand is features; ``axis`` is the one it adds."""
        names = self.sources.get(_storage(weight), set())
        if names and _storage(features) in self.features:
            self.weights |= names
            if product.ndim >= 2:
                self.products[_storage(product)] = _Product(names, product.stride(axis), product.shape[axis])

    def _select(self, tensor: Tensor, axes: list[int]) -> None:
        """Mark the parameter that added one of ``axes`` to ``tensor``, a product."""
        product = self.products.get(_storage(tensor))
        if product and any((tensor.stride(a), tensor.shape[a]) == (product.stride, product.size) for a in axes):
            self.places |= product.names


def _storage(tensor: Tensor) -> int:
    """Return the number of the storage that a tensor shares with its views."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
