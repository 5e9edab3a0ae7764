"""Later-layer forgetting: reset everything from a named layer on."""

import difflib
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions.evolution.weights import ExampleInput, find_weights

__all__ = ["LaterLayers"]


@checked_constructor
@dataclass(frozen=True)
class LaterLayers:
    """Put all weights before a layer into the fit-hypothesis, and those of the layer and all later ones into the other.

    The order is that of ``model.named_parameters()``, as in the published code.

    Args:
        first: name of the first layer to reset, as in ``model.named_modules()``, such as ``"layer4"`` (the published
            choice for a ResNet-18), or of a parameter.
        example_input: see ``pml_extensions.evolution.find_weights``.

    Returns:
        Called with a model, the masks: name of each weight -> bool tensor of its shape, True = fit-hypothesis.

    Raises:
        TypeError: if ``first`` is no name.
        ValueError: when called with a model that has no such layer, or no weights from there on.

    Examples:
        >>> masks = LaterLayers("1")(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> {name: mask.any().item() for name, mask in masks.items()}
        {'0.weight': True, '1.weight': False}

    Source: Zhou, Vani, Larochelle and Courville, Fortuitous forgetting in connectionist networks, ICLR 2022.
    """

    first: str
    example_input: ExampleInput = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.first, str):
            raise TypeError(f"first must be a str, the name of a layer, got {type(self.first).__name__}")

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks of ``model``."""
        names = [name for name, _ in model.named_parameters()]
        start = next((place for place, name in enumerate(names) if f"{name}.".startswith(f"{self.first}.")), None)
        if start is None:
            known = [name for name, _ in chain(model.named_modules(), model.named_parameters()) if name]
            close = difflib.get_close_matches(self.first, known) or known[:3]
            raise ValueError(
                f"first must name a layer of the model that has parameters, such as {close}, got {self.first!r}"
            )
        later = set(names[start:])
        weights = find_weights(model, self.example_input).weights
        if later.isdisjoint(weights):
            raise ValueError(f"first must name a layer with weights to reset from there on, got {self.first!r}")
        return {name: torch.full(weight.shape, name not in later) for name, weight in weights.items()}
