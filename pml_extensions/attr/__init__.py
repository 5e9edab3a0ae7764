"""Attention maps as captum attributions; laid out as in captum. Loads torch and captum only."""

from pml_extensions.attr.feature_layer import last_feature_layer
from pml_extensions.attr.filters import Filter, Gaussian, Softmax, UnitNorm
from pml_extensions.attr.l2_caf import L2CAF, Report
from pml_extensions.attr.layouts import ChannelsFirst, ChannelsLast, Layout, Tokens
from pml_extensions.attr.lbfgs import LBFGS
from pml_extensions.attr.objectives import ClassOblivious, ClassSpecific, Objective, Reference
from pml_extensions.attr.published import PublishedSGD
from pml_extensions.attr.solver import Solution, Solver, value_and_gradient

__all__ = [
    "L2CAF",
    "LBFGS",
    "ChannelsFirst",
    "ChannelsLast",
    "ClassOblivious",
    "ClassSpecific",
    "Filter",
    "Gaussian",
    "Layout",
    "Objective",
    "PublishedSGD",
    "Reference",
    "Report",
    "Softmax",
    "Solution",
    "Solver",
    "Tokens",
    "UnitNorm",
    "last_feature_layer",
    "value_and_gradient",
]
