"""A tree of modules told as plain values, and set to them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from torch import Tensor, nn

from pml_extensions._module_trees.plain_values import NotPlainError, packed, unpacked

__all__ = ["Tree", "describe", "difference", "other_modules", "restore", "tensors_of", "ties"]

Tree: TypeAlias = dict[str, dict[str, Any]]

_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}
_HOOKS = {name for name in vars(nn.Module()) if name.endswith("_hooks")}
_MOST = 200  # letters of a value in a message


def describe(model: nn.Module) -> Tree:
    """Return for each module by name its type, its settings, and the kinds of the tensors that it holds.

    Among the settings are those that a user noted on a parameter, and the names of hooks. A kind of a tensor is
    "parameter", "frozen parameter", "buffer", "passing buffer" (not in the state dict), "attribute" or, of a parameter
    or buffer that is not there, None.
    """
    return {
        name: {
            "type": f"{type(module).__module__}.{type(module).__qualname__}",
            "settings": dict(_settings(module)),
            "tensors": {key: kind for key, (kind, _) in _held(module).items()},
        }
        for name, module in model.named_modules()
    }


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model by name; tied ones under each of their names."""
    return {
        _full(path, name): tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for name, (_, tensor) in _held(module).items()
        if tensor is not None
    }


def ties(model: nn.Module) -> list[list[str]]:
    """Return the names of the tensors that go by several."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model).items():
        names.setdefault(id(tensor), []).append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def restore(model: nn.Module, tree: Tree, tensors: Mapping[str, Tensor]) -> None:
    """Give a model of the same modules the settings and tensors of another, as far as plain values and tensors go.

    A tensor of the model that is not among ``tensors`` stays as it is. One that is keeps its identity, so that ties
    hold, and they come in the order of the tree. Settings that are no plain values stay, too.
    """
    for path, module in model.named_modules():
        for name, kind in tree[path]["tensors"].items():
            _set_tensor(module, name, kind, tensors.get(_full(path, name)))
        for registry in (module._parameters, module._buffers):  # noqa: SLF001 (those that are None, too)
            registry.update({name: registry.pop(name) for name in tree[path]["tensors"] if name in registry})
        for name, data in tree[path]["settings"].items():
            owner, _, key = name.rpartition(".")
            holder: Any = module._parameters.get(owner)  # noqa: SLF001
            holder, key = (module, name) if holder is None else (holder, key)
            if key not in _HOOKS:
                with suppress(NotPlainError):
                    setattr(holder, key, unpacked(data, vars(holder).get(key)))


def other_modules(found: Tree, expected: Tree) -> str | None:
    """Return in words the first module of ``expected`` that is not so in ``found``, or None."""
    for name in [*expected, *found]:
        theirs, ours = (tree[name]["type"] if name in tree else "not there" for tree in (expected, found))
        if ours != theirs:
            same = _short(theirs) == _short(ours)
            theirs, ours = (theirs, ours) if same else (_short(theirs), _short(ours))
            return f"{name or 'the model'} is {theirs} and would be {ours}"
    return None if list(found) == list(expected) else "its modules would stand in another order"


def difference(found: Tree, expected: Tree) -> str | None:
    """Return in words the first difference between two trees of the same modules, or None.

    Of settings those count that ``expected`` has: others may have come with use, or with another version of the code.
    """
    for name, module in expected.items():
        for part in ("settings", "tensors"):
            for key, value in module[part].items():
                got = found[name][part].get(key, "not there")
                if got != value:
                    return f"{_full(name, key)} is {_printed(value)} and would be {_printed(got)}"
    return None


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield settings by name, as plain values: of a module, of its parameters, and the names of the hooks of both."""
    for name, value in vars(module).items():
        if name in _HOOKS and value:
            yield name, _names(value.values())
        elif name not in _OF_EVERY_MODULE and not isinstance(value, Tensor):
            yield name, packed(value)
    for name, parameter in module._parameters.items():  # noqa: SLF001 (those that are None, too)
        if parameter is None:
            continue
        yield from ((f"{name}.{key}", packed(value)) for key, value in vars(parameter).items())
        hooks: Any = [getattr(parameter, kind, None) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")]
        if any(hooks):
            yield f"{name}._backward_hooks", _names(hook for kind in hooks for hook in (kind or {}).values())


def _names(hooks: Iterable[Any]) -> list[str]:
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]


def _held(module: nn.Module) -> dict[str, tuple[str | None, Tensor | None]]:
    """Return the kind of each tensor of a module with the tensor."""
    held: dict[str, tuple[str | None, Tensor | None]] = {}
    for name, parameter in module._parameters.items():  # noqa: SLF001 (those that are None, too)
        kind = "parameter" if parameter is not None and parameter.requires_grad else "frozen parameter"
        held[name] = (None if parameter is None else kind, parameter)
    for name, buffer in module._buffers.items():  # noqa: SLF001
        passing = name in module._non_persistent_buffers_set  # noqa: SLF001
        held[name] = (None if buffer is None else "passing buffer" if passing else "buffer", buffer)
    held.update((k, ("attribute", v)) for k, v in vars(module).items() if isinstance(v, Tensor))
    return held


def _set_tensor(module: nn.Module, name: str, kind: str | None, tensor: Tensor | None) -> None:
    now, current = _held(module).get(name, (None, None))
    if kind is None:
        if current is not None:
            setattr(module, name, None)
    elif tensor is not None and current is not None and _registry(now) == _registry(kind):
        current.data = tensor
        current.requires_grad_("frozen" not in kind and kind == "parameter")
    elif tensor is not None:
        if hasattr(module, name):
            delattr(module, name)
        if kind == "attribute":
            setattr(module, name, tensor)
        elif "buffer" in kind:
            module.register_buffer(name, tensor, persistent=kind == "buffer")
        else:
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=kind == "parameter"))


def _registry(kind: str | None) -> str | None:
    return "parameter" if kind == "frozen parameter" else kind


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _printed(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _short(name: str) -> str:
    return name.rpartition(".")[2]
