"""The statistics of norms, estimated anew from some batches, of any network."""

from pml_extensions._statistics.batches import inputs_of
from pml_extensions._statistics.evaluation import unwrapped
from pml_extensions._statistics.reestimation import reestimate_statistics

__all__ = ["inputs_of", "reestimate_statistics", "unwrapped"]
