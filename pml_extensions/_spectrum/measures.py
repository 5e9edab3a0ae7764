"""What the singular values of a batch of embeddings tell about its spread, as functions of the batch.

Source: Taha, Hanson, Shrivastava and Davis, "SVMax: A Feature Embedding Regularizer", arXiv:2103.02770, section 3; for
the effective rank Garrido et al., "RankMe", arXiv:2210.02885.
"""

import math

import torch
from torch import Tensor

from pml_extensions._spectrum.derivatives import nuclear_norm


def mean_singular_value(embeddings: Tensor) -> Tensor:
    """Return the mean singular value of a batch: the sum of its singular values, divided by the embedding size.

    The rows are taken as they are, neither normalised nor centred. Differentiable twice, backward, forward and under
    ``torch.func``; compiled, once. Singular values that are zero up to rounding stay zero: they contribute nothing to a
    derivative.

    Args:
        embeddings: the batch; half precision is computed in float32.

    Shape:
        embeddings (b, d); the result is a scalar, float32 or float64.

    Returns:
        ``||embeddings||_* / d``; NaN if an embedding is not finite.

    Raises:
        TypeError: ``embeddings`` is not a floating-point tensor.
        ValueError: ``embeddings`` is not a non-empty matrix.
        RuntimeError: a third derivative is taken.

    Examples:
        >>> mean_singular_value(torch.eye(4))
        tensor(1.)
    """
    embeddings = floating_matrix(embeddings)
    norm, _ = nuclear_norm(embeddings)
    return norm / embeddings.shape[1]


def svmax_bounds(batch_size: int, embedding_size: int) -> tuple[float, float]:
    """Return the least and the greatest mean singular value that a batch of unit-length embeddings can have.

    The least is that of a batch on one line, the greatest that of a batch with equal singular values
    (arXiv:2103.02770, section 3).

    Args:
        batch_size: the number of rows, b.
        embedding_size: the length of a row, d.

    Returns:
        ``(sqrt(b) / d, sqrt(b * min(b, d)) / d)``.

    Raises:
        ValueError: one of the sizes is not positive.

    Examples:
        >>> svmax_bounds(144, 64)
        (0.1875, 1.5)
    """
    for name, size in (("batch_size", batch_size), ("embedding_size", embedding_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    least = math.sqrt(batch_size) / embedding_size
    return least, least * math.sqrt(min(batch_size, embedding_size))


def effective_rank(embeddings: Tensor) -> Tensor:
    """Return how many directions a batch of embeddings uses: the exponential of its spectrum's entropy.

    The singular values, divided by their sum, are read as probabilities (RankMe, Garrido et al., arXiv:2210.02885,
    without its added epsilon; 0 log 0 = 0). Nothing is centred or normalised. The result lies between 1, for a batch
    that collapsed to a point or a line, and min(b, d). It is a diagnostic without a gradient.

    Args:
        embeddings: the batch; half precision is computed in float32.

    Shape:
        embeddings (b, d); the result is a scalar, float32 or float64.

    Raises:
        TypeError: ``embeddings`` is not a floating-point tensor.
        ValueError: ``embeddings`` is not a non-empty matrix.

    Examples:
        >>> effective_rank(torch.ones(8, 3)), effective_rank(torch.eye(4))
        (tensor(1.), tensor(4.))
    """
    return entropy_rank(nuclear_norm(floating_matrix(embeddings).detach())[1])


def floating_matrix(embeddings: Tensor, may_be_empty: bool = False) -> Tensor:
    """Return ``embeddings`` in float32 or wider, after checking that they are a batch."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"embeddings must be a floating-point tensor, got {got}")
    if embeddings.ndim != 2 or 0 in embeddings.shape[int(may_be_empty) :]:
        raise ValueError(f"embeddings must be a non-empty matrix (b, d), got shape {tuple(embeddings.shape)}")
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def spread_between_bounds(norm: Tensor, frobenius: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return how far the mean singular value has come from its lower (0) to its upper bound (1)."""
    most = math.sqrt(min(shape))
    if most == 1:
        return 1 + 0 * norm  # one row or one column is spread and collapsed at once
    zero = frobenius == 0
    ratio = torch.where(zero, 1, norm / torch.where(zero, 1, frobenius))
    spread: Tensor = (ratio - 1) / (most - 1)
    return spread


def entropy_rank(singular_values: Tensor) -> Tensor:
    """Return the effective rank of a matrix with these singular values."""
    total = singular_values.sum()
    entropy: Tensor = torch.special.entr(singular_values / torch.where(total == 0, 1, total)).sum()
    return entropy.exp()
