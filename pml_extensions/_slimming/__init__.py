"""The engine that narrows any torch module: which dimensions of its weights are hidden widths, and how to cut them."""

from pml_extensions._slimming.analysis import Whole, Widths, analyse
from pml_extensions._slimming.cutting import cut
from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing.forward import operations
from pml_extensions._slimming.tracing.inputs import ExampleInput, stand_in_inputs
from pml_extensions._slimming.tracing.operands import NOT_MULTIPLIED, operand_uses

__all__ = [
    "NOT_MULTIPLIED",
    "ExampleInput",
    "TracingError",
    "Whole",
    "Widths",
    "analyse",
    "cut",
    "operand_uses",
    "operations",
    "stand_in_inputs",
]
