"""Slim timm models in files: what they are made of is written down, and read again before it counts."""

from pml_extensions._slim_files.files import load_slim, mark, save_slim

__all__ = ["load_slim", "mark", "save_slim"]
