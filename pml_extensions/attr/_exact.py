"""Maps in closed form, where the objective is a quadratic function of the filter.

It is one where what follows the layer is affine, as global pooling and a linear layer are, and the objective is linear
or quadratic in the output. Both are found out from values: the model is built from derivatives at f = 1 and has to
foretell the output and the objective at other filters.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pml_extensions.attr._problem import Problem
from pml_extensions.attr._recording import Recording
from pml_extensions.attr._sphere import minimize_on_sphere
from pml_extensions.attr.filters import UnitNorm
from pml_extensions.attr.layouts import per_place
from pml_extensions.attr.solver import Solution

_CHUNK = 2**24  # elements of activations that pass through the tail at once


def solve_exactly(problem: Problem) -> tuple[Solution, Tensor] | None:
    """Return the global minimum, and for which examples (B,) it is one; None if there is no closed form for any.

    A filter object other than the unit norm has none.
    """
    if type(problem.filter) is not UnitNorm or not problem.capture.precise:
        return None
    affine = _tail_is_affine(problem)
    if not affine.any():
        return None
    output = problem.original.clone().requires_grad_()
    with torch.enable_grad():
        objective = problem.objective(output)
        (cotangent,) = torch.autograd.grad(objective.sum(), output, create_graph=True)
    slope = _slope(problem, cotangent.detach())
    if not cotangent.requires_grad:  # the objective is linear in the output
        Q = None
        filters = _unit(-slope)
    else:
        J = _jacobian(problem)
        HJ = torch.autograd.grad(cotangent, output, J, is_grads_batched=True)[0]
        Q = torch.einsum("pbk,qbk->bpq", *(matrix.reshape(*J.shape[:2], -1).cpu().double() for matrix in (J, HJ)))
        Q = (Q + Q.mT) / 2
        h = slope.cpu().double() - Q.sum(2)
        filters = minimize_on_sphere(Q, h, torch.ones_like(h)).to(slope)
    with torch.no_grad():
        reached = problem.value(filters)
    step, curved = filters - 1, torch.zeros_like(slope[:, :1, None]) if Q is None else Q.to(slope)
    foretold = objective.detach() + _model(slope, curved, step)
    scale = objective.detach().abs() + reached.abs() + _model(slope.abs(), curved.abs(), step.abs())
    exact = affine & ((reached - foretold).abs() <= _tolerance(problem) * scale)
    steps = torch.zeros(len(exact), dtype=torch.long, device=exact.device)
    return Solution(filters, reached, steps, exact), exact


def _tail_is_affine(problem: Problem) -> Tensor:
    """Say for each example whether the output at a random filter is what the derivative at f = 1 foretells."""
    probe = problem.probe()
    noise = torch.randn(math.prod(problem.grid), generator=torch.Generator().manual_seed(1)).to(probe)
    filters = F.normalize(noise, dim=0).expand(problem.examples, -1)
    slope = _slope(problem, probe)
    with torch.no_grad():
        output = problem.output(filters.reshape(-1, *problem.grid))
    seen = (probe * (output - problem.original)).reshape(problem.examples, -1)
    foretold = (slope * (filters - 1)).sum(1)
    scale = torch.linalg.vector_norm(seen, dim=1)
    rounding = torch.linalg.vector_norm((probe * problem.original).reshape(problem.examples, -1), dim=1)
    tolerance = _tolerance(problem)
    affine: Tensor = (seen.sum(1) - foretold).abs() <= 10 * tolerance * scale + tolerance * rounding
    return affine


def _slope(problem: Problem, cotangent: Tensor) -> Tensor:
    """Return the derivative (B, H * W) of <cotangent, output> at f = 1."""
    return per_place(problem.layout, problem.activation * problem.pull_back(cotangent)).flatten(1).to(problem.original)


def _jacobian(problem: Problem) -> Tensor:
    """Return the derivative of the output with respect to each place, (H * W, B, ...)."""
    places = math.prod(problem.grid)
    basis = torch.eye(places).to(problem.original).reshape(-1, *problem.grid)
    basis = basis.unsqueeze(1).expand(-1, problem.examples, *problem.grid)
    with torch.no_grad():
        nothing = problem.output(torch.zeros_like(basis[0]))
        if not isinstance(problem.capture.tail, Recording):  # a network run again may do what vmap does not know
            return torch.stack([problem.output(place) for place in basis]) - nothing
        chunk = max(1, _CHUNK // problem.activation.numel())
        return torch.func.vmap(problem.output, chunk_size=chunk)(basis) - nothing


def _model(slope: Tensor, Q: Tensor, step: Tensor) -> Tensor:
    """Return slope' step + step' Q step / 2."""
    return (slope * step).sum(1) + torch.einsum(
        "bp,bpq,bq->b", step, Q.expand(-1, step.shape[1], step.shape[1]), step
    ) / 2


def _unit(vectors: Tensor) -> Tensor:
    """Return the vectors at length one; a zero vector, for which every filter is as good, as a uniform one."""
    vectors = torch.where((vectors == 0).all(1, keepdim=True), 1, vectors)
    return F.normalize(vectors, dim=1, eps=0)


def _tolerance(problem: Problem) -> float:
    return 1000 * torch.finfo(problem.activation.dtype).eps
