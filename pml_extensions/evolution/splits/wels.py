"""WELS: the weight-level split of Knowledge Evolution."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer, check_rate
from pml_extensions.evolution.draws import generator_for
from pml_extensions.evolution.weights import ExampleInput, find_weights

__all__ = ["WELS"]


@checked_constructor
@dataclass(frozen=True)
class WELS:
    """Put every weight into the fit-hypothesis with probability ``rate``, independently of the others.

    The masks depend on ``rate``, ``seed`` and the shapes alone, so they are the same in every process and on every
    device.

    Args:
        rate: the split rate s_r, in (0, 1]; 0.5 is the published choice.
        seed: of the draw.
        example_input: see ``pml_extensions.evolution.find_weights``; needed where a model that is not timm's holds
            weight matrices outside the layers of ``torch.nn``.

    Returns:
        Called with a model, the masks: name of each weight -> bool tensor of its shape, True = fit-hypothesis.

    Raises:
        TypeError: if ``rate`` is no number or ``seed`` no integer.
        ValueError: if ``rate`` is out of range.

    Examples:
        >>> masks = WELS(0.5)(nn.Linear(100, 100))
        >>> 0.45 < masks["weight"].float().mean().item() < 0.55
        True

    Source: Taha, Shrivastava and Davis, arXiv:2103.05152, section 3.2.
    """

    rate: float
    seed: int = 0
    example_input: ExampleInput = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_integer("seed", self.seed)

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks of ``model``."""
        places = {name: place for place, (name, _) in enumerate(model.named_parameters())}
        return {
            name: torch.rand(weight.shape, generator=generator_for(self.seed, "split", places[name])) < self.rate
            for name, weight in find_weights(model, self.example_input).weights.items()
        }
