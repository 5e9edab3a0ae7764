"""A matrix whose rows are spread over the processes of ``torch.distributed``, seen from one of them.

Its spectrum is exchanged, not its rows: an all-reduce of the (d, d) Gram matrix costs the same for any number of rows
and leaves each process only the products of its own rows to compute. A matrix with fewer rows than columns is gathered
instead, since its own numbers are then fewer than those of either Gram matrix that could be summed.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_extensions._spectrum import safe_scale, singular_values_and_polar_factor


class SharedRows:
    """How many rows each process holds of one matrix, and the sums over all of them."""

    def __init__(self, rows: Tensor) -> None:
        most = rows.abs().amax() if rows.numel() else rows.new_zeros(())
        mine = torch.stack([most.double(), *most.new_tensor(rows.shape, dtype=torch.double)])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        largest, counts, widths = torch.stack(everyone).T.tolist()
        if len(set(widths)) > 1 or not sum(counts):
            shapes = [(int(b), int(d)) for b, d in zip(counts, widths, strict=True)]
            raise ValueError(f"embeddings of all processes must be one non-empty batch (b, d), got shapes {shapes}")
        self.counts = [int(count) for count in counts]
        self.total_count = sum(self.counts)
        self.largest = max(largest) if all(map(math.isfinite, largest)) else math.nan

    @staticmethod
    def total(part: Tensor) -> Tensor:
        """Return the sum of every process's ``part``, the same to the bit everywhere; overwrites it."""
        dist.all_reduce(part)
        return part

    @staticmethod
    def agree(count: int, like: Tensor) -> int:
        """Return the largest ``count`` of all processes, so that all of them take the same branch."""
        shared = like.new_tensor(count, dtype=torch.long)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of the ranks."""
        padded = rows.new_zeros(max(self.counts), rows.shape[1])
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, self.counts, strict=True)])

    def own(self, gathered: Tensor) -> Tensor:
        """Return this process's rows of a gathered matrix."""
        first = sum(self.counts[: dist.get_rank()])
        return gathered[first : first + self.counts[dist.get_rank()]]


class SharedNuclearNorm(torch.autograd.Function):
    """The nuclear norm, the Frobenius norm and the singular values of the matrix that all processes hold together.

    The gradient for the rows at hand is exact, and no other process is asked for it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shared: SharedRows) -> tuple[Tensor, Tensor, Tensor]:
        """Return both norms, and the singular values, which have no gradient."""
        with torch.autocast(rows.device.type, enabled=False):
            values, polar = spectrum(rows, shared)
        frobenius = torch.linalg.vector_norm(values)
        ctx.mark_non_differentiable(values)
        ctx.save_for_backward(rows, polar, frobenius)
        return values.sum(), frobenius, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, nuclear_grad: Tensor, frobenius_grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Return the gradient for this process's rows."""
        rows, polar, frobenius = ctx.saved_tensors
        along = rows / torch.where(frobenius == 0, 1, frobenius)
        return nuclear_grad * polar + frobenius_grad * along, None


def spectrum(rows: Tensor, shared: SharedRows) -> tuple[Tensor, Tensor]:
    """Return the singular values of the whole matrix, and this process's rows of its polar factor."""
    if math.isnan(shared.largest):
        values = rows.new_full((min(shared.total_count, rows.shape[1]),), math.nan)
        return values, torch.full_like(rows, math.nan)
    scale = safe_scale(shared.largest)
    rows = rows / scale
    if shared.total_count < rows.shape[1]:
        values, polar = singular_values_and_polar_factor(shared.gather(rows).mT)
        polar = shared.own(polar.mT)
    else:
        values, polar = singular_values_and_polar_factor(rows, among=shared)
    return values * scale, polar
