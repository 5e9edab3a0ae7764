"""Draws that depend on stated keys alone: the same on every device and rank, whatever was drawn before."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pml_extensions._parametrized import Chain, Parametrized, global_generator_seeded, parametrized_weights
from pml_extensions._sharding import is_sharded, local, part_of, whole
from pml_extensions.evolution.bits import difference
from pml_extensions.evolution.resetting import Owner, ResettingRule

__all__ = ["draw", "generator_for"]


def generator_for(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded from ``keys``; other keys give unrelated draws."""
    digest = hashlib.blake2b(
        repr(keys).encode(), digest_size=4
    ).digest()  # torch's CPU generator uses 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw(
    model: nn.Module, rule: ResettingRule, generators: Mapping[str, torch.Generator], masks: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors to write, with the bits to flip in them: M * W + (1 - M) * W_random, by ``rule``.

    They are what this process holds of each parameter that a generator is named after, and of what else belongs to a
    weight that is computed from one. The rule sees whole weights. Those of a sharded model are gathered and cut again
    one at a time.
    """
    computed = {name: weight for weight in parametrized_weights(model) for name in weight.stored}
    weights = list(dict.fromkeys(computed.get(name, name) for name in generators))

    def changes(weight: str | Parametrized) -> list[tuple[Tensor, Tensor]]:
        if isinstance(weight, str):
            return [_change(model, rule, generators[weight], masks[weight], weight)]
        return _changes(model, rule, generators, masks, weight)

    any_sharded = any(is_sharded(model.get_parameter(name)) for name in generators)
    threads = 1 if any_sharded else torch.get_num_threads()  # processes gather in the same order; a draw uses one core
    with ThreadPoolExecutor(threads) as pool:
        found = [change for some in pool.map(changes, weights) for change in some]
    return list({(here.data_ptr(), here.numel()): (here, flips) for here, flips in found}.values())  # shared ones once


def _change(
    model: nn.Module, rule: ResettingRule, generator: torch.Generator, mask: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    parameter = model.get_parameter(name)
    path, _, attribute = name.rpartition(".")
    values = _drawn(rule, _working_copy(parameter), generator, Owner(model.get_submodule(path), attribute), name)
    return _flips(parameter, values, mask)


@torch.no_grad()
def _changes(
    model: nn.Module,
    rule: ResettingRule,
    generators: Mapping[str, torch.Generator],
    masks: Mapping[str, Tensor],
    weight: Parametrized,
) -> list[tuple[Tensor, Tensor]]:
    """Return the changes of all that a computed weight is made of: parameters, and buffers of the parametrizations."""
    name = next(name for name in weight.stored if name in generators)
    parameters = [model.get_parameter(stored) for stored in weight.stored]
    stored = [_working_copy(parameter) for parameter in parameters]
    keep = [
        masks[one].expand_as(values) if one in generators else None
        for one, values in zip(weight.stored, stored, strict=True)
    ]
    owner = Owner(weight.layer, weight.attribute)
    with global_generator_seeded(generators[name].initial_seed()):
        chain = Chain(weight.chain, stored[0].dtype)
        new = chain.redraw(stored, keep, lambda values: _drawn(rule, _own(values), generators[name], owner, name))
    nothing = torch.zeros((), dtype=torch.bool)
    buffers = [buffer for module in weight.chain for buffer in module.buffers()]
    return [
        *(
            _flips(parameter, values, nothing if mask is None else mask)
            for parameter, values, mask in zip(parameters, new, keep, strict=True)
            if mask is not None or parameter.requires_grad or not model.get_parameter(name).requires_grad
        ),
        *(_flips(*pair, nothing) for pair in zip(buffers, chain.buffers(), strict=True)),
    ]


def _drawn(rule: ResettingRule, values: Tensor, generator: torch.Generator, owner: Owner, name: str) -> Tensor:
    expected = tuple(values.shape)
    drawn = rule(values, generator, owner)
    if not isinstance(drawn, Tensor) or drawn.shape != expected:
        got = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise ValueError(f"rule must return new values of shape {expected} for {name!r}, got {got}")
    return values.copy_(drawn.detach())


def _flips(tensor: Tensor, values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return what this process holds of a tensor, and the bits in which its new values differ."""
    here = local(tensor)
    mask = part_of(keep, tensor) if keep.ndim else keep.to(here.device)
    return here, difference(here, part_of(values.to(tensor.dtype), tensor), mask)


def _own(values: Tensor) -> Tensor:
    """Return a copy that a rule may write to; torch draws in the order of memory."""
    return values.clone(memory_format=torch.contiguous_format)


def _working_copy(parameter: Tensor) -> Tensor:
    wide = parameter.dtype if parameter.dtype.itemsize > 4 else torch.float32
    return whole(parameter.detach()).to("cpu", wide, copy=True, memory_format=torch.contiguous_format)
