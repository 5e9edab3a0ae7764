"""Deep copies of a model with other tensors in place of its own, which are never copied."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pml_extensions._slimming.tracing.stand_ins import stand_in_parameter


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a module holds, once, with its name: parameters, buffers, then plain attributes."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    seen = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    plain = (int, float, str, bool, type(None), type)
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_parameters", "_buffers", "_modules"} or isinstance(value, plain):
                continue
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield ".".join(filter(None, [prefix, name])), tensor


def copy_with(model: nn.Module, replacement: Callable[[str, Tensor], Tensor]) -> Any:
    """Return a deep copy of a model in which ``replacement(name, tensor)`` stands for every tensor that it holds."""
    memo: dict[int, Any] = {id(tensor): replacement(name, tensor) for name, tensor in held_tensors(model)}
    return copy.deepcopy(model, memo)


def weightless(model: nn.Module) -> Any:
    """Return a deep copy of a model with stand-ins for its parameters, on the CPU, in eval mode."""

    def replacement(_name: str, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return stand_in_parameter(tensor)
        return tensor.detach().clone() if tensor.is_meta else tensor.detach().cpu().clone()

    lean = copy_with(model, replacement).eval()
    for module in lean.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_shared(hook)]:
                del hooks[key]
    return lean


def _is_shared(hook: Any) -> bool:
    """Tell whether a copied hook is the model's own: a plain function is not copied, and may write to what is not."""
    while isinstance(hook, partial):
        hook = hook.func
    return isinstance(hook, FunctionType | BuiltinFunctionType)
