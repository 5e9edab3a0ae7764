"""Settings as plain values: what JSON can hold, with a mark on what it would turn into something else.

Numbers, strings, None, tuples, lists, dicts, sets, sizes, arrays and types of numbers come back as they were. Functions
and classes are known by their names, and other objects by their types and what they hold: they can be compared, and
copied with other contents, but not made again.
"""

import copy
import functools
import math
import re
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

__all__ = ["NotPlainError", "packed", "unpacked"]


class NotPlainError(ValueError):
    """A value that cannot be made again from plain ones."""


def packed(value: Any, inside: frozenset[int] = frozenset()) -> Any:
    """Return a value as numbers, strings, None, lists and marked dicts; of tensors inside nothing is said.

    ``inside`` are the objects that hold the value, which may hold themselves.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in {bool, int, str} or (type(value) is float and math.isfinite(value)):
        return value
    if id(value) in inside:
        return {"again": type(value).__name__}
    pack = functools.partial(packed, inside=inside | {id(value)})
    if type(value) is list:
        return [pack(item) for item in value]
    return next({mark: content(value, pack)} for mark, fits, content in _MARKS if fits(value))


def unpacked(data: Any, current: Any = None) -> Any:
    """Return the value of plain ones, where ``current`` is what stands in its place; of objects a changed copy.

    Raises:
        NotPlainError: if a function, a class or an object would have to be made.
    """
    if data == packed(current):
        return current
    if isinstance(data, list):
        held = current if isinstance(current, list) and len(current) == len(data) else [None] * len(data)
        return [unpacked(item, now) for item, now in zip(data, held, strict=True)]
    if not isinstance(data, dict):
        return data
    ((mark, inner),) = data.items()
    return _MAKERS[mark](inner, current)


def _name(value: Any, pack: Callable[[Any], Any]) -> list[Any]:
    """Return the name of a function or class, with what it closes over."""
    closed = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    return [f"{value.__module__}.{value.__qualname__}", pack(closed)]


def _object(value: Any, pack: Callable[[Any], Any]) -> list[Any]:
    """Return the type of an object, with what it holds or prints as; of a module the tree tells that."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return [kind, None]
    return [kind, pack(vars(value)) if hasattr(value, "__dict__") else re.sub(r" at 0x[0-9a-f]+", "", repr(value))]


def _dict(value: Mapping[Any, Any], pack: Callable[[Any], Any]) -> list[Any]:
    return [[pack(key), pack(item)] for key, item in value.items() if not isinstance(item, Tensor)]


_MARKS: list[tuple[str, Callable[[Any], bool], Callable[[Any, Callable[[Any], Any]], Any]]] = [
    ("float", lambda v: type(v) is float, lambda v, _: str(v)),  # not finite
    ("tensor", lambda v: isinstance(v, Tensor | weakref.ref), lambda _, __: None),
    ("tuple", lambda v: type(v) is tuple, lambda v, pack: [pack(item) for item in v]),
    ("size", lambda v: type(v) is torch.Size, lambda v, _: list(v)),
    ("set", lambda v: type(v) is set, lambda v, pack: sorted((pack(item) for item in v), key=repr)),
    ("frozenset", lambda v: type(v) is frozenset, lambda v, pack: sorted((pack(item) for item in v), key=repr)),
    ("dict", lambda v: isinstance(v, Mapping), _dict),
    ("dtype", lambda v: isinstance(v, torch.dtype), lambda v, _: str(v).removeprefix("torch.")),
    ("array", lambda v: isinstance(v, np.ndarray), lambda v, pack: [str(v.dtype), pack(v.tolist())]),
    ("member", lambda v: isinstance(v, Enum), lambda v, pack: [pack(type(v)), v.name]),
    ("graph", lambda v: isinstance(v, fx.Graph), lambda v, _: str(v)),
    ("name", lambda v: isinstance(v, functools.partial), lambda v, pack: ["", pack([v.func, v.args, v.keywords])]),
    ("name", lambda v: hasattr(v, "__qualname__"), _name),
    ("object", lambda _: True, _object),
]


def _made_dict(items: list[Any], current: Any) -> dict[Any, Any]:
    held = current if isinstance(current, Mapping) else {}
    return {unpacked(key): unpacked(item, held.get(unpacked(key))) for key, item in items}


def _changed_object(inner: list[Any], current: Any) -> Any:
    now = packed(current)
    if not (isinstance(now, dict) and "object" in now and now["object"][0] == inner[0] and isinstance(inner[1], dict)):
        raise NotPlainError(f"an object of {inner[0]}")
    changed = copy.copy(current)  # others may hold it, too
    vars(changed).update({name: unpacked(item, vars(current).get(name)) for name, item in inner[1]["dict"]})
    return changed


def _member(inner: list[Any], current: Any) -> Any:
    if not isinstance(current, Enum) or packed(type(current)) != inner[0]:
        raise NotPlainError(f"a member of {inner[0]}")
    return type(current)[inner[1]]


def _refuse(inner: Any, _current: Any) -> Any:
    raise NotPlainError(str(inner))


_MAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda inner, _: tuple(map(unpacked, inner)),
    "size": lambda inner, _: torch.Size(inner),
    "set": lambda inner, _: set(map(unpacked, inner)),
    "frozenset": lambda inner, _: frozenset(map(unpacked, inner)),
    "dict": _made_dict,
    "dtype": lambda inner, _: getattr(torch, inner),
    "float": lambda inner, _: float(inner),
    "array": lambda inner, _: np.array(unpacked(inner[1]), dtype=inner[0]),
    "member": _member,
    "object": _changed_object,
    "graph": _refuse,
    "name": _refuse,
    "tensor": _refuse,
    "again": _refuse,
}
