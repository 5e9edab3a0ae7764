"""What we take from pytorch-metric-learning beyond what it documents, in one place."""

from typing import Any

from torch import Tensor

__all__ = ["is_as_shipped"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_as_shipped(module: Any, *kinds: type) -> bool:
    """Return whether a module is one of ``kinds`` and nothing was added: no subclass, no method, hook or tensor."""
    if type(module) not in kinds or any(getattr(module, hooks) for hooks in HOOKS):
        return False
    own = [*vars(module).values(), *module.parameters(recurse=False), *module.buffers(recurse=False)]
    return not any(callable(value) or isinstance(value, Tensor) for value in own)
