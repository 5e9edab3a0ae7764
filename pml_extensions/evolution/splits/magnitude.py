"""Keep the largest weights of each parameter, reset the rest."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_rate
from pml_extensions._sharding import whole
from pml_extensions.evolution.weights import ExampleInput, find_weights

__all__ = ["Magnitude"]


def largest(weight: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` elements of largest magnitude; of equal ones, the first."""
    size = whole(weight.detach()).abs().flatten().cpu()
    if count == 0:
        return torch.zeros(weight.shape, dtype=torch.bool)
    threshold = size.kthvalue(size.numel() - count + 1).values
    mask = size > threshold
    ties = (size == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.reshape(weight.shape)


@checked_constructor
@dataclass(frozen=True)
class Magnitude:
    """Put the share ``rate`` of each parameter's weights that is largest in magnitude into the fit-hypothesis.

    The magnitudes are those at the time of the split. A parameter of n weights keeps round(rate * n) of them.

    Args:
        rate: share of the weights to keep, in (0, 1].
        example_input: see ``pml_extensions.evolution.find_weights``.

    Returns:
        Called with a model, the masks: name of each weight -> bool tensor of its shape, True = fit-hypothesis.

    Raises:
        TypeError: if ``rate`` is no number.
        ValueError: if ``rate`` is out of range.

    Examples:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -3.0, 2.0, -0.2]]))
        >>> Magnitude(0.5)(layer)["weight"]
        tensor([[False,  True,  True, False]])
    """

    rate: float
    example_input: ExampleInput = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks of ``model``."""
        weights = find_weights(model, self.example_input).weights
        return {name: largest(weight, round(self.rate * weight.numel())) for name, weight in weights.items()}
