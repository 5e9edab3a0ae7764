"""Where in the model's code something happened, and the error that says so."""

import os
import sys
from functools import cache
from pathlib import Path

import torch

_NOT_THE_MODEL = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_ENTRY = str(Path(__file__).parent / "tracing" / "forward.py")


class TracingError(RuntimeError):
    """The widths of a model could not be read off its forward pass."""


def where() -> str:
    """Return file and line of the innermost code of the model (not torch's, not ours), or an empty string."""
    frame = sys._getframe(1)  # noqa: SLF001  # the only way to the line of the model's code
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _ENTRY:
            break
        if not name.startswith(_NOT_THE_MODEL) and not name.startswith("<"):
            return f"{_short(name)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # None at the outermost frame
    return ""


@cache
def _short(name: str) -> str:
    """Return a path from its package on, as an import would name it."""
    path = Path(name)
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    return str(path.relative_to(root))
