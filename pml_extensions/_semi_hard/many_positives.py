"""The loss of anchors with many positives without a list of triplets.

A batch of two classes has B^2 / 2 anchor-positive pairs, so that even the list of its triplets is larger than the
matrix of distances. Each block of rows gives its losses and their gradient at once; only the gradient, (B, d), is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_extensions._semi_hard.mining import SemiHardMining


class SumOverManyPositives(torch.autograd.Function):
    """The sum of ``losses_of(d(a, p) - d(a, n))`` over the pairs of the anchors with many positives."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, mining: SemiHardMining, losses_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Sum the losses block by block; ``x`` and ``y`` are those of the mining's dissimilarity."""
        total = x.new_zeros((), dtype=x.dtype)
        x_grad, y_grad = torch.zeros_like(x), torch.zeros_like(y)
        wide = mining.dissimilarity
        for anchors, rows, ordered in mining.sorted_rows():
            distances = wide.of_rows(rows, anchors)
            gaps = distances.gather(1, ordered.columns) - distances.gather(1, ordered.negatives)
            loss, slopes = value_and_slope(losses_of, gaps, ordered.is_positive)
            total += loss
            if any(ctx.needs_input_grad):
                weights = torch.zeros_like(rows).scatter_(1, ordered.columns, slopes)
                weights.scatter_add_(1, ordered.negatives, -slopes)
                x_block, y_all = wide.gradient(rows, anchors, weights)
                x_grad.index_add_(0, anchors, x_block)
                y_grad += y_all
        ctx.save_for_backward(x_grad, y_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the gradient that the forward pass kept."""
        x_grad, y_grad = ctx.saved_tensors
        return grad * x_grad, grad * y_grad, None, None


def value_and_slope(losses_of: Callable[[Tensor], Tensor], gaps: Tensor, is_positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of the positives' gaps, and their derivatives, zero elsewhere."""
    with torch.enable_grad():
        gaps = gaps.requires_grad_()
        total = (losses_of(gaps) * is_positive).sum()
        (slopes,) = torch.autograd.grad(total, gaps)
    return total.detach(), slopes
