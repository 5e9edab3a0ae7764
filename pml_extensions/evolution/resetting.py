"""Rules that draw new values for the weights of a reset-hypothesis, each a small callable.

A rule gets a copy of a whole weight, on the CPU and in float32 or wider, a generator, and the weight's owner. It
returns the new values, in the same shape; it may write them into the copy, as the functions of ``torch.nn.init`` do.
What it returns for the fit-hypothesis is not used. Several weights are drawn at a time, in threads, so a rule must take
its randomness from its own generator alone. Of a layer under a parametrization it gets the weight, not what is stored.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions._parametrized import as_made, global_generator_seeded

__all__ = ["KaimingNormal", "KaimingUniform", "LayerDefault", "Owner", "ResettingRule", "ShrinkPerturb"]


class Owner(NamedTuple):
    """Where a weight lives: ``getattr(owner.layer, owner.attribute)``."""

    layer: nn.Module
    attribute: str


ResettingRule = Callable[[Tensor, Generator, Owner], Tensor]
"""What draws a weight anew: called with a copy of its values, which it may overwrite, the generator to draw from, and
the weight's owner, it returns new values of the same shape."""


@checked_constructor
@dataclass(frozen=True)
class KaimingUniform:
    """Draw uniformly from ±gain * sqrt(3 / fan_in), as the published code of Knowledge Evolution resets.

    The fan-in is that of the whole weight, as torch counts it: the product of all its axes but the first.

    Args:
        a: negative slope of the leaky ReLU that the gain is meant for; the default gives ±1 / sqrt(fan_in).

    Source: Taha et al., arXiv:2103.05152, published code; He et al., arXiv:1502.01852.
    """

    a: float = math.sqrt(5)

    def __call__(self, values: Tensor, generator: Generator, owner: Owner) -> Tensor:  # noqa: ARG002 (the rules' form)
        """Return new values; see the module."""
        return nn.init.kaiming_uniform_(values, a=self.a, generator=generator)


@checked_constructor
@dataclass(frozen=True)
class KaimingNormal:
    """Draw from a normal distribution of standard deviation sqrt(2 / fan_in): the published start of generation 0.

    Source: Taha et al., arXiv:2103.05152, published code; He et al., arXiv:1502.01852.
    """

    def __call__(self, values: Tensor, generator: Generator, owner: Owner) -> Tensor:  # noqa: ARG002 (the rules' form)
        """Return new values; see the module."""
        return nn.init.kaiming_normal_(values, generator=generator)


@checked_constructor
@dataclass(frozen=True)
class LayerDefault:
    """Draw as the layer was made: by its own ``reset_parameters``, run in a copy of the layer.

    Raises:
        ValueError: if the layer has no such method, or the method leaves the weight out, or the layer by itself was
            given to ``fully_shard``.
    """

    def __call__(self, values: Tensor, generator: Generator, owner: Owner) -> Tensor:
        """Return new values; see the module."""
        layer, attribute = owner
        if hasattr(layer, "unshard"):
            raise ValueError(
                f"LayerDefault copies layers, which fully_shard forbids for its own units: shard what holds the "
                f"{type(layer).__name__} with {attribute!r} instead, or use another resetting rule"
            )
        blanks = {id(p): nn.Parameter(torch.full(p.shape, math.nan, dtype=p.dtype)) for p in layer.parameters()}
        held = [value for module in layer.modules() for value in vars(module).values()]
        computed = {id(value): value.detach() for value in held if isinstance(value, Tensor)}
        twin = copy.deepcopy(layer, {**computed, **blanks})
        as_made(twin, math.nan)
        remake = getattr(twin, "reset_parameters", None) or getattr(twin, "_reset_parameters", None)
        if remake is None:
            raise ValueError(
                f"LayerDefault needs a layer with a reset_parameters method, got {type(layer).__name__}, which holds "
                f"{attribute!r}; use another resetting rule, such as KaimingUniform()"
            )
        with torch.no_grad(), global_generator_seeded(generator.initial_seed()):
            remake()
        drawn: Tensor = getattr(twin, attribute).detach()
        if drawn.isnan().any():
            raise ValueError(
                f"reset_parameters of {type(layer).__name__} does not draw {attribute!r}; use another rule"
            )
        return drawn.to(values.dtype)


@checked_constructor
@dataclass(frozen=True)
class ShrinkPerturb:
    """Shrink the current values towards zero and add noise: shrink * W + N(0, std²).

    Args:
        shrink: factor on the current values, in [0, 1].
        std: standard deviation of the noise, in units of the weights; positive or zero.

    Raises:
        ValueError: if an argument is out of range.

    Source: Ash and Adams, On warm-starting neural network training, NeurIPS 2020.
    """

    shrink: float
    std: float

    def __post_init__(self) -> None:
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must lie in [0, 1], got {self.shrink}")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std must be a finite number of at least 0, got {self.std}")

    def __call__(self, values: Tensor, generator: Generator, owner: Owner) -> Tensor:  # noqa: ARG002 (the rules' form)
        """Return new values; see the module."""
        noise = torch.empty_like(values).normal_(generator=generator)
        return values.mul_(self.shrink).add_(noise, alpha=self.std)
