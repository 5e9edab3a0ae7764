"""What to store, so that a weight that is computed from stored tensors is drawn anew.

All of it happens in copies, on the CPU.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal, _WeightNorm

__all__ = ["Chain"]

Draw = Callable[[Tensor], Tensor]
Keep = Sequence[Tensor | None]

_PASSES = 200
_SETTLED, _UNSETTLED = 1e-5, 1e-2  # change of what a parametrization returns from one pass to the next, relative


class Chain:
    """Copies of the parametrizations of one weight, P_n(... P_1(stored)), with their buffers.

    Args:
        modules: the parametrizations; they are not touched.
        dtype: of the copies.
    """

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self._modules: list[Any] = [copy.deepcopy(module).to("cpu", dtype).eval() for module in modules]

    def redraw(self, stored: Sequence[Tensor], keep: Keep, draw: Draw) -> list[Tensor]:
        """Return what to store in place of ``stored``, and bring the buffers to where they belong to it.

        Args:
            stored: the stored tensors.
            keep: for each of them a mask, True = stays, or None if it is not split. Such a one is drawn anew when
                nothing is to stay, and stays otherwise; but the length of weight norm follows its direction.
            draw: returns new values, given the current ones: of the weight, or of what it is computed from on the way,
                whichever torch's right inverses bring back to what is stored. Where they do so for none, what is
                stored is drawn as it is: coordinates about a point that stays.
        """
        part = any(mask is not None and bool(mask.any()) for mask in keep)
        if part and isinstance(self._modules[0], _WeightNorm) and keep[1] is not None:
            new = self._redraw_direction(stored, keep[1], draw)
            keep = [torch.zeros_like(stored[0], dtype=torch.bool) if keep[0] is None else keep[0], keep[1]]
        else:
            given = self._given(stored, keep, part)
            new = self._stored_for(draw(given), part) if given is not None else self._coordinates(stored, keep, draw)
        got, expected = ([tuple(tensor.shape) for tensor in tensors] for tensors in (new, stored))
        if got != expected:
            raise ValueError(f"right_inverse of {self._names()} must return tensors of shapes {expected}, got {got}")
        if part:
            new = _mixed(stored, new, keep)
        self._settle(new)
        return new

    def buffers(self) -> list[Tensor]:
        """Return the buffers, in the order of the parametrizations."""
        return _buffers(self._modules)

    def _redraw_direction(self, stored: Sequence[Tensor], keep: Tensor, draw: Draw) -> list[Tensor]:
        """Return the length and direction of weight norm, where a part of the direction stays."""
        length, direction = stored
        normed = self._modules[0](length, direction)
        given = next(iter(_valid_inputs(self._modules[1:], [normed], None)), normed)
        (drawn,) = _inverse(self._modules[1:], draw(given))
        return _length_and_direction(length, direction, keep, drawn, self._modules[0].dim)

    def _given(self, stored: Sequence[Tensor], keep: Keep, part: bool) -> Tensor | None:
        """Return what a rule draws, by its current values; None where it is the coordinates that are stored."""
        weight = _outputs(self._modules, stored)[-1]
        if part and self._inverse_writes(weight):
            return None
        valid = _valid_inputs(self._modules, stored, keep if part else None)
        return next(valid, None if part else weight)

    def _stored_for(self, drawn: Tensor, part: bool) -> list[Tensor]:
        new = _inverse(copy.deepcopy(self._modules) if part else self._modules, drawn)
        if drawn.isfinite().all() and not all(bool(tensor.isfinite().all()) for tensor in new):
            raise ValueError(
                f"right_inverse of {self._names()} gives values that are not finite for what the rule has drawn; use a "
                "rule that draws weights which the parametrization can take"
            )
        return new

    def _coordinates(self, stored: Sequence[Tensor], keep: Keep, draw: Draw) -> list[Tensor]:
        """Return new coordinates; raise unless the weight is one that the parametrization can take."""
        new = [old if mask is None else draw(old) for old, mask in zip(stored, keep, strict=True)]
        if isinstance(self._modules[0], _Orthogonal):  # the diagonal holds signs, and is not trained
            new[0].diagonal(dim1=-2, dim2=-1).copy_(stored[0].diagonal(dim1=-2, dim2=-1))
        weight, trial = _outputs(self._modules, _mixed(stored, new, keep))[-1], copy.deepcopy(self._modules)
        if not _same(_outputs(trial, _inverse(trial, weight))[-1], weight):
            raise ValueError(
                f"a part of a weight under {self._names()} cannot be drawn anew, for what is stored refers to more "
                "than right_inverse returns; reset whole weights there (LaterLayers, LastLayer)"
            )
        return new

    def _inverse_writes(self, weight: Tensor) -> bool:
        """Return whether the right inverses write into buffers, or put others in their place."""
        trial = copy.deepcopy(self._modules)
        before = [(buffer, buffer._version) for buffer in _buffers(trial)]  # noqa: SLF001 (torch's count of writes)
        _inverse(trial, weight)
        after = _buffers(trial)
        return len(after) != len(before) or any(
            now is not then or now._version != version  # noqa: SLF001
            for now, (then, version) in zip(after, before, strict=True)
        )

    def _settle(self, stored: Sequence[Tensor]) -> None:
        """Let each parametrization do in training what it does, until its result stays the same, and keep its state.

        What does not come to rest is noise and no state of the weight's; integers count steps. Both stay as they were.
        """
        if not any(buffer.is_floating_point() for buffer in self.buffers()):
            return
        values = list(stored)
        for module in self._modules:
            trial = copy.deepcopy(module).train()
            before, change = trial(*values), math.inf
            for _ in range(_PASSES):
                after = trial(*values)
                before, change = after, float((after - before).norm() / after.norm())
                if change <= _SETTLED:
                    break
            if change <= _UNSETTLED:
                for ours, theirs in zip(module.buffers(), trial.buffers(), strict=True):
                    if ours.is_floating_point():
                        ours.copy_(theirs)
            values = [module(*values)]

    def _names(self) -> str:
        return " and ".join(type(module).__name__ for module in self._modules)


def _buffers(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [buffer for module in modules for buffer in module.buffers()]


def _outputs(modules: Sequence[Any], stored: Sequence[Tensor]) -> list[Tensor]:
    """Return what each parametrization makes of the one before, the weight last."""
    outputs, values = [], list(stored)
    for module in modules:
        values = [module(*values)]
        outputs += values
    return outputs


def _inverse(modules: Sequence[Any], weight: Tensor) -> list[Tensor]:
    """Return what torch stores for a weight when the parametrizations are registered."""
    values: Any = weight
    for module in reversed(modules):
        if hasattr(module, "right_inverse"):
            with suppress(NotImplementedError):
                values = module.right_inverse(values)
    return [values] if isinstance(values, Tensor) else list(values)


def _valid_inputs(modules: Sequence[Any], stored: Sequence[Tensor], keep: Keep | None) -> Iterator[Tensor]:
    """Yield of what is stored, what is made of it on the way, and the weight, what the right inverses bring back.

    That is, what they return for it gives the same weight; where a part is kept, also mixed with what is stored.
    """
    outputs = _outputs(modules, stored)
    for given in [*(stored if len(stored) == 1 else ()), *outputs]:
        trial = copy.deepcopy(modules)
        with suppress(Exception):  # of a shape, or with values, that the right inverses do not take
            back = _inverse(trial, given)
            if keep is not None:
                back = _mixed(stored, back, keep)
            if _same(_outputs(modules if keep is not None else trial, back)[-1], [*stored, *outputs][-1]):
                yield given


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= 1e-3 * expected.norm())


def _mixed(stored: Sequence[Tensor], new: Sequence[Tensor], keep: Keep) -> list[Tensor]:
    return [
        old if mask is None else torch.where(mask, old, one) for old, one, mask in zip(stored, new, keep, strict=True)
    ]


def _length_and_direction(length: Tensor, direction: Tensor, keep: Tensor, weight: Tensor, dim: int) -> list[Tensor]:
    """Return length g and direction v of keep * (g v / |v|) + (1 - keep) * weight, such that kept elements of v stay.

    |v| / g is the unit in which v is measured. It is 1, as for a fresh layer, where no element of a direction is kept,
    and where a direction or a length of zero leaves it open.
    """
    norm = torch.norm_except_dim(direction, 2, dim)
    kept = torch.norm_except_dim(keep.to(direction.dtype), 2, dim) > 0
    unit = torch.where(kept & (length != 0) & (norm != 0), norm / length, 1)
    new = torch.where(keep, direction, unit * weight)
    new_norm = torch.norm_except_dim(new, 2, dim)
    return [torch.where(kept & (new_norm == norm), length, new_norm / unit), new]
