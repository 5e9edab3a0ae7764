"""Deep copies of a model with other tensors in place of its own, which are never copied."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pml_extensions._slimming.locations import TracingError
from pml_extensions._slimming.tracing.functions import REFERRING, Owner, holding
from pml_extensions._slimming.tracing.stand_ins import glancing, stand_in_parameter

Replacement = Callable[[str, Tensor], Tensor]

_HOOKS = {
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
}  # fmt: skip
_VARIABLES = "_variables_of_hooks"  # where a copy for a pass holds them
_NO_ATTRIBUTES = {"_parameters", "_buffers", "_modules", *_HOOKS}


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a module holds, once, with its name: parameters, buffers, then plain attributes."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    seen = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    plain = (int, float, str, bool, type(None), type)
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _NO_ATTRIBUTES or isinstance(value, plain):
                continue
            for place, tensor in enumerate(tree_leaves(value)):
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    path = ".".join(filter(None, [prefix, name]))
                    yield path if tensor is value else f"{path}[{place}]", tensor


class _Replacing(TorchFunctionMode):
    """Let ``copy.deepcopy`` take the replacement of every tensor that it meets: also of results, which it refuses."""

    def __init__(self, replacement: Replacement) -> None:
        super().__init__()
        self._replacement = replacement

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            return self._replacement("", args[0])
        return func(*args, **(kwargs or {}))


def copy_with(model: nn.Module, replacement: Replacement) -> Any:
    """Return a deep copy of a model in which ``replacement(name, tensor)`` stands for every tensor that it holds.

    Its hooks are the copy's own: where they refer to the model, they refer to the copy.
    """

    def hook(owner: Owner, original: Any) -> Any:
        try:
            return owner.own(original) if isinstance(original, REFERRING) else owner.copied(original)
        except Exception:  # noqa: BLE001  # of something beside the model that cannot be copied
            return original

    return _copy(model, replacement, dict.fromkeys(_HOOKS, hook), apart=False)


def weightless(model: nn.Module) -> Any:
    """Return a deep copy of a model with stand-ins for its parameters, on the CPU, in eval mode.

    Its forward hooks take part, apart from the model and from whatever else they write to: during a pass, with the
    copy's ``surrounding``, their variables hold copies. One whose variables cannot be copied is left out. One that
    looks at values, as logs do, sees zeros, and has no effect where it fails on them.
    """

    def replacement(_name: str, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return stand_in_parameter(tensor)
        return tensor.detach().clone() if tensor.is_meta else tensor.detach().cpu().clone()

    def hook(owner: Owner, original: Any) -> Any:
        try:
            return _without_values(owner.own(original))
        except Exception:  # noqa: BLE001  # what it holds beside the model is none of ours to write to
            return None

    return _copy(model, replacement, {"_forward_hooks": hook, "_forward_pre_hooks": hook}, apart=True).eval()


def surrounding(copied: nn.Module) -> AbstractContextManager[None]:
    """Let the variables of a copy's hooks hold what is the copy's for a while, whatever code uses them."""
    return holding(vars(copied).get(_VARIABLES, []))


def _copy(
    model: nn.Module, replacement: Replacement, hooks: Mapping[str, Callable[[Owner, Any], Any]], *, apart: bool
) -> Any:
    """Copy all but the functions first, then those: they may refer to any part of the model."""
    memo: dict[int, Any] = {id(tensor): replacement(name, tensor) for name, tensor in held_tensors(model)}
    modules = list(model.modules())
    for module in modules:
        memo.update({id(vars(module)[name]): type(vars(module)[name])() for name in _HOOKS & vars(module).keys()})
    with _Replacing(replacement):
        copied = _deep_copy(model, memo)
        owner, sharing = Owner(memo, apart), Owner(memo, apart=False)
        pairs = [(vars(a), vars(b)) for a, b in zip(modules, copied.modules(), strict=True)]
        for held, its in pairs:
            for name in hooks.keys() & held.keys():
                made = {key: hooks[name](owner, hook) for key, hook in held[name].items()}
                its[name].update({key: hook for key, hook in made.items() if hook is not None})
        if apart:
            vars(copied)[_VARIABLES] = owner.variables
        for held, its in pairs:
            for name in (held.keys() & its.keys()) - _NO_ATTRIBUTES:
                its[name] = _with_own_functions(held[name], its[name], sharing)
    return copied


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> Any:
    known = dict(memo)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TracingError(
            f"the model must be one that copy.deepcopy takes, but it fails on {_uncopied(model, known)}: "
            f"{type(error).__name__}: {error}; keep such an object elsewhere, or give its class a __deepcopy__"
        ) from error


def _uncopied(model: nn.Module, memo: dict[int, Any]) -> str:
    """Return the name of the attribute on which a deep copy fails, or of the model's class if it is none."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _NO_ATTRIBUTES and not _is_copied(value, dict(memo)):
                return repr(".".join(filter(None, [path, name])))
    return type(model).__name__


def _is_copied(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001  # whatever the object's class raises
        return False
    return True


def _with_own_functions(original: Any, copied: Any, owner: Owner) -> Any:
    """Return a copied value in which the functions, in a nest of lists, tuples and dicts, are the copy's own."""
    if isinstance(original, REFERRING):
        return owner.own(original)
    if type(original) is tuple:
        return tuple(_with_own_functions(a, b, owner) for a, b in zip(original, copied, strict=True))
    if type(original) is list:
        copied[:] = [_with_own_functions(a, b, owner) for a, b in zip(original, copied, strict=True)]
    elif type(original) is dict:
        own = [_with_own_functions(original[a], copied[b], owner) for a, b in zip(original, copied, strict=True)]
        copied.update(zip(copied, own, strict=True))
    return copied


def _without_values(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that sees zeros where it looks at values, as logs do, and has no effect where it fails on them."""

    @wraps(hook)
    def tried(*args: Any, **kwargs: Any) -> Any:
        with glancing() as glances:
            try:
                return hook(*args, **kwargs)
            except Exception:
                if not glances and not isinstance(hook, FunctionType):
                    raise
        return None

    return tried
