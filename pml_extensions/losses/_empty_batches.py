"""What a loss does with a batch of nothing, whatever regularizes its embeddings."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pml_extensions._host import is_distributed

__all__ = ["call_with_rows"]

NAME = "embedding_regularizer"


def call_with_rows(loss: Any, rows: int, call: Callable[..., Any], *args: Any) -> Any:
    """Return ``call(*args)``; with no rows the embedding regularizers in ``loss`` take no part: nothing has no spread.

    One that shares its batch with other processes takes part: they wait for it.
    """
    if rows or not isinstance(loss, nn.Module):
        return call(*args)
    losses = [part for part in loss.modules() if has_regularizer(part)]
    regularizers = [getattr(part, NAME) for part in losses]
    try:
        for part in losses:
            setattr(part, NAME, None)
        return call(*args)
    finally:
        for part, regularizer in zip(losses, regularizers, strict=True):
            setattr(part, NAME, regularizer)


def has_regularizer(loss: nn.Module) -> bool:
    """Return whether a loss has an embedding regularizer that sees this process's batch alone."""
    regularizer = getattr(loss, NAME, None)
    return regularizer is not None and not (getattr(regularizer, "distributed", False) and is_distributed())
