"""Regularizers for the ``embedding_regularizer`` slot of pytorch-metric-learning losses."""

from pml_extensions.regularizers.svmax import SVMaxRegularizer, effective_rank, mean_singular_value, svmax_bounds

__all__ = ["SVMaxRegularizer", "effective_rank", "mean_singular_value", "svmax_bounds"]
