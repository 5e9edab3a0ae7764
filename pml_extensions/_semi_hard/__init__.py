"""Semi-hard mining, shared by the miner and the losses."""

from pml_extensions._semi_hard.block_sums import sum_at_once
from pml_extensions._semi_hard.checks import check_batch, check_device, check_embeddings, check_labels
from pml_extensions._semi_hard.dissimilarities import Dissimilarity, dissimilarity, precision
from pml_extensions._semi_hard.mining import Block, SemiHardMining, Triplets
from pml_extensions._semi_hard.shipped import Shipped

__all__ = [
    "Block",
    "Dissimilarity",
    "SemiHardMining",
    "Shipped",
    "Triplets",
    "check_batch",
    "check_device",
    "check_embeddings",
    "check_labels",
    "dissimilarity",
    "precision",
    "sum_at_once",
]
