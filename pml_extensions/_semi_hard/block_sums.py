"""A sum of many terms, each of which gives its gradient at once, so that nothing of it has to be kept.

A batch of two classes has B^2 / 2 anchor-positive pairs: even the list of its triplets is larger than the matrix of
distances. Of each block of rows only the gradient is kept, which is as large as the embeddings.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

__all__ = ["is_transformed", "sum_at_once"]


def sum_at_once(term: Callable[..., Tensor], blocks: Callable[[], Iterable[Any]], *inputs: Tensor) -> Tensor:
    """Return the sum of ``term(block, *inputs)``, a scalar, over all of ``blocks()``, one or more.

    Args:
        term: a differentiable function of the inputs, and of no other tensor that needs a gradient.
        blocks: returns the blocks, the same in every call.
        *inputs: at least one tensor.
    """
    if is_transformed() or any(has_tangent(one) for one in inputs):
        return torch.stack([term(block, *inputs) for block in blocks()]).sum()
    total: Tensor = SumAtOnce.apply(term, blocks, *inputs)
    return total


class SumAtOnce(torch.autograd.Function):
    """The sum, with its gradients for the inputs found in the forward pass."""

    @staticmethod
    def forward(ctx: Any, term: Callable[..., Tensor], blocks: Callable[[], Iterable[Any]], *inputs: Tensor) -> Any:
        """Add up the values, and the gradients of the inputs that need one."""
        ctx.term, ctx.blocks = term, blocks
        needed = ctx.needs_input_grad[2:]
        leaves = [one.detach().requires_grad_(need) for one, need in zip(inputs, needed, strict=True)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = [torch.zeros_like(leaf) for leaf in wanted]
        total: Any = None
        for block in blocks():
            with torch.set_grad_enabled(bool(wanted)):
                value = term(block, *leaves)
            for grad, part in zip(grads, torch.autograd.grad(value, wanted) if wanted else (), strict=True):
                grad.add_(part)
            # in place: small results kept between the blocks' large ones would pin freed memory
            total = value.detach().clone() if total is None else total.add_(value.detach())
        found = iter(grads)
        ctx.save_for_backward(*inputs, *(next(found) if need else None for need in needed))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients; if they are to be differentiated, find them again by blocks, differentiably."""
        needed = ctx.needs_input_grad[2:]
        inputs, grads = ctx.saved_tensors[: len(needed)], ctx.saved_tensors[len(needed) :]
        if torch.is_grad_enabled():
            inputs = [one.view_as(one) for one in inputs]  # one tensor given twice has two gradients
            terms = [checkpoint(ctx.term, block, *inputs, use_reentrant=False) for block in ctx.blocks()]
            wanted = [one for one, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(torch.stack(terms).sum(), wanted, grad, create_graph=True))
            grads = [next(found) if need else None for need in needed]
        else:
            grads = [grad * one if need else None for one, need in zip(grads, needed, strict=True)]
        return None, None, *grads


def has_tangent(tensor: Tensor) -> bool:
    """Return whether a derivative is carried forward with a tensor."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def is_transformed() -> bool:
    """Return whether ``torch.func`` is at work: its tensors have no memory of their own, nor custom functions here."""
    return bool(torch._C._are_functorch_transforms_active())  # noqa: SLF001  # torch tells it nowhere else
