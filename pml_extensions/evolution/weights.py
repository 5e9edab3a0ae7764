"""Which parameters of a model are weights: the kernels and matrices that its convolutions and linear maps apply.

Knowledge Evolution resets these alone; norms, biases, tables and tokens stay (Taha et al., arXiv:2103.05152, published
code).
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from pml_extensions._declared_input import ExampleInput, stand_in_inputs
from pml_extensions._parametrized import hooked_weights
from pml_extensions._sharding import is_sharded
from pml_extensions._slimming import NOT_MULTIPLIED, Operands, TracingError, watch_operands

__all__ = ["ExampleInput", "FoundWeights", "find_weights", "weights_by_use"]

NO_INPUT = "use unknown: the model declares no input size, and the split was given no example_input"

_WEIGHT_NAMES: dict[type[nn.Module], str] = {
    nn.modules.conv._ConvNd: "weight",  # noqa: SLF001 (the base of all convolutions, transposed ones included)
    nn.Linear: "weight",
    nn.Bilinear: "weight",
    nn.MultiheadAttention: "(in|q|k|v)_proj_weight",
    nn.RNNBase: r"weight_(ih|hh|hr)_l\d+(_reverse)?",
    nn.RNNCellBase: "weight_(ih|hh)",
}
_NO_WEIGHTS: dict[type[nn.Module], str] = {
    nn.Embedding: "embedding table",
    nn.EmbeddingBag: "embedding table",
    nn.modules.batchnorm._NormBase: "norm",  # noqa: SLF001 (the base of batch and instance norms)
    nn.LayerNorm: "norm",
    nn.GroupNorm: "norm",
}


class FoundWeights(NamedTuple):
    """The weights of a model by name, and for every other parameter the reason why it is none."""

    weights: dict[str, nn.Parameter]
    reasons: dict[str, str]


def find_weights(model: nn.Module, example_input: ExampleInput = None) -> FoundWeights:
    """Tell the weights of a model from its other parameters; tied parameters count once, under their first name.

    What a layer of ``torch.nn`` or a subclass holds is known from the layer. Any other parameter with two or more axes
    is a weight if a forward pass multiplies it with features (see ``pml_extensions._slimming.tracing.operands``).

    Args:
        model: any module. It is neither run nor changed: the forward pass happens in a copy that holds no data.
        example_input: input of that forward pass, two or more samples of any precision; by default of the size that
            a timm model declares. Where neither is known, or the pass fails, the parameters in question count as no
            weights; the reason says so.

    Returns:
        The weights, and the reasons for the rest, in the order of ``model.named_parameters()``.

    Examples:
        >>> find_weights(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))).reasons
        {'0.bias': 'bias, norm or scale', '1.weight': 'bias, norm or scale', '1.bias': 'bias, norm or scale'}
    """
    return weights_by_use(model, lambda: _operands(model, example_input))


def weights_by_use(model: nn.Module, look: Callable[[], Operands | str]) -> FoundWeights:
    """Tell the weights of a model from its other parameters, asking only where the layers do not tell.

    ``look`` returns how a forward pass uses the parameters, or why that is not known.
    """
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    weights = {names[id(weight)] for layer in model.modules() for weight in _layer_weights(layer)}
    reasons: dict[str, str] = {}
    unknown: dict[str, nn.Parameter] = {}
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            name = names[id(parameter)]
            reason = _reason(layer, parameter)
            if reason:
                reasons[name] = reason
            elif name not in weights:
                unknown[name] = parameter
    if any(map(is_sharded, unknown.values())):
        raise ValueError(
            f"model must not be sharded yet: the use of {next(iter(unknown))!r} shows in a forward pass of a copy, "
            "and fully_shard forbids copies; make the KnowledgeEvolution, or its summary, before fully_shard"
        )
    if unknown:
        found = look()
        uses = dict.fromkeys(unknown, found) if isinstance(found, str) else found.reasons(unknown, weights)
        weights |= {name for name, reason in uses.items() if reason is None}
        reasons |= {name: reason for name, reason in uses.items() if reason is not None}
    return FoundWeights(
        {name: parameter for name, parameter in parameters.items() if name in weights},
        {name: reasons.get(name, NOT_MULTIPLIED) for name in parameters if name not in weights},
    )


def _operands(model: nn.Module, example_input: ExampleInput) -> Operands | str:
    """Return how a forward pass uses the parameters of a model, or why that cannot be seen."""
    try:
        inputs = stand_in_inputs(model, example_input)
    except TracingError:
        return NO_INPUT
    try:
        return watch_operands(model, inputs)
    except TracingError as error:
        return f"use unknown: {next(iter(str(error).splitlines()))}"


def _layer_weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights that a layer of ``torch.nn`` is known to apply."""
    pattern = "|".join(names for kind, names in _WEIGHT_NAMES.items() if isinstance(layer, kind))
    for attribute, parameter in layer.named_parameters(recurse=False):
        if re.fullmatch(pattern, attribute):
            yield parameter
    if parametrize.is_parametrized(layer):
        for attribute, originals in layer.parametrizations.items():  # type: ignore[union-attr, operator]
            if re.fullmatch(pattern, attribute):  # of direction and length, as in weight norm, the direction
                yield max(originals.parameters(recurse=False), key=Tensor.numel)
    for attribute, parameter in hooked_weights(layer):
        if re.fullmatch(pattern, attribute):
            yield parameter


def _reason(layer: nn.Module, parameter: nn.Parameter) -> str | None:
    """Return why a layer's parameter is no weight, or None if the layer does not tell."""
    if parameter.ndim < 2:
        return "bias, norm or scale"
    return next((reason for kind, reason in _NO_WEIGHTS.items() if isinstance(layer, kind)), None)
