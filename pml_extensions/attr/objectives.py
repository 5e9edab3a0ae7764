"""What a filter is to keep: objectives on the output of a network.

An objective is a callable ``(output, original) -> (B,)`` of the output with the filter and the output without it, to be
minimised; any such callable will do. Whether it is linear, quadratic or neither is found out from its values.

Source: Taha, Yang, Shrivastava and Davis, ECCV 2020, arXiv:2007.09748: class-oblivious, section 3; class-specific,
as in the authors' code. The pair is the class-oblivious objective with another image's output on the right-hand side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions.attr._arguments import Target, check_reference, target_indices

__all__ = ["ClassOblivious", "ClassSpecific", "Objective", "Reference"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""What a filter is to make small: called with the network's output (B, ...) with the filter and without it, it returns
one number for each example, (B,)."""


@checked_constructor
@dataclass(frozen=True)
class ClassOblivious:
    """||NT(x) - NT_f(x)||^2: keep the whole output, whatever it is.

    Examples:
        >>> ClassOblivious()(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([2.])
    """

    def __call__(self, output: Tensor, original: Tensor) -> Tensor:
        """Return the squared distance of each example."""
        return (output - original).square().reshape(len(output), -1).sum(dim=1)


@checked_constructor
@dataclass(frozen=True, eq=False)
class Reference:
    """||R - NT_f(x)||^2: come as close as possible to a given output, such as another image's embedding.

    Args:
        reference: (B, K), or (1, K) for all examples.

    Examples:
        >>> Reference(torch.ones(1, 2))(torch.zeros(3, 2), torch.zeros(3, 2))
        tensor([2., 2., 2.])
    """

    reference: Tensor

    def __call__(self, output: Tensor, original: Tensor) -> Tensor:  # noqa: ARG002
        """Return the squared distance of each example."""
        return (output - self.reference.to(output)).square().sum(dim=1)


@checked_constructor
@dataclass(frozen=True, eq=False)
class ClassSpecific:
    """sum_{j != c} NT_f(x)_j - NT_f(x)_c: keep class c and suppress the others, on raw logits.

    Args:
        indices: (B, D - 1) integers, the position of each example's target in an output of D dimensions; the first
            column is the class, and j runs over it.

    Examples:
        >>> ClassSpecific(torch.tensor([[2]]))(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3))
        tensor([0.])
    """

    indices: Tensor

    def __call__(self, output: Tensor, original: Tensor) -> Tensor:  # noqa: ARG002
        """Return the sum of the other classes' logits less the target's."""
        examples = torch.arange(len(output), device=output.device)
        classes, *elsewhere = self.indices.to(output.device).unbind(dim=1)
        return output.sum(dim=1)[(examples, *elsewhere)] - 2 * output[(examples, classes, *elsewhere)]


def objective_for(
    output: Tensor, target: Target | None, reference: Tensor | None, objective: Objective | None
) -> Objective:
    """Return the objective that arguments of ``attribute`` ask for, checked against the output.

    An objective of the user's own is given outputs in the precision of ``output``.
    """
    if objective is not None:
        return lambda found, original: objective(found.to(output.dtype), original.to(output.dtype))
    if reference is not None:
        return Reference(check_reference(reference, output))
    if target is not None:
        return ClassSpecific(target_indices(target, output))
    if output.ndim > 2:
        raise ValueError(
            f"forward_func must return (B, K) where no target is given, got shape {tuple(output.shape)}; pass a "
            "target, or an objective of your own"
        )
    return ClassOblivious()
