"""Maps in closed form, where the objective is a quadratic function of the filter.

It is one where what follows the layer is affine, as global pooling and a linear layer are, and the objective is linear
or quadratic in the output. Both are found out from values: the model is built from derivatives at f = 1 and has to
foretell the output and the objective at other filters.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pml_extensions.attr._krylov import minimize_with_products
from pml_extensions.attr._problem import Problem
from pml_extensions.attr.filters import UnitNorm
from pml_extensions.attr.layouts import per_place
from pml_extensions.attr.objectives import ClassOblivious, Reference
from pml_extensions.attr.solver import Solution


def solve_exactly(problem: Problem) -> tuple[Solution, Tensor] | None:
    """Return the global minimum, and for which examples (B,) it is one; None if there is no closed form for any.

    A filter object other than the unit norm has none.
    """
    if type(problem.filter) is not UnitNorm or not problem.capture.precise:
        return None
    trial = _random_filters(problem)
    output = _output(problem, trial)
    expansion = _Expansion(problem)
    exact = _tail_is_affine(problem, trial, output) & expansion.holds_at(output)
    if not exact.any():
        return None
    slope = _slope(problem, expansion.gradient)
    if expansion.is_linear:
        filters, Q_filters, Q_ones = _unit(-slope), torch.zeros_like(slope), torch.zeros_like(slope)
    else:
        constant = _output(problem, torch.zeros_like(slope))
        Q_ones = _slope(problem, expansion.bend(problem.original - constant))
        filters, Q_filters = minimize_with_products(
            lambda vectors: _slope(problem, expansion.bend(_output(problem, vectors) - constant)),
            slope - Q_ones,
            preferred=torch.ones_like(slope),
            convex=isinstance(problem.objective_of, ClassOblivious | Reference),
        )
    with torch.no_grad():
        reached = problem.value(filters)
    foretold = [slope * (filters - 1), filters * Q_filters / 2, -filters * Q_ones, Q_ones / 2]
    exact = exact & _agree(problem, reached, expansion.value, foretold)
    steps = torch.zeros(len(exact), dtype=torch.long, device=exact.device)
    return Solution(filters, reached, steps, exact), exact


class _Expansion:
    """The objective to second order in the output, around the output without a filter.

    Attributes:
        value: (B,) of the objective.
        gradient: (B, ...) its derivative.
        is_linear: whether there is no second order.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._output = problem, problem.original.clone().requires_grad_()
        with torch.enable_grad():
            value = problem.objective(self._output)
            (self._gradient,) = torch.autograd.grad(value.sum(), self._output, create_graph=True)
        self.value, self.gradient, self.is_linear = (
            value.detach(),
            self._gradient.detach(),
            not self._gradient.requires_grad,
        )

    def bend(self, change: Tensor) -> Tensor:
        """Return the change of the gradient, to first order."""
        return torch.autograd.grad(self._gradient, self._output, change, retain_graph=True)[0]

    def holds_at(self, output: Tensor) -> Tensor:
        """Say for each example whether the objective at another output is as foretold."""
        change = output - self._problem.original
        foretold = [self.gradient * change]
        if not self.is_linear:
            foretold.append(self.bend(change) * change / 2)
        with torch.no_grad():
            return _agree(self._problem, self._problem.objective(output), self.value, foretold)


def _agree(problem: Problem, found: Tensor, before: Tensor, changes: list[Tensor]) -> Tensor:
    """Say for each example whether a value (B,) is the one before plus all changes (B, ...), but for rounding."""
    changes = [change.reshape(len(change), -1) for change in changes]
    foretold = before + sum(change.sum(1) for change in changes)
    size = before.abs() + found.abs() + sum(change.abs().sum(1) for change in changes)
    return (found - foretold).abs() <= _tolerance(problem) * size


def _random_filters(problem: Problem) -> Tensor:
    """Return a random filter (B, P) of unit norm, the same for every example."""
    noise = torch.randn(math.prod(problem.grid), generator=torch.Generator().manual_seed(1)).to(problem.original)
    return F.normalize(noise, dim=0).expand(problem.examples, -1)


def _output(problem: Problem, filters: Tensor) -> Tensor:
    with torch.no_grad():
        return problem.output(filters.reshape(-1, *problem.grid))


def _tail_is_affine(problem: Problem, filters: Tensor, output: Tensor) -> Tensor:
    """Say for each example whether the output at some filters is what the derivative at f = 1 foretells."""
    probe = problem.probe()
    seen = (probe * (output - problem.original)).reshape(problem.examples, -1)
    foretold = (_slope(problem, probe) * (filters - 1)).sum(1)
    scale = torch.linalg.vector_norm(seen, dim=1)
    rounding = torch.linalg.vector_norm((probe * problem.original).reshape(problem.examples, -1), dim=1)
    tolerance = _tolerance(problem)
    affine: Tensor = (seen.sum(1) - foretold).abs() <= 10 * tolerance * scale + tolerance * rounding
    return affine


def _slope(problem: Problem, cotangent: Tensor) -> Tensor:
    """Return the derivative (B, P) of <cotangent, output> at f = 1."""
    gradient = problem.pull_back(cotangent)
    return per_place(problem.layout, torch.mul, problem.activation, gradient).flatten(1).to(problem.original)


def _unit(vectors: Tensor) -> Tensor:
    """Return the vectors at length one; a zero vector, for which every filter is as good, as a uniform one."""
    vectors = torch.where((vectors == 0).all(1, keepdim=True), 1, vectors)
    return F.normalize(vectors, dim=1, eps=0)


def _tolerance(problem: Problem) -> float:
    return 1000 * torch.finfo(problem.activation.dtype).eps
