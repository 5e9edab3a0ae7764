"""The problem that a map solves: the filter of each example that makes an objective least."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pml_extensions.attr._tail import Capture
from pml_extensions.attr.filters import Filter
from pml_extensions.attr.layouts import Layout
from pml_extensions.attr.objectives import Objective


@dataclass
class Problem:
    """min_p objective(tail(A * filter(p))), each example on its own; A is the activation (B, ...)."""

    capture: Capture
    layout: Layout
    filter: Filter
    objective_of: Objective

    def __post_init__(self) -> None:
        self.activation = self.capture.activation.detach()
        self.original = _wide(self.capture.output.detach())
        self.grid = self.layout.grid(self.activation.shape)
        self.examples = len(self.activation)

    def probe(self) -> Tensor:
        """Return a random mix of the outputs, the same for every example and in every call."""
        noise = torch.randn(self.original.shape[1:], generator=torch.Generator().manual_seed(0))
        return noise.to(self.original).expand_as(self.original)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Return the derivative of <cotangent, NT(x)> with respect to the activation."""
        output, activation = self.capture.output, self.capture.activation
        if not output.requires_grad:
            return torch.zeros_like(activation)
        (gradient,) = torch.autograd.grad(
            output, activation, cotangent.to(output), retain_graph=True, materialize_grads=True
        )
        return gradient

    def start(self) -> Tensor:
        """Return the parameters (B, P) to start from."""
        return self.filter.start(self.examples, self.grid).to(self.original)

    def filtered(self, filters: Tensor) -> Tensor:
        """Return A * f for filters f (B, *grid)."""
        return self.activation * self.layout.spread(filters, self.activation.shape).to(self.activation.dtype)

    def output(self, filters: Tensor) -> Tensor:
        """Return NT_f(x), in single precision or better."""
        return _wide(self.capture.tail(self.filtered(filters)))

    def objective(self, output: Tensor) -> Tensor:
        """Return the objective of each example, (B,)."""
        values = self.objective_of(output, self.original)
        if values.shape != (self.examples,):
            raise ValueError(
                f"objective must return one value per example, shape ({self.examples},), got {tuple(values.shape)}"
            )
        return values.to(self.original.dtype)

    def value(self, parameters: Tensor) -> Tensor:
        """Return the objective (B,) of the filters that ``parameters`` (B, P) stand for."""
        return self.objective(self.output(self.filter(parameters, self.grid)))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
