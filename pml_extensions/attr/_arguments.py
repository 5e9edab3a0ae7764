"""The arguments of ``attribute`` in captum's forms, checked before any work is done."""

import numbers
from typing import cast

import torch
from torch import Tensor

from pml_extensions._settings import check_object

Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]]


class TargetError(ValueError, IndexError, AssertionError):
    """A target that does not fit the output: a ``ValueError``, and whatever captum would raise."""


def check_inputs(inputs: object) -> tuple[Tensor, ...]:
    """Return the inputs as a tuple of tensors with the same number of examples."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(f"inputs must be a tensor or a tuple of tensors, got {[type(t).__name__ for t in tensors]}")
    sizes = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if min(sizes) == 0:
        raise ValueError(f"inputs must hold at least one example, got shapes {[tuple(t.shape) for t in tensors]}")
    if len(set(sizes)) > 1:
        raise ValueError(f"inputs must all hold the same number of examples, got {sizes}")
    return tensors


def check_output(output: object, examples: int) -> Tensor:
    """Return what a network returned, known to hold one row per example."""
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != examples:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"forward_func must return a tensor of one row per example ({examples}), got {got}")
    return output


def check_parts(objective: object, filter: object, solver: object) -> None:  # noqa: A002 - the method's word
    """Raise unless each part of the method that is given has what it is used for."""
    for name, part, method, example in (
        ("objective", objective, "__call__", "ClassOblivious()"),
        ("filter", filter, "start", "UnitNorm()"),
        ("solver", solver, "minimize", "LBFGS()"),
    ):
        if part is not None:
            check_object(name, part, example, method)


def target_indices(target: Target, output: Tensor) -> Tensor:
    """Return captum's target as one row of output indices per example, (B, D - 1) for an output of D dimensions."""
    examples, width = len(output), output.ndim - 1
    rows = _rows(target, examples)
    indices = torch.tensor(rows, dtype=torch.long) if rows and len({len(row) for row in rows}) == 1 else None
    if indices is None or indices.shape[1] != width:
        raise TargetError(
            f"target must name {width} position{'s' * (width != 1)} in the output of shape {tuple(output.shape)}, one "
            f"for each dimension after the first, got {target!r}"
        )
    sizes = torch.tensor(output.shape[1:])
    if ((indices >= sizes) | (indices < -sizes)).any():
        raise TargetError(f"target is out of range for the output of shape {tuple(output.shape)}, got {target!r}")
    return indices.remainder(sizes).expand(examples, width).to(output.device)


def _rows(target: Target, examples: int) -> list[tuple[int, ...]]:
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex():
            raise TypeError(f"target must hold integers, got a tensor of {target.dtype}")
        target = cast("int | list[int]", target.tolist() if target.numel() != 1 else int(target.item()))
    if isinstance(target, int):
        return [(target,)]
    if isinstance(target, tuple):
        target = [target] * examples
    if not isinstance(target, list):
        raise TypeError(f"target must be an int, a tuple, a list or a tensor, got {type(target).__name__}")
    if len(target) != examples:
        raise TargetError(f"target must name one class for each of the {examples} examples, got {len(target)}")
    rows = [row if isinstance(row, tuple) else (row,) for row in target]
    entries: list[object] = [entry for row in rows for entry in row]
    for entry in entries:
        if not isinstance(entry, numbers.Integral):
            raise TypeError(f"target must hold integers, got a {type(entry).__name__} in {target!r}")
    return rows


def check_reference(reference: Tensor, output: Tensor) -> Tensor:
    """Return the reference, known to fit the output."""
    if not isinstance(reference, Tensor):
        raise TypeError(f"reference must be a tensor, got {type(reference).__name__}")
    expected = {(1, *output.shape[1:]), tuple(output.shape)}
    if output.ndim != 2 or tuple(reference.shape) not in expected:
        raise ValueError(
            f"reference must have the shape of the output, {tuple(output.shape)}, or one row for all examples, got "
            f"{tuple(reference.shape)}"
        )
    if not reference.isfinite().all():
        raise ValueError("reference must be finite, got NaN or infinity")
    return reference.detach()
