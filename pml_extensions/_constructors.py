"""Constructors that refuse what they do not know in their own name, and say where such a setting lives."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["checked_constructor"]

Kind = TypeVar("Kind", bound=type)
PACKAGE, HOST = __name__.partition(".")[0], "pytorch_metric_learning"


def checked_constructor(kind: Kind) -> Kind:
    """Let a class say in its own words why it cannot be made: a class decorator.

    Raises, instead of what a base class or Python would say:
        TypeError: for a keyword that neither the class nor its bases take; for the class of a module in the place of a
            module; for a batch, which a module gets once it is made.
    """
    init: Callable[..., None] = kind.__init__  # type: ignore[misc]

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if issubclass(kind, nn.Module) and args and _is_batch(args[0]):
            raise TypeError(
                f"{kind.__name__} got a batch in the place of its settings: it is made first and called then, so pass "
                f"{kind.__name__}() where {kind.__name__} was passed"
            )
        try:
            init(self, *args, **kwargs)
        except TypeError as error:
            known = _settings(kind)
            unknown = next((name for name in kwargs if name not in known), None)
            if unknown is None:
                raise
            raise TypeError(_refusal(kind, unknown, known)) from error
        except Exception:
            _refuse_classes(init, args, kwargs)
            raise
        _refuse_classes(init, args, kwargs)

    kind.__init__ = checked  # type: ignore[misc]
    return kind


def _refuse_classes(init: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = list(inspect.signature(init).parameters)[1:]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        if isinstance(value, type) and issubclass(value, nn.Module):
            raise TypeError(f"{name} must be an object, got the class {value.__name__}; write {value.__name__}(...)")


def _is_batch(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.ndim > 1) or (isinstance(value, tuple) and any(map(_is_batch, value)))


def _settings(kind: type) -> list[str]:
    """Return the keywords that a class takes, those that it hands on to its bases included."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base in {object, nn.Module}:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names |= {one.name: None for one in parameters if one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}}
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return list(names)


def _refusal(kind: type, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1) or [one for one in known if name in one.split("_")]
    meant = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it takes {', '.join(known) or 'none'}."
    places = next(filter(None, map(list, _places(kind, name, known))), [])
    where = f" {name!r} is a setting of {', '.join(places[:4])}" if places else ""
    return f"{kind.__name__} has no setting {name!r}; {meant}{where}"


def _places(kind: type, name: str, known: list[str]) -> Iterator[Iterator[str]]:
    """Yield where a setting of this name lives: methods of the class, what it is made of, our classes, the host's."""
    yield (
        f"{kind.__name__}(...).{method}"
        for method, function in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_")
        and function.__module__.startswith((PACKAGE, HOST))
        and name in inspect.signature(function).parameters
    )
    for part in ("distance", "reducer"):
        if part in known:
            yield (f"{place} (pass one as {part}=)" for place in _classes_with(f"{HOST}.{part}s", name))
    faces = [f"{PACKAGE}.{face}" for face in sys.modules[PACKAGE].__all__]
    yield (place for face in faces for place in _classes_with(face, name))
    if any(base.__module__.startswith(HOST) for base in kind.__mro__):
        faces = [f"{HOST}.{face}" for face in ("losses", "miners", "regularizers")]
        yield (place for face in faces for place in _classes_with(face, name))


def _classes_with(face: str, name: str) -> Iterator[str]:
    """Yield the public classes of a package that have the setting, unless a public base has it for all of its kind."""
    for public, kind in inspect.getmembers(importlib.import_module(face), inspect.isclass):
        has = name in _settings(kind) and not public.endswith("Mixin")
        if has and not any(_is_public_module(base) and name in _settings(base) for base in kind.__mro__[1:]):
            yield f"{face}.{public}"


def _is_public_module(kind: type) -> bool:
    package = sys.modules.get(kind.__module__.rpartition(".")[0])
    return issubclass(kind, nn.Module) and getattr(package, kind.__name__, None) is kind
