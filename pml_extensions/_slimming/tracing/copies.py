"""Deep copies of a model with other tensors in place of its own, which are never copied."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pml_extensions._slimming.tracing.functions import REFERRING, Owner
from pml_extensions._slimming.tracing.stand_ins import MissingValueError, stand_in_parameter

Replacement = Callable[[str, Tensor], Tensor]

_HOOKS = {
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
}  # fmt: skip
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

    Its forward hooks take part, apart from the model and from whatever else they write to. One that cannot be copied
    for that is left out, and one that needs values has no effect.
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


def _copy(
    model: nn.Module, replacement: Replacement, hooks: Mapping[str, Callable[[Owner, Any], Any]], *, apart: bool
) -> Any:
    """Copy all but the functions first, then those: they may refer to any part of the model."""
    memo: dict[int, Any] = {id(tensor): replacement(name, tensor) for name, tensor in held_tensors(model)}
    modules = list(model.modules())
    for module in modules:
        memo.update({id(vars(module)[name]): type(vars(module)[name])() for name in _HOOKS & vars(module).keys()})
    with _Replacing(replacement):
        copied = copy.deepcopy(model, memo)
        owner, sharing = Owner(memo, apart), Owner(memo, apart=False)
        pairs = [(vars(a), vars(b)) for a, b in zip(modules, copied.modules(), strict=True)]
        for held, its in pairs:
            for name in hooks.keys() & held.keys():
                made = {key: hooks[name](owner, hook) for key, hook in held[name].items()}
                its[name].update({key: hook for key, hook in made.items() if hook is not None})
        for held, its in pairs:
            for name in (held.keys() & its.keys()) - _NO_ATTRIBUTES:
                its[name] = _with_own_functions(held[name], its[name], sharing)
    return copied


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
    """Return a hook that has no effect where it fails for want of values: it may look at them, as logs do."""
    errors = Exception if isinstance(hook, FunctionType) else MissingValueError

    @wraps(hook)
    def tried(*args: Any, **kwargs: Any) -> Any:
        try:
            return hook(*args, **kwargs)
        except errors:
            return None

    return tried
