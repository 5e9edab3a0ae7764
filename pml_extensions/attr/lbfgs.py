"""A quasi-Newton solver for a batch of independent problems, each with its own step length, restarts and end.

Source: Nocedal and Wright, Numerical Optimization, algorithm 7.4 (two-loop recursion); Lewis and Overton, Nonsmooth
optimization via quasi-Newton methods, 2013, algorithm 2.6 (a line search that copes with kinks, such as those of ReLU).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer, check_number
from pml_extensions.attr.solver import Solution, value_and_gradient

__all__ = ["LBFGS"]

_SHORT, _LONG = 0.25, 3.0  # length of a run's first step, as a share of the length of its start
_RUNS = 3
_DECREASE, _CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
_SHORTEST = 1e-7


@checked_constructor
@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS from three starts, of which the best end is kept.

    Beyond the last feature map the objective has many local minima. The runs start from the published start with a
    short first step, from there with a long one, and down the first gradient.

    Args:
        steps: the greatest number of passes (forward and backward) of what follows the layer, all runs together.
            Default: 100.
        tolerance: end a run when the decrease that is still expected falls below this share of what it has gained.
            Default: 1e-4.
        history: how many past steps shape the next one. Default: 10.

    Raises:
        TypeError: if ``steps`` or ``history`` is no integer, or ``tolerance`` no number.
        ValueError: if ``steps`` or ``history`` is below 1, or ``tolerance`` negative or not finite.

    Examples:
        >>> LBFGS(steps=50).history
        10
    """

    steps: int = 100
    tolerance: float = 1e-4
    history: int = 10

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, least=1)
        check_integer("history", self.history, least=1)
        check_number("tolerance", self.tolerance)
        if self.tolerance < 0:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance}")

    def minimize(
        self, function: Callable[[Tensor], Tensor], start: Tensor, after_step: Callable[[], object]
    ) -> Solution:
        """Minimise ``function``, (B, P) -> (B,), each row on its own, from ``start`` (B, P)."""
        search = _Search(start, self)
        for _ in range(self.steps):
            search.update(*value_and_gradient(function, search.trial()))
            after_step()
            if not search.running.any():
                break
        return search.solution()


