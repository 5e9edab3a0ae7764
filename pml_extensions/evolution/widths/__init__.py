"""Which dimensions of a model's weights are hidden widths, and what a narrower model of the same class is made of."""

from pml_extensions.evolution.widths.analysis import Whole, Widths, analyse
from pml_extensions.evolution.widths.cutting import cut
from pml_extensions.evolution.widths.inputs import stand_in_inputs
from pml_extensions.evolution.widths.locations import TracingError

__all__ = ["TracingError", "Whole", "Widths", "analyse", "cut", "stand_in_inputs"]
