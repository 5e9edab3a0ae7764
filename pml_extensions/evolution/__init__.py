"""Knowledge Evolution: generations of training with a partial reset in between, around any training loop."""

from pml_extensions._slim_files import load_slim, save_slim
from pml_extensions._slimming import TracingError
from pml_extensions._statistics import reestimate_statistics
from pml_extensions.evolution.knowledge_evolution import Generation, KnowledgeEvolution, Split
from pml_extensions.evolution.resetting import (
    KaimingNormal,
    KaimingUniform,
    LayerDefault,
    Owner,
    ResettingRule,
    ShrinkPerturb,
)
from pml_extensions.evolution.splits.kels import KELS
from pml_extensions.evolution.splits.last_layer import LastLayer
from pml_extensions.evolution.splits.later_layers import LaterLayers
from pml_extensions.evolution.splits.magnitude import Magnitude
from pml_extensions.evolution.splits.wels import WELS
from pml_extensions.evolution.summary import Row, SlimSummary, Summary
from pml_extensions.evolution.weights import FoundWeights, find_weights

__all__ = [
    "KELS",
    "WELS",
    "FoundWeights",
    "Generation",
    "KaimingNormal",
    "KaimingUniform",
    "KnowledgeEvolution",
    "LastLayer",
    "LaterLayers",
    "LayerDefault",
    "Magnitude",
    "Owner",
    "ResettingRule",
    "Row",
    "ShrinkPerturb",
    "SlimSummary",
    "Split",
    "Summary",
    "TracingError",
    "find_weights",
    "load_slim",
    "reestimate_statistics",
    "save_slim",
]
