"""Functions that a copied model holds: what they refer to of the model is made that of the copy.

``copy.deepcopy`` takes a function as it is. A hook that is one, and writes to its model or to a list there, would write
to those of the original. So the function is made anew, around what the copy holds in their place: in the cells of its
closure, its defaults, and the globals that it names. Around a copy that lives for a pass alone, nothing is made anew:
for the time of the pass, the very variables hold what is the copy's, for whatever code reads and writes them.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import WRAPPER_ASSIGNMENTS, partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakMethod, ref

__all__ = ["REFERRING", "Owner", "Variable", "holding"]

REFERRING = (FunctionType, BuiltinFunctionType, partial, ref)  # what deepcopy takes as it is, or with such in it
_NEVER_COPIED = (
    int, float, complex, str, bytes, type(None), type, ModuleType, type(threading.Lock()), type(threading.RLock()),
)  # fmt: skip


_NOTHING = object()  # what a variable holds that is not bound


@dataclass(frozen=True)
class Variable:
    """A variable that code refers to: how it is written to, what it holds, and what it is to hold during a pass."""

    write: Callable[[Any], object]
    before: Any
    during: Any


@contextmanager
def holding(variables: list[Variable]) -> Iterator[None]:
    """Let variables hold what they are to hold during a pass, and what they held before afterwards."""
    try:
        for variable in variables:
            variable.write(variable.during)
        yield
    finally:
        for variable in reversed(variables):
            variable.write(variable.before)


@dataclass(frozen=True)
class Owner:
    """A deep copy of a model, of which functions are to be.

    Attributes:
        memo: that of ``copy.deepcopy``: what was copied, by the number of the original.
        apart: whether the copy lives for a pass alone, and is to write to nothing beside it: what functions refer to
            beside the model is copied, too, and held by ``variables`` meanwhile. Otherwise it is shared, as
            ``copy.deepcopy`` does.
        variables: those of the functions, if ``apart``.
    """

    memo: dict[Any, Any]
    apart: bool
    variables: list[Variable] = field(default_factory=list)

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
            its: Any = of if isinstance(of, _NEVER_COPIED) else self.own(of)
            return value if its is of else getattr(its, value.__name__, value)
        if isinstance(value, WeakMethod) and value() is not None:
            return WeakMethod(self.own(value()))
        return ref(self.memo[id(value())]) if id(value()) in self.memo else value

    def _items(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        return {name: self.own(value) for name, value in values.items()}

    def _global(self, value: Any) -> Any:
        try:
            return self.own(value)
        except Exception:  # noqa: BLE001  # what a module holds and nobody can copy, such as a context variable
            return value

    def _function(self, function: FunctionType) -> FunctionType:
        return self._surrounded(function) if self.apart else self._made_anew(function)

    def _surrounded(self, function: FunctionType) -> FunctionType:
        """Return the very function, and note its variables."""
        self.memo[id(function)] = function
        contents, named, defaults, keywords = _references(function)
        for place, cell in enumerate(function.__closure__ or ()):
            self.memo[id(cell)] = cell  # of other functions, too
            before = contents.get(place, _NOTHING)
            self._vary(partial(_fill, cell), before, self.own(before) if place in contents else before)
        for name in _names(function.__code__):
            self.memo[id(function.__globals__), name] = True  # it holds the copy's by itself
            before = function.__globals__.get(name, _NOTHING)
            during = self._global(before) if name in named else before
            self._vary(partial(_bind, function.__globals__, name), before, during)
        held = (function.__defaults__, function.__kwdefaults__, dict(vars(function)))
        its = (tuple(self._items(defaults).values()) or None, self._items(keywords) or None, self._items(held[2]))
        self._vary(partial(_set, function), held, its)
        return function

    def _vary(self, write: Callable[[Any], object], before: Any, during: Any) -> None:
        self.variables.append(Variable(write, before, during))

    def _made_anew(self, function: FunctionType) -> FunctionType:
        """Return a function around what the copy holds, or the very function if that is nothing else."""
        contents, named, defaults, keywords = _references(function)
        named = {name: held for name, held in named.items() if (id(function.__globals__), name) not in self.memo}
        refers = contents, named, defaults, keywords
        cells = tuple(map(self._cell, function.__closure__ or ()))
        namespace = {} if any(map(self._may_differ, named.values())) else function.__globals__
        own = FunctionType(function.__code__, namespace, function.__name__, None, cells)
        self.memo[id(function)] = own  # it may refer to itself
        mine = contents, named, defaults, keywords = (
            self._items(contents),
            {name: self._global(value) for name, value in named.items()},
            self._items(defaults),
            self._items(keywords),
        )
        if all(
            new is old or new is own
            for its, others in zip(mine, refers, strict=True)
            for new, old in zip(its.values(), others.values(), strict=True)
        ):
            self.memo[id(function)] = function
            return function
        if namespace is not function.__globals__:
            namespace.update(function.__globals__ | named)
        for place, content in contents.items():
            cells[place].cell_contents = content
        for attribute in WRAPPER_ASSIGNMENTS:
            setattr(own, attribute, getattr(function, attribute))
        _set(own, (tuple(defaults.values()) or None, keywords or None, self._items(vars(function))))
        return own

    def _cell(self, cell: CellType) -> CellType:
        """Return the cell that functions of the copy share: the very one unless it holds what is the copy's."""
        if id(cell) not in self.memo:
            self.memo[id(cell)] = CellType() if _is_filled(cell) and self._may_differ(cell.cell_contents) else cell
        own: CellType = self.memo[id(cell)]
        return own

    def _may_differ(self, value: Any) -> bool:
        return id(value) in self.memo or isinstance(value, (*REFERRING, MethodType))


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


def _fill(cell: CellType, value: Any) -> None:
    if value is not _NOTHING:
        cell.cell_contents = value
    elif _is_filled(cell):
        del cell.cell_contents


def _set(function: FunctionType, held: tuple[Any, Any, dict[str, Any]]) -> None:
    """Set the defaults and the attributes of a function."""
    function.__defaults__, function.__kwdefaults__, attributes = held
    vars(function).clear()
    vars(function).update(attributes)


def _bind(space: dict[str, Any], name: str, value: Any) -> None:
    if value is _NOTHING:
        space.pop(name, None)
    else:
        space[name] = value


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # nothing is bound to the name yet
        return False
    return True


def _names(code: CodeType) -> set[str]:
    """Return the names that a function, and those defined in it, may look up among the globals."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
