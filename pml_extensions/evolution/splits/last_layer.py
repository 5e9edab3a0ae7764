"""Reset the last layer alone."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions.evolution.weights import ExampleInput, find_weights

__all__ = ["LastLayer"]


@checked_constructor
@dataclass(frozen=True)
class LastLayer:
    """Put the weights of the last layer into the reset-hypothesis, and all others into the fit-hypothesis.

    The last layer is the classifier of a timm model (``model.get_classifier()``); where there is none, the layer that
    holds the last weight of ``model.named_parameters()``.

    Args:
        example_input: see ``pml_extensions.evolution.find_weights``.

    Returns:
        Called with a model, the masks: name of each weight -> bool tensor of its shape, True = fit-hypothesis.

    Examples:
        >>> masks = LastLayer()(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> {name: mask.any().item() for name, mask in masks.items()}
        {'0.weight': True, '1.weight': False}

    Source: Li et al., RIFLE: backpropagation in depth for deep transfer learning through re-initializing the
    fully-connected layer, ICML 2020.
    """

    example_input: ExampleInput = field(default=None, repr=False, compare=False, kw_only=True)

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks of ``model``."""
        weights = find_weights(model, self.example_input).weights
        last = _classifier_weights(model, weights) or _weights_of_last_layer(weights)
        return {name: torch.full(weight.shape, name not in last) for name, weight in weights.items()}


def _classifier_weights(model: nn.Module, weights: dict[str, nn.Parameter]) -> set[str]:
    """Return the classifier's weights by name; a distilled model has a tuple of classifiers, a headless one none."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
    own = {id(parameter) for head in heads if isinstance(head, nn.Module) for parameter in head.parameters()}
    return {name for name, weight in weights.items() if id(weight) in own}


def _weights_of_last_layer(weights: dict[str, nn.Parameter]) -> set[str]:
    layers = [name.rpartition(".")[0] for name in weights]
    return {name for name, layer in zip(weights, layers, strict=True) if layer == layers[-1]}
