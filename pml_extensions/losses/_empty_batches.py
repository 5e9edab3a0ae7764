"""What a loss does with a batch of nothing, whatever regularizes its embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pml_extensions._host import is_distributed

__all__ = ["regularized_unless_empty"]

NAME = "embedding_regularizer"


@contextmanager
def regularized_unless_empty(loss: Any, rows: int) -> Iterator[None]:
    """Let the embedding regularizers in a loss take no part in a call with no rows: nothing has no spread or length.

    One that shares its batch with other processes takes part: they wait for it.
    """
    losses = (
        [part for part in loss.modules() if has_regularizer(part)] if isinstance(loss, nn.Module) and not rows else []
    )
    regularizers = [getattr(part, NAME) for part in losses]
    try:
        for part in losses:
            setattr(part, NAME, None)
        yield
    finally:
        for part, regularizer in zip(losses, regularizers, strict=True):
            setattr(part, NAME, regularizer)


def has_regularizer(loss: nn.Module) -> bool:
    """Return whether a loss has an embedding regularizer that sees this process's batch alone."""
    regularizer = getattr(loss, NAME, None)
    return regularizer is not None and not (getattr(regularizer, "distributed", False) and is_distributed())
