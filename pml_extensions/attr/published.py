"""The optimiser of the authors' code.

Source: github.com/ahmdtaha/l2_caf_pytorch: SGD with a learning rate that falls linearly, from f = 1, until the loss
moves by less than a threshold between two looks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer, check_number
from pml_extensions.attr.solver import Solution, value_and_gradient

__all__ = ["PublishedSGD"]


@checked_constructor
@dataclass(frozen=True)
class PublishedSGD:
    """Plain gradient descent, as published; kept as a yardstick.

    Args:
        steps: the greatest number of steps. Default: 1000.
        learning_rate: of the first step; it falls linearly to ``final_learning_rate``. Default: 0.5.
        final_learning_rate: Default: 1e-5.
        tolerance: stop an example whose loss moved by less than this in ``look_every`` steps. Default: 1e-6.
        look_every: Default: 50.
        scale: the loss is the objective divided by this. The published class-oblivious code takes the mean over the K
            outputs where the paper has the sum: ``scale=K``. Default: 1, as published for the class-specific objective.

    Raises:
        TypeError: if ``steps`` or ``look_every`` is no integer, or another setting no number.
        ValueError: if ``steps`` or ``look_every`` is below 1, ``scale`` not positive, or a number not finite.

    Examples:
        >>> PublishedSGD(steps=100).learning_rate
        0.5
    """

    steps: int = 1000
    learning_rate: float = 0.5
    final_learning_rate: float = 1e-5
    tolerance: float = 1e-6
    look_every: int = 50
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, least=1)
        check_integer("look_every", self.look_every, least=1)
        for name in ("learning_rate", "final_learning_rate", "tolerance", "scale"):
            check_number(name, getattr(self, name))
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def minimize(
        self, function: Callable[[Tensor], Tensor], start: Tensor, after_step: Callable[[], object]
    ) -> Solution:
        """Descend from ``start`` (B, P), each example until its own stop."""
        parameters = start.detach().clone()
        running = torch.ones(len(start), dtype=torch.bool, device=start.device)
        steps = torch.zeros(len(start), dtype=torch.long, device=start.device)
        last_look = torch.full_like(start[:, 0], torch.inf)
        for step in range(self.steps):
            values, gradient = value_and_gradient(function, parameters)
            rate = self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * (1 - step / self.steps)
            parameters = torch.where(running[:, None], parameters - rate / self.scale * gradient, parameters)
            steps += running
            after_step()
            if step % self.look_every == 0:
                running = running & ~((values - last_look).abs() / self.scale < self.tolerance)
                last_look = values
                if not running.any():
                    break
        with torch.no_grad():
            return Solution(parameters, function(parameters), steps, ~running)
