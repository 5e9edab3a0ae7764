"""The engine that narrows any torch module: which dimensions of its weights are hidden widths, and how to cut them."""

from pml_extensions._slimming.analysis import Whole, Widths, analyse
from pml_extensions._slimming.cutting import cut
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.telling import with_unread_integers
from pml_extensions._slimming.tracing.copies import copy_with, weightless
from pml_extensions._slimming.tracing.forward import CountOperations, shapes_of_output, undisturbed, watch_operands
from pml_extensions._slimming.tracing.operands import NOT_MULTIPLIED, Operands
from pml_extensions._slimming.tracing.stand_ins import ShapesOnly, outputs_in, stand_in, tensors_in, without_values

__all__ = [
    "NOT_MULTIPLIED",
    "CountOperations",
    "Operands",
    "ShapesOnly",
    "TracingError",
    "Whole",
    "Widths",
    "analyse",
    "copy_with",
    "cut",
    "outputs_in",
    "shapes_of_output",
    "stand_in",
    "tensors_in",
    "undisturbed",
    "watch_operands",
    "weightless",
    "with_unread_integers",
    "without_values",
]
