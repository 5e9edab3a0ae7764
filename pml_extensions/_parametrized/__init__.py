"""Weights that a layer computes from stored tensors: what to store, so that they are drawn anew."""

from pml_extensions._parametrized.chains import Chain
from pml_extensions._parametrized.global_generator import global_generator_seeded
from pml_extensions._parametrized.weights import (
    Parametrized,
    as_made,
    hooked_weights,
    parametrized_weights,
    refresh_hooked,
)

__all__ = [
    "Chain",
    "Parametrized",
    "as_made",
    "global_generator_seeded",
    "hooked_weights",
    "parametrized_weights",
    "refresh_hooked",
]
