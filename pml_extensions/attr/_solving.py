"""From a problem to filters: in closed form where there is one, by a solver elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from captum._utils.progress import NullProgress, progress
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions.attr._exact import solve_exactly
from pml_extensions.attr._problem import Problem
from pml_extensions.attr._warning import warn_user
from pml_extensions.attr.lbfgs import LBFGS
from pml_extensions.attr.solver import Solution, Solver

_UNIFORM = 1e-3  # spread of a filter's values, over the greatest of them


@checked_constructor
@dataclass(frozen=True)
class Report:
    """How a map was found, for each example.

    Attributes:
        objective: (B,) the objective at the map's filter.
        steps: (B,) passes of what follows the layer that the iterative solver took; 0 for a closed form.
        converged: (B,) whether the solver's stopping rule was met; always so for a closed form.
        exact: (B,) whether the filter is the global minimum, in closed form.
    """

    objective: Tensor
    steps: Tensor
    converged: Tensor
    exact: Tensor


def joined(reports: Sequence[Report]) -> Report:
    """Return the report on all examples of several."""
    columns = zip(*(vars(report).values() for report in reports), strict=True)
    return Report(*(torch.cat(column) for column in columns))


def solve(problem: Problem, solver: Solver | None, *, show_progress: bool) -> tuple[Tensor, Report]:
    """Return the filters (B, *grid) and how they were found; without a solver, in closed form where there is one."""
    solution, exact = (solve_exactly(problem) if solver is None else None) or (None, None)
    if solution is None or exact is None or not exact.all():
        with progress(desc="L2CAF attribution") if show_progress else NullProgress() as bar:
            found = (solver or LBFGS()).minimize(problem.value, problem.start(), bar.update)
        solution = found if solution is None or exact is None else _where(exact, solution, found)
    exact = torch.zeros_like(solution.converged) if exact is None else exact
    with torch.no_grad():
        filters = problem.filter(solution.parameters, problem.grid)
    flat = filters.flatten(1)
    uniform = flat.amax(1) - flat.amin(1) <= _UNIFORM * flat.abs().amax(1)
    if flat.shape[1] > 1 and (uniform & solution.converged).any():
        warn_user(
            "a map is uniform: no place matters more than another. An output that is normalised to unit length does "
            "not feel a uniform filter at all; explain what it was before"
        )
    dtype = problem.capture.dtype
    return filters.to(dtype), Report(solution.objective.to(dtype), solution.steps, solution.converged, exact)


def _where(chosen: Tensor, one: Solution, other: Solution) -> Solution:
    fields = zip(vars(one).values(), vars(other).values(), strict=True)
    return Solution(*(torch.where(chosen[:, None] if a.ndim == 2 else chosen, a, b) for a, b in fields))
