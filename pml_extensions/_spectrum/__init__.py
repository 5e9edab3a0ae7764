"""Singular values of a batch of embeddings: their decomposition, derivatives of their sum, and what they measure."""

from pml_extensions._spectrum.decomposition import safe_scale, singular_values_and_polar_factor
from pml_extensions._spectrum.derivatives import nuclear_norm
from pml_extensions._spectrum.measures import (
    effective_rank,
    entropy_rank,
    floating_matrix,
    mean_singular_value,
    spread_between_bounds,
    svmax_bounds,
)

__all__ = [
    "effective_rank",
    "entropy_rank",
    "floating_matrix",
    "mean_singular_value",
    "nuclear_norm",
    "safe_scale",
    "singular_values_and_polar_factor",
    "spread_between_bounds",
    "svmax_bounds",
]
