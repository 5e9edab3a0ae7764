"""Checks of a batch: embeddings, labels and references; and of the size of a block of anchors."""

from typing import Any

import torch
from torch import Tensor

from pml_extensions._host import has_own_shapes
from pml_extensions._semi_hard.dissimilarities import is_shipped


def check_batch(distance: Any, embeddings: Any, labels: Any, ref_emb: Any = None, ref_labels: Any = None) -> None:
    """Raise if embeddings and references are not what the distance takes, or their labels are not class numbers.

    A distance of the user's own may take other shapes: if its ``check_shapes`` is its own, too, that is asked, and how
    wide the references must be, it alone can tell.
    """
    own_shapes = has_own_shapes(distance)
    batches = (
        [("", embeddings, labels)] if ref_emb is None else [("", embeddings, labels), ("ref_", ref_emb, ref_labels)]
    )
    for what, batch, classes in batches:
        check_embeddings(batch, what)
        if not own_shapes:
            check_matrix(batch, what)
        check_labels(batch, classes, what)
    if own_shapes:
        distance.check_shapes(embeddings, ref_emb)
    elif is_shipped(distance) and ref_emb is not None:
        if ref_emb.shape[1] != embeddings.shape[1]:
            width, others = embeddings.shape[1], ref_emb.shape[1]
            raise ValueError(f"ref_embeddings must be as wide as embeddings, got {others} columns for {width}")
        check_device("ref_embeddings", ref_emb, "embeddings", embeddings)


def check_embeddings(embeddings: Any, what: str = "") -> None:
    """Raise if the embeddings are no floating-point tensor, or only one number."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        raise TypeError(f"{what}embeddings must be a floating-point tensor, got {kind(embeddings)}")
    if embeddings.layout != torch.strided:
        raise TypeError(f"{what}embeddings must be dense, got {embeddings.layout}; use embeddings.to_dense()")
    if not embeddings.ndim:
        check_matrix(embeddings, what)


def check_labels(embeddings: Tensor, labels: Any, what: str = "") -> None:
    """Raise if the labels, if there are any, are no integers, one for each embedding."""
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise TypeError(f"{what}labels must be a tensor of integers, got {kind(labels)}; use torch.tensor(labels)")
    if labels.layout != torch.strided:
        raise TypeError(f"{what}labels must be dense, got {labels.layout}; use labels.to_dense()")
    if labels.ndim != 1:
        raise ValueError(f"{what}labels must have shape (batch,), got {tuple(labels.shape)}; pass class numbers")
    if len(labels) != len(embeddings):
        raise ValueError(f"{what}labels must be as many as embeddings, got {len(labels)} for {len(embeddings)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"{what}labels must be integers, got {labels.dtype}; use labels.long() if they are class numbers"
        )


def check_matrix(embeddings: Tensor, what: str = "") -> None:
    """Raise unless the embeddings are a matrix, one row for each sample."""
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise ValueError(f"{what}embeddings must have shape (batch, dimension), got {tuple(embeddings.shape)}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors are on the same device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}; use "
            f"{name}.to({other_name}.device)"
        )


def kind(value: Any) -> str:
    """Return what an error message says of a value: its type, or the type of a tensor's numbers."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
