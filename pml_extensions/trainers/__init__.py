"""Trainers for pytorch-metric-learning."""

from pml_extensions.trainers.two_head import TrainTwoHead

__all__ = ["TrainTwoHead"]
