"""Cut a slim model: a deep copy of the same class with sliced tensors and corrected integers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._slimming.analysis import Widths
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing.copies import copy_with
from pml_extensions._slimming.tracing.forward import shapes_of_output
from pml_extensions._slimming.tracing.module_integers import derived_integers, with_integers
from pml_extensions._slimming.tracing.stand_ins import Observer
from pml_extensions._slimming.tracing.way import Way, parting

_UNSEEN = (
    "of what the model's code makes of a width, arithmetic and comparisons of integers are followed, but not range(), "
    "len(), a place in a list, a string, or a detour over float"
)


def cut(model: nn.Module, widths: Widths, *observers: Observer) -> Any:
    """Return the slim copy of ``model``; the model is not touched and no tensor is shared.

    Args:
        model: the dense model.
        widths: what is to stay of it.
        observers: of the pass in eval mode in which the slim copy is tried; see ``ShapesOnly``.

    Raises:
        TracingError: if the slim copy does not run, or returns other shapes than the dense model.
    """

    def slim_tensor(name: str, tensor: Tensor) -> Tensor:
        piece = _cut_tensor(tensor, widths, name)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(piece, requires_grad=tensor.requires_grad)
        return piece

    slim = copy_with(model, slim_tensor)
    modules = dict(slim.named_modules())
    for (path, name), places in widths.changes().items():
        held = modules[path].__dict__
        if hasattr(held[name], "info"):  # an object of timm's that keeps its list there
            held[name].info = with_integers(held[name].info, places)
        else:
            held[name] = with_integers(held[name], places)
    for module in modules.values():
        module.__dict__.update(derived_integers(module))
    _set_default_scales(modules, widths)
    _check(slim, widths, observers)
    return slim


def _check(slim: nn.Module, widths: Widths, observers: Sequence[Observer]) -> None:
    """Run the slim model on stand-ins, in the modes that were watched, before anybody gets it."""
    watched = widths.watched
    for training, expected, calls in ((False, watched.outputs, watched.calls), (True, watched.trained, 1)):
        if expected is None:
            continue
        way = Way()
        seeing: Sequence[Observer] = () if training else (*observers, way)
        try:
            shapes = shapes_of_output(slim, watched.inputs, *seeing, training=training, calls=calls)
        except Exception as error:
            raise TracingError(
                f"the slim network does not run, so none is returned: {type(error).__name__}: {error}; {_UNSEEN}"
            ) from error
        if shapes != expected:
            raise TracingError(f"the slim network returns {shapes} where the dense one returns {expected}")
        other = None if training else parting(watched.way, way, widths.sizes)
        if other is not None:
            raise TracingError(f"the slim network goes another way than the dense one, {other}; {_UNSEEN}")


def _cut_tensor(tensor: Tensor, widths: Widths, name: str) -> Tensor:
    piece = tensor.detach()
    for dimension, index in enumerate(widths.kept(name) or ()):
        if len(index) < piece.shape[dimension]:
            piece = piece.index_select(dimension, torch.from_numpy(index).to(piece.device))
    return piece.clone() if piece.data_ptr() == tensor.data_ptr() else piece


def _set_default_scales(modules: dict[str, nn.Module], widths: Widths) -> None:
    """Where attention leaves its scale to torch (one over the root of head_dim), let the module's own copy agree."""
    for path, axis in widths.watched.trace.default_scales:
        dense, slim = math.prod(f.size for f in axis), widths.slim_size(axis)
        for name, value in list(vars(modules[path]).items()):
            if isinstance(value, float) and value == dense**-0.5:
                modules[path].__dict__[name] = slim**-0.5
