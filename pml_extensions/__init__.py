"""The classification toolbox for retrieval networks, as parts for pytorch-metric-learning, timm and captum.

Each subpackage is imported when it is first used, and takes with it only the libraries that it needs.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = ["attr", "evolution", "losses", "miners", "models", "monitors", "regularizers", "trainers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
