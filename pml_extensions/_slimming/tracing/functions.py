"""Functions that a copied model holds: what they refer to of the model is made that of the copy.

``copy.deepcopy`` takes a function as it is. A hook that is one, and writes to its model or to a list there, would write
to those of the original. So the function is made anew, around what the copy holds in their place: in the cells of its
closure, its defaults, and the globals that it names.
"""

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import WRAPPER_ASSIGNMENTS, partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

__all__ = ["REFERRING", "Owner"]

REFERRING = (FunctionType, BuiltinFunctionType, partial, ref)  # what deepcopy takes as it is, or with such in it
_NEVER_COPIED = (
    int, float, complex, str, bytes, type(None), type, ModuleType, type(threading.Lock()), type(threading.RLock()),
)  # fmt: skip


@dataclass(frozen=True)
class Owner:
    """A deep copy of a model, of which functions are to be.

    Attributes:
        memo: that of ``copy.deepcopy``: what was copied, by the number of the original.
        apart: whether functions are to share nothing else with the original's either: what they refer to beside the
            model is copied, too. Otherwise it is shared, as ``copy.deepcopy`` does.
    """

    memo: dict[int, Any]
    apart: bool

    def own(self, value: Any) -> Any:
        """Return what the copy is to hold in the place of a value that the original, or its function, refers to.

        Raises:
            Exception: whatever ``copy.deepcopy`` raises for what is to be copied and cannot.
        """
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, (*REFERRING, MethodType)):
            return self._referring(value)
        return self.copied(value) if self.apart and not isinstance(value, _NEVER_COPIED) else value

    def copied(self, value: Any) -> Any:
        """Return a deep copy that refers to the copied model; the memo learns of it unless it fails."""
        memo = dict(self.memo)
        made = copy.deepcopy(value, memo)
        kept_alive = memo.pop(id(memo), [])  # under a number that another object may get
        self.memo.update(memo)
        self.memo.setdefault(id(self.memo), []).extend(kept_alive)
        if made is not value and hasattr(made, "__dict__"):
            vars(made).update(
                {name: self.own(held) for name, held in vars(made).items() if isinstance(held, REFERRING)}
            )
        return made

    def _referring(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, partial):
            own = partial(self.own(value.func), *map(self.own, value.args), **self._items(value.keywords))
            own.__dict__.update(self._items(vars(value)))
            return own
        if isinstance(value, MethodType):
            return MethodType(self.own(value.__func__), self.own(value.__self__))
        if isinstance(value, BuiltinFunctionType):
            of = value.__self__
            return value if of is None or isinstance(of, _NEVER_COPIED) else getattr(self.own(of), value.__name__)
        return ref(self.memo[id(value())]) if id(value()) in self.memo else value

    def _items(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        return {name: self.own(value) for name, value in values.items()}

    def _global(self, value: Any) -> Any:
        try:
            return self.own(value)
        except Exception:  # noqa: BLE001  # what a module holds and nobody can copy, such as a context variable
            return value

    def _function(self, function: FunctionType) -> FunctionType:
        """Return a function around what the copy holds, or the very function if that is nothing else."""
        cells = tuple(CellType() for _ in function.__closure__ or ())
        namespace: dict[str, Any] = {}
        own = FunctionType(function.__code__, namespace, function.__name__, None, cells)
        self.memo[id(function)] = own  # it may refer to itself
        contents, named, defaults, keywords = refers = _references(function)
        mine = contents, named, defaults, keywords = (
            self._items(contents),
            {name: self._global(value) for name, value in named.items()},
            self._items(defaults),
            self._items(keywords),
        )
        if not self.apart and all(
            new is old or new is own
            for its, others in zip(mine, refers, strict=True)
            for new, old in zip(its.values(), others.values(), strict=True)
        ):
            self.memo[id(function)] = function
            return function
        namespace.update(function.__globals__ | named)
        for place, content in contents.items():
            cells[place].cell_contents = content
        own.__defaults__, own.__kwdefaults__ = tuple(defaults.values()) or None, keywords or None
        for attribute in WRAPPER_ASSIGNMENTS:
            setattr(own, attribute, getattr(function, attribute))
        own.__dict__.update(self._items(vars(function)))
        return own


def _references(function: FunctionType) -> tuple[dict[Any, Any], ...]:
    """Return what a function refers to: the contents of its cells, the globals that it names, and its defaults.

    Of globals that are functions themselves, those beside it alone: not a library's.
    """
    return (
        {place: cell.cell_contents for place, cell in enumerate(function.__closure__ or ()) if _is_filled(cell)},
        {
            name: value
            for name in _names(function.__code__)
            if (value := function.__globals__.get(name)) is not None
            and getattr(value, "__globals__", function.__globals__) is function.__globals__
        },
        dict(enumerate(function.__defaults__ or ())),
        function.__kwdefaults__ or {},
    )


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # nothing is bound to the name yet
        return False
    return True


def _names(code: CodeType) -> set[str]:
    """Return the names that a function, and those defined in it, may look up among the globals."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
