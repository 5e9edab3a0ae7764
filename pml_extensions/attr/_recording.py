"""Operations of a network, recorded in one run, played back at will and in any precision.

Played back, what follows an activation costs neither the layers before nor the side branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


@dataclass(frozen=True)
class Slot:
    """Stands in a recorded operation for a tensor that is computed on playing."""

    index: int


@dataclass(frozen=True)
class Operation:
    """A tensor operation, with slots in place of tensors, and the slots of what it returns."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]

    def needs(self) -> set[int]:
        """Return the slots that it takes."""
        return {leaf.index for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Slot)}

    def in_precision(self, dtype: torch.dtype) -> "Operation":
        """Return the same operation in another floating-point precision."""
        args, kwargs = tree_map(lambda leaf: in_precision(leaf, dtype), (self.args, self.kwargs))
        return Operation(self.function, args, kwargs, self.results)


@dataclass(frozen=True)
class Recording:
    """A function of one tensor that does what the network did from there on.

    Attributes:
        start: the slot of its argument.
        result: the slot of what it returns.
        constants: values of the other slots.
    """

    operations: Sequence[Operation]
    start: int
    result: int
    constants: dict[int, Tensor]

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the result for another value of the argument."""
        return play(self.operations, self.constants | {self.start: tensor})[self.result]

    def is_random(self) -> bool:
        """Say whether it draws random numbers, as dropout does."""
        return any(torch.Tag.nondeterministic_seeded in operation.function.tags for operation in self.operations)

    def in_precision(self, dtype: torch.dtype) -> "Recording":
        """Return the same function in another floating-point precision."""
        constants = {slot: in_precision(value, dtype) for slot, value in self.constants.items()}
        return Recording([one.in_precision(dtype) for one in self.operations], self.start, self.result, constants)


def play(operations: Sequence[Operation], values: dict[int, Tensor]) -> dict[int, Tensor]:
    """Run operations and return the values of all slots; ``values`` has those of some."""
    values = dict(values)
    for operation in operations:
        args, kwargs = tree_map_only(Slot, lambda slot: values[slot.index], (operation.args, operation.kwargs))
        results = zip(operation.results, tree_leaves(operation.function(*args, **kwargs)), strict=True)
        values.update({index: leaf for index, leaf in results if index is not None})
    return values


def in_precision(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor, or a type, in another precision if it is floating-point, and as it is if not."""
    if isinstance(value, torch.dtype):
        return dtype if value.is_floating_point else dtype.to_complex() if value.is_complex else value
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.detach().to(in_precision(value.dtype, dtype))
    return value
