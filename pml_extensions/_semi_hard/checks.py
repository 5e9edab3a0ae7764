"""Checks of a batch: embeddings, labels and references."""

from typing import Any

from torch import Tensor


def check_batch(embeddings: Any, labels: Any, what: str = "") -> None:
    """Raise if the embeddings are no matrix, or the labels are no integers, one for each embedding."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        raise TypeError(f"{what}embeddings must be a floating-point tensor, got {kind(embeddings)}")
    if embeddings.ndim != 2:
        raise ValueError(f"{what}embeddings must have shape (batch, dimension), got {tuple(embeddings.shape)}")
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise TypeError(f"{what}labels must be a tensor of integers, got {kind(labels)}; use torch.tensor(labels)")
    if labels.ndim != 1:
        raise ValueError(f"{what}labels must have shape (batch,), got {tuple(labels.shape)}; pass class numbers")
    if len(labels) != len(embeddings):
        raise ValueError(f"{what}labels must be as many as embeddings, got {len(labels)} for {len(embeddings)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"{what}labels must be integers, got {labels.dtype}; use labels.long() if they are class numbers"
        )


def check_references(embeddings: Tensor, ref_emb: Any, ref_labels: Any) -> None:
    """Raise if the references are no batch, or are not as wide as the embeddings."""
    check_batch(ref_emb, ref_labels, "ref_")
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_embeddings must be as wide as embeddings, got {ref_emb.shape[1]} columns for {embeddings.shape[1]}"
        )


def kind(value: Any) -> str:
    """Return what an error message says of a value: its type, or the type of a tensor's numbers."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
