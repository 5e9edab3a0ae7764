"""The statistics of norms, estimated anew from some batches, of any network."""

from pml_extensions._statistics.batches import inputs_of
from pml_extensions._statistics.estimates import statistics_of
from pml_extensions._statistics.evaluation import device_of, evaluating, unwrapped
from pml_extensions._statistics.reestimation import reestimate_statistics

__all__ = ["device_of", "evaluating", "inputs_of", "reestimate_statistics", "statistics_of", "unwrapped"]
