"""Regularizers for the ``embedding_regularizer`` slot of pytorch-metric-learning losses."""

from pml_extensions._spectrum import effective_rank, mean_singular_value, svmax_bounds
from pml_extensions.regularizers.svmax import SVMaxRegularizer

__all__ = ["SVMaxRegularizer", "effective_rank", "mean_singular_value", "svmax_bounds"]
