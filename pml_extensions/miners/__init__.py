"""Miners for pytorch-metric-learning."""

from pml_extensions.miners.semi_hard import SemiHardMiner

__all__ = ["SemiHardMiner"]
