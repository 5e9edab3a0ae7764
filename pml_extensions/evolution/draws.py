"""Draws that depend on stated keys alone: the same on every device and rank, whatever was drawn before."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pml_extensions._sharding import is_sharded, part_of, whole
from pml_extensions.evolution.resetting import Owner, ResettingRule

__all__ = ["draw", "generator_for"]


def generator_for(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded from ``keys``; other keys give unrelated draws."""
    digest = hashlib.blake2b(
        repr(keys).encode(), digest_size=4
    ).digest()  # torch's CPU generator uses 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw(model: nn.Module, rule: ResettingRule, generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    """Return new values by ``rule`` for each parameter that a generator is named after: what this process holds of it.

    The rule sees whole weights. Those of a sharded model are gathered and cut again one at a time.
    """

    def new_values(name: str) -> Tensor:
        parameter = model.get_parameter(name)
        path, _, attribute = name.rpartition(".")
        values = _working_copy(parameter)
        drawn = rule(values, generators[name], Owner(model.get_submodule(path), attribute))
        expected = tuple(parameter.shape)
        if not isinstance(drawn, Tensor) or drawn.shape != expected:
            got = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(f"rule must return new values of shape {expected} for {name!r}, got {got}")
        return part_of(values.copy_(drawn.detach()).to(parameter.dtype), parameter)

    any_sharded = any(is_sharded(model.get_parameter(name)) for name in generators)
    threads = 1 if any_sharded else torch.get_num_threads()  # processes gather in the same order; a draw uses one core
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(generators, pool.map(new_values, generators), strict=True))


def _working_copy(parameter: Tensor) -> Tensor:
    wide = parameter.dtype if parameter.dtype.itemsize > 4 else torch.float32
    return whole(parameter.detach()).to("cpu", wide, copy=True, memory_format=torch.contiguous_format)
