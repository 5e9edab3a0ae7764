"""Warnings that point at the user's line, however many of our own, captum's and torch's frames lie between."""

import sys
import warnings
from pathlib import Path

import captum
import torch

_HOSTS = tuple(str(Path(str(host.__file__)).parent) for host in (captum, torch))
_ON_THE_WAY = (str(Path(__file__).parents[1]), *_HOSTS)


def warn_user(message: str) -> None:
    """Warn at the nearest line outside this package and its hosts."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001 - how warnings finds the line, too
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_ON_THE_WAY):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
