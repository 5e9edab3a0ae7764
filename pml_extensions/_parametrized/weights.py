"""Weights that a layer computes from stored parameters: by torch's parametrizations, or by hooks: older norms, pruning.

Such a weight is P_n(... P_1(stored)). New values are stored as torch stores those of a fresh layer when the
parametrization is registered: through the right inverses, or as they are where there is none. What a parametrization
keeps beside (the singular vectors of spectral norm) is then brought to where training steps would bring it.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["Parametrized", "as_made", "hooked_weights", "parametrized_weights", "refresh_hooked"]


class Parametrized(NamedTuple):
    """A weight that its layer computes.

    Attributes:
        layer: the layer.
        attribute: the weight's name in it.
        stored: names in the model of the parameters that it is computed from, in the order of the first right inverse.
        chain: the parametrizations, in the order in which they apply.
    """

    layer: nn.Module
    attribute: str
    stored: tuple[str, ...]
    chain: tuple[nn.Module, ...]


def parametrized_weights(model: nn.Module) -> Iterator[Parametrized]:
    """Yield the computed weights of a model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer in model.modules():
        for attribute, held in _parametrizations(layer).items():
            stored = tuple(names[id(parameter)] for parameter in held.parameters(recurse=False))
            yield Parametrized(layer, attribute, stored, tuple(held))
        for hook in _hooks(layer):
            stored = tuple(names[id(getattr(layer, name))] for name in _stored_by(hook))
            yield Parametrized(layer, _computed_by(hook), stored, (_as_parametrization(hook, layer),))


def hooked_weights(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names of what hooks of a layer compute, each with the parameter that holds its elements."""
    for hook in _hooks(layer):
        yield _computed_by(hook), getattr(layer, _stored_by(hook)[-1])


def refresh_hooked(model: nn.Module) -> None:
    """Compute anew what hooks have left in a layer, as its next forward pass would."""
    with torch.no_grad():
        for layer in model.modules():
            for hook in _hooks(layer):
                if isinstance(hook, BasePruningMethod):
                    setattr(layer, _computed_by(hook), hook.apply_mask(layer))  # type: ignore[no-untyped-call]
                else:
                    settings = {"do_power_iteration": False} if isinstance(hook, SpectralNorm) else {}
                    setattr(layer, hook.name, hook.compute_weight(layer, **settings))


def as_made(layer: nn.Module, fill: float) -> None:
    """Turn a copy of a layer into what it was before its weights became computed; they are then full of ``fill``."""
    held = _parametrizations(layer)
    if held:
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
    for attribute, stored in held.items():
        shape = max(stored.parameters(recurse=False), key=Tensor.numel).shape
        layer.register_parameter(attribute, nn.Parameter(torch.full(shape, fill)))
    for hook in _hooks(layer):
        name, names = _computed_by(hook), _stored_by(hook)
        shape = getattr(layer, names[-1]).shape
        for attribute in (name, *names):
            delattr(layer, attribute)
        layer.register_parameter(name, nn.Parameter(torch.full(shape, fill)))


def _parametrizations(layer: nn.Module) -> dict[str, Any]:
    """Return the lists of parametrizations of a layer's parameters, by name."""
    held = layer.parametrizations.items() if parametrize.is_parametrized(layer) else ()  # type: ignore[operator, union-attr]
    return {attribute: chain for attribute, chain in held if list(chain.parameters(recurse=False))}


def _hooks(layer: nn.Module) -> list[Any]:
    hooks = layer._forward_pre_hooks.values()  # noqa: SLF001 (where the older norms and pruning are)
    return [hook for hook in hooks if isinstance(hook, SpectralNorm | WeightNorm | BasePruningMethod)]


def _computed_by(hook: Any) -> str:
    return str(hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)  # noqa: SLF001


def _stored_by(hook: Any) -> list[str]:
    ends = ["_g", "_v"] if isinstance(hook, WeightNorm) else ["_orig"]
    return [f"{_computed_by(hook)}{end}" for end in ends]


def _as_parametrization(hook: Any, layer: nn.Module) -> nn.Module:
    if isinstance(hook, BasePruningMethod):
        return _Pruned(getattr(layer, f"{_computed_by(hook)}_mask"))
    return _OldSpectralNorm(hook, layer) if isinstance(hook, SpectralNorm) else _WeightNorm(hook.dim)


class _Pruned(nn.Module):
    """torch's pruning in the form of a parametrization: what the mask leaves out is zero, whatever is stored there."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros."""
        return weight * self.mask


class _OldSpectralNorm(nn.Module):
    """The older spectral norm in the form of a parametrization; its buffers are the layer's."""

    def __init__(self, hook: SpectralNorm, layer: nn.Module) -> None:
        super().__init__()
        self.hook = hook
        self.register_buffer("u", getattr(layer, f"{hook.name}_u"))
        self.register_buffer("v", getattr(layer, f"{hook.name}_v"))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight of unit norm."""
        name = self.hook.name
        layer: Any = SimpleNamespace(**{f"{name}_orig": weight, f"{name}_u": self.u, f"{name}_v": self.v})
        return self.hook.compute_weight(layer, do_power_iteration=self.training)
