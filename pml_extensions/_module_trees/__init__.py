"""What a tree of modules is made of and set to, as plain values that a file can hold."""

from pml_extensions._module_trees.trees import (
    Tree,
    describe,
    difference,
    other_modules,
    restore,
    tensors_of,
    ties,
)

__all__ = ["Tree", "describe", "difference", "other_modules", "restore", "tensors_of", "ties"]