class _Search:
    """Where each example stands: current point, direction, bracket of the step length, and the best point so far."""

    def __init__(self, start: Tensor, settings: LBFGS) -> None:
        self.tolerance = settings.tolerance
        self.curvature = _Curvature(start, settings.history)
        self.start, self.best_x = start, start
        self.best_f = torch.full_like(start[:, 0], torch.inf)
        self.first_gradient = torch.zeros_like(start)
        self.run = torch.zeros(len(start), dtype=torch.long, device=start.device)
        self.steps = torch.zeros_like(self.run)
        self.running = torch.ones_like(self.run, dtype=torch.bool)
        self.x, self.f, self.g, self.d = start, self.best_f, self.first_gradient, torch.zeros_like(start)
        self.f_start, self.t = torch.zeros_like(self.f), torch.ones_like(self.f)
        self.low, self.high = torch.zeros_like(self.t), torch.full_like(self.t, torch.inf)

    def trial(self) -> Tensor:
        """Return the points (B, P) to look at next."""
        return torch.where(self.running[:, None], self.x + self.t[:, None] * self.d, self.x)

    def update(self, f: Tensor, g: Tensor) -> None:
        """Take in the values and gradients at the trial points."""
        slope, slope_there = (self.g * self.d).sum(1), (g * self.d).sum(1)
        fresh = self.f.isinf()
        low_enough = fresh | (f <= self.f + _DECREASE * self.t * slope)
        flat_enough = fresh | (slope_there >= _CURVATURE * slope)
        accepted = self.running & low_enough & flat_enough
        self._move_bracket(
            f, slope, too_long=self.running & ~low_enough, too_short=self.running & low_enough & ~flat_enough
        )
        self.steps = self.steps + self.running
        self._accept(accepted, fresh, f, g)
        expected_decrease = -(self.g * self.d).sum(1)
        gained = self.f_start - self.f
        settled = accepted & ~fresh & (expected_decrease <= self.tolerance * gained)
        stuck = self.running & (self.t < _SHORTEST)
        stationary = accepted & (self.g == 0).all(1)
        self._end_runs(settled | stuck | stationary)

    def solution(self) -> Solution:
        """Return the best points found."""
        better = self.f < self.best_f
        x = torch.where(better[:, None], self.x, self.best_x)
        return Solution(x, torch.where(better, self.f, self.best_f), self.steps, self.run > 0)

    def _accept(self, accepted: Tensor, fresh: Tensor, f: Tensor, g: Tensor) -> None:
        column = accepted[:, None]
        x = torch.where(column, self.x + self.t[:, None] * self.d, self.x)
        g = torch.where(column, g, self.g)
        self.curvature.learn(x - self.x, g - self.g, accepted & ~fresh)
        self.first_gradient = torch.where((fresh & (self.run == 0))[:, None], g, self.first_gradient)
        self.f_start = torch.where(fresh, f, self.f_start)
        self.x, self.f, self.g = x, torch.where(accepted, f, self.f), g
        share = torch.where(self.run == 1, _LONG, _SHORT)
        first_step = share * _length(self.x).clamp_min(1) / _length(g).clamp_min(torch.finfo(g.dtype).tiny)
        self.d = torch.where(column, -self.curvature.apply_inverse(g, first_step), self.d)
        self.t = torch.where(accepted, 1, self.t)
        self._open_bracket(accepted)

    def _open_bracket(self, where: Tensor) -> None:
        self.low = torch.where(where, 0, self.low)
        self.high = torch.where(where, torch.inf, self.high)

    def _move_bracket(self, f: Tensor, slope: Tensor, too_long: Tensor, too_short: Tensor) -> None:
        self.high = torch.where(too_long, self.t, self.high)
        self.low = torch.where(too_short, self.t, self.low)
        between = torch.where(self.high.isinf(), 2 * self.low, (self.low + self.high) / 2)
        parabola = -slope * self.t.square() / (2 * (f - self.f - slope * self.t))
        parabola = torch.maximum(0.1 * self.t, torch.minimum(parabola, 0.5 * self.t))
        use_parabola = too_long & (self.low == 0) & parabola.isfinite()
        self.t = torch.where(too_long | too_short, torch.where(use_parabola, parabola, between), self.t)

    def _end_runs(self, ended: Tensor) -> None:
        better = ended & (self.f < self.best_f)
        self.best_x = torch.where(better[:, None], self.x, self.best_x)
        self.best_f = torch.where(better, self.f, self.best_f)
        self.run = self.run + ended
        self.running = self.running & (self.run < _RUNS)
        down = -self.first_gradient / _length(self.first_gradient).clamp_min(torch.finfo(self.f.dtype).tiny)[:, None]
        down = down * _length(self.start).clamp_min(1)[:, None]
        restart = torch.where((self.run == 1)[:, None], self.start, down)
        column = ended[:, None]
        self.x, self.d = torch.where(column, restart, self.x), torch.where(column, 0, self.d)
        self.f, self.t = torch.where(ended, torch.inf, self.f), torch.where(ended, 1, self.t)
        self.curvature.forget(ended)
        self._open_bracket(ended)


class _Curvature:
    """The last steps of each example and what they did to its gradient; a missing pair is zeros and does nothing."""

    def __init__(self, like: Tensor, history: int) -> None:
        self.steps = like.new_zeros(history, *like.shape)
        self.changes = torch.zeros_like(self.steps)

    def learn(self, step: Tensor, change: Tensor, where: Tensor) -> None:
        """Add a pair to the examples ``where`` it curves upwards."""
        product = (step * change).sum(1)
        where = where & (product > 1e-10 * _length(step) * _length(change))
        for kept, new in ((self.steps, step), (self.changes, change)):
            shifted = torch.cat([kept[1:], new[None]])
            kept.copy_(torch.where(where[:, None], shifted, kept))

    def forget(self, where: Tensor) -> None:
        """Start anew in the examples ``where``."""
        self.steps[:, where] = 0
        self.changes[:, where] = 0

    def apply_inverse(self, gradient: Tensor, scale_if_empty: Tensor) -> Tensor:
        """Return the inverse Hessian, as far as it is known, times the gradient."""
        products = (self.steps * self.changes).sum(2)
        rho = torch.where(products > 0, 1 / products, 0)[..., None]
        direction, alphas = gradient, []
        for step, change, r in zip(self.steps.flip(0), self.changes.flip(0), rho.flip(0), strict=True):
            alphas.append(r * (step * direction).sum(1, keepdim=True))
            direction = direction - alphas[-1] * change
        squares = self.changes[-1].square().sum(1)
        direction = torch.where(squares > 0, products[-1] / squares, scale_if_empty)[:, None] * direction
        for step, change, r, alpha in zip(self.steps, self.changes, rho, reversed(alphas), strict=True):
            direction = direction + (alpha - r * (change * direction).sum(1, keepdim=True)) * step
        return direction


def _length(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return lengths
