"""The statistics of norms, estimated anew from some batches, of any network."""

from pml_extensions._statistics.reestimation import reestimate_statistics

__all__ = ["reestimate_statistics"]
