"""Losses for pytorch-metric-learning."""

from pml_extensions.losses.cross_batch_memory import CrossBatchMemory
from pml_extensions.losses.self_supervised import SelfSupervisedLoss
from pml_extensions.losses.semi_hard_triplet import SemiHardTripletLoss
from pml_extensions.losses.two_head import TwoHeadLoss

__all__ = ["CrossBatchMemory", "SelfSupervisedLoss", "SemiHardTripletLoss", "TwoHeadLoss"]
