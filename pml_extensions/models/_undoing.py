"""Take a change of a model back when something goes wrong after it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["undone_on_error"]


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Give every module of ``model`` its attributes, parameters, buffers and submodules back after an exception."""
    before = [
        (vars(module), dict(vars(module)), [(one, dict(one)) for one in vars(module).values() if isinstance(one, dict)])
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for attributes, held, dicts in before:
            for changed, kept in [(attributes, held), *dicts]:
                changed.clear()
                changed.update(kept)
        raise
