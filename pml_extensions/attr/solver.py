"""What an iterative solver is given and what it returns; a solver of your own needs nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pml_extensions._constructors import checked_constructor

__all__ = ["Solution", "Solver", "value_and_gradient"]


@checked_constructor
@dataclass(frozen=True)
class Solution:
    """What a solver found, for each example.

    Attributes:
        parameters: (B, P) what the filter is made from.
        objective: (B,) the value of the objective there.
        steps: (B,) steps taken; 0 for a closed form.
        converged: (B,) whether the stopping rule was met before the steps ran out.
    """

    parameters: Tensor
    objective: Tensor
    steps: Tensor
    converged: Tensor


class Solver(Protocol):
    """What an iterative solver can do; write another one by giving a class this method.

    Examples:
        >>> class OneStep:
        ...     def minimize(self, function, start, after_step):
        ...         _, gradient = value_and_gradient(function, start)
        ...         after_step()
        ...         found, steps = start - 0.1 * gradient, torch.ones(len(start))
        ...         return Solution(found, function(found), steps, steps > 0)
        >>> OneStep().minimize(lambda x: x.square().sum(1), torch.ones(1, 2), lambda: None).objective
        tensor([1.2800])
    """

    def minimize(
        self, function: Callable[[Tensor], Tensor], start: Tensor, after_step: Callable[[], object]
    ) -> Solution:
        """Minimise ``function``, (B, P) -> (B,), each row on its own, from ``start``; call ``after_step`` each step."""


def value_and_gradient(function: Callable[[Tensor], Tensor], parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values (B,) of ``function`` at ``parameters`` (B, P) and their gradients (B, P).

    Examples:
        >>> value_and_gradient(lambda x: x.square().sum(1), torch.tensor([[1.0, 2.0]]))
        (tensor([5.]), tensor([[2., 4.]]))
    """
    parameters = parameters.detach().requires_grad_()
    with torch.enable_grad():
        values = function(parameters)
    (gradient,) = torch.autograd.grad(values, parameters, torch.ones_like(values))
    return values.detach(), gradient
