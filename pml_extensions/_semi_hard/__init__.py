"""Semi-hard mining, shared by the miner and the losses."""

from pml_extensions._semi_hard.checks import check_batch, check_references
from pml_extensions._semi_hard.dissimilarities import Dissimilarity, dissimilarity
from pml_extensions._semi_hard.many_positives import SumOverManyPositives
from pml_extensions._semi_hard.mining import SemiHardMining, Triplets

__all__ = [
    "Dissimilarity",
    "SemiHardMining",
    "SumOverManyPositives",
    "Triplets",
    "check_batch",
    "check_references",
    "dissimilarity",
]
