"""The integers that modules hold: traced while the model runs, and set anew in a slim one.

The forward of torch.nn's own classes does not read all of theirs; what those must be follows from the weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from pml_extensions._slimming.algebra.axes import Axis
from pml_extensions._slimming.algebra.integers import (
    Attribute,
    Equation,
    Expression,
    Operation,
    Size,
    TracedInt,
    atoms,
    expression_of,
)
from pml_extensions._slimming.tracing.trace import Trace

SizeOf = tuple[str, int]

_TABLE: list[tuple[type[nn.Module], dict[str, SizeOf]]] = [
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.Bilinear, {"out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)}),
    (_ConvTransposeNd, {"in_channels": ("weight", 0)}),
    (_ConvNd, {"out_channels": ("weight", 0)}),
    (_NormBase, {"num_features": ("weight", 0)}),
    (_NormBase, {"num_features": ("running_mean", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.Embedding, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
    (nn.RNNBase, {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}),
    (nn.RNNBase, {"proj_size": ("weight_hr_l0", 0), "hidden_size": ("weight_hr_l0", 1)}),  # with projections
    (nn.RNNCellBase, {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}),
    (nn.MultiheadAttention, {"embed_dim": ("out_proj.weight", 0)}),
]


def sizes_of(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Yield (attribute, tensor, dimension): the attribute is the size of that dimension of that tensor."""
    found: dict[str, SizeOf] = {}  # of several tensors, the last
    for kind, attributes in _TABLE:
        if isinstance(module, kind) and not (kind is _ConvNd and isinstance(module, _ConvTransposeNd)):
            found.update((name, of) for name, of in attributes.items() if isinstance(_get(module, of[0]), Tensor))
    for attribute, (tensor, dimension) in found.items():
        if isinstance(getattr(module, attribute, None), int):
            yield attribute, tensor, dimension


def known_weights(model: nn.Module) -> set[str]:
    """Return the names of the tensors that layers of torch.nn are known to apply."""
    return {
        ".".join(filter(None, [path, tensor]))
        for path, module in model.named_modules()
        for _, tensor, _ in sizes_of(module)
    }


def _get(module: nn.Module, path: str) -> object:
    """Return a tensor of a module; one that is computed as in evaluation, which leaves the state of its norms alone."""
    owner, _, name = path.rpartition(".")
    holder: Any = getattr(module, owner, None) if owner else module
    if not (isinstance(holder, nn.Module) and parametrize.is_parametrized(holder, name)):
        return getattr(holder, name, None)
    chain: Any = holder.parametrizations[name]  # type: ignore[index]  # a ModuleDict
    modes = [(part, part.training) for part in chain.modules()]
    try:
        chain.eval()
        with torch.no_grad():
            return getattr(holder, name)
    finally:
        for part, mode in modes:
            part.training = mode


def _shape(module: nn.Module, path: str) -> torch.Size:
    tensor: Any = _get(module, path)
    return torch.Size(tensor.shape)


def grouped_channels(module: nn.Module) -> str | None:
    """Return which integer of a convolution is the size of its weight's second dimension, times its groups."""
    if not (isinstance(module, _ConvNd) and isinstance(_get(module, "weight"), Tensor)):
        return None
    return "out_channels" if isinstance(module, _ConvTransposeNd) else "in_channels"


def derived_integers(module: nn.Module) -> dict[str, int]:
    """Return what the integers of a torch.nn module must be, given its tensors and its other integers."""
    values = {attribute: _shape(module, tensor)[dimension] for attribute, tensor, dimension in sizes_of(module)}
    grouped: Any = module
    name = grouped_channels(module)
    if name is not None:
        values[name] = _shape(module, "weight")[1] * grouped.groups
    if isinstance(module, nn.MultiheadAttention):
        values["head_dim"] = _shape(module, "out_proj.weight")[1] // module.num_heads
    return values


def equations_of(module: nn.Module, axes_of: Callable[[Tensor], Sequence[Axis]]) -> Iterator[Equation]:
    """Yield what holds between the traced integers of a torch.nn module and the axes of its tensors."""
    found: dict[str, Expression] = {
        attribute: Size(axes_of(_get(module, tensor))[d])  # type: ignore[arg-type]
        for attribute, tensor, d in sizes_of(module)
    }
    grouped: Any = module
    name = grouped_channels(module)
    if name is not None:
        found[name] = Operation("*", Size(axes_of(_get(module, "weight"))[1]), expression_of(grouped.groups))  # type: ignore[arg-type]
    for attribute, expression in found.items():
        yield Equation(expression_of(getattr(module, attribute)), "==", expression)


def equations_of_used(model: nn.Module, trace: Trace) -> Iterator[Equation]:
    """Yield those equations of the layers of ``model`` whose integers its code has used: they follow from weights."""
    used = {
        (atom.module, atom.name)
        for equation in list(trace.equations)
        for side in (equation.left, equation.right)
        for atom in atoms(side)
        if isinstance(atom, Attribute)
    }
    for path, module in model.named_modules():
        if any(name == path for name, _ in used) and all(map(trace.seen, module.parameters())):
            for equation in equations_of(module, trace.axes):
                told = equation.left
                if isinstance(told, Attribute) and (path, told.name) in used and equation.holds({}, {}):
                    yield equation


def trace_attributes(model: nn.Module, equations: list[Equation]) -> None:
    """Replace every integer that a module of ``model`` holds by a traced one."""
    for name, module in model.named_modules():
        for attribute, value in list(vars(module).items()):
            if not attribute.startswith("_") or isinstance(value, int):
                module.__dict__[attribute] = _trace_value(value, Attribute(name, attribute), equations)


def _trace_value(value: Any, at: Attribute, equations: list[Equation]) -> Any:
    if type(value) is int:
        return TracedInt(value, Attribute(at.module, at.name, at.places, value), equations)
    if type(value) in {tuple, torch.Size}:
        return type(value)([_trace_value(item, _inside(at, i), equations) for i, item in enumerate(value)])
    if type(value) in {list, dict}:  # in place: functions may refer to it, too
        for place, item in list(enumerate(value) if type(value) is list else value.items()):
            value[place] = _trace_value(item, _inside(at, place), equations)
    return value


def _inside(at: Attribute, place: Any) -> Attribute:
    return Attribute(at.module, at.name, (*at.places, place))


def with_integers(value: Any, changes: Mapping[tuple[Any, ...], int]) -> Any:
    """Return a nest of tuples, lists and dicts with the integers at the given places replaced."""
    if () in changes:
        return changes[()]
    if isinstance(value, dict):
        return {key: with_integers(item, _below(changes, key)) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([with_integers(item, _below(changes, i)) for i, item in enumerate(value)])
    return value


def _below(changes: Mapping[tuple[Any, ...], int], place: Any) -> dict[tuple[Any, ...], int]:
    return {places[1:]: value for places, value in changes.items() if places and places[0] == place}
