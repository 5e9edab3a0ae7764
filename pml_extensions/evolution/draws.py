"""Draws that depend on stated keys alone: the same on every device and rank, whatever was drawn before."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pml_extensions.evolution.resetting import Owner, ResettingRule

__all__ = ["draw", "generator_for"]


def generator_for(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded from ``keys``; other keys give unrelated draws."""
    digest = hashlib.blake2b(
        repr(keys).encode(), digest_size=4
    ).digest()  # torch's CPU generator uses 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@torch.no_grad()
def draw(model: nn.Module, rule: ResettingRule, generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    """Return new CPU values by ``rule`` for each parameter that a generator is named after."""
    values = {name: _working_copy(model.get_parameter(name)) for name in generators}

    def fill(name: str) -> None:
        path, _, attribute = name.rpartition(".")
        drawn = rule(values[name], generators[name], Owner(model.get_submodule(path), attribute))
        expected = tuple(values[name].shape)
        if not isinstance(drawn, Tensor) or drawn.shape != expected:
            got = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(f"rule must return new values of shape {expected} for {name!r}, got {got}")
        values[name].copy_(drawn.detach())

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # a draw itself uses one core
        list(pool.map(fill, values))
    return values


def _working_copy(parameter: Tensor) -> Tensor:
    wide = parameter.dtype if parameter.dtype.itemsize > 4 else torch.float32
    return parameter.detach().to("cpu", wide, copy=True, memory_format=torch.contiguous_format)
