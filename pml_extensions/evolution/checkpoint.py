"""The state of Knowledge Evolution as plain values: one bit a weight, and what tells whether it fits a model."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Progress", "pack", "unpack"]

VERSION = 1


class Progress(NamedTuple):
    """Where an evolution stands: the seed of its draws, its generation, and whether that was trained to its end."""

    seed: int
    generation: int
    trained: bool


def pack(model: nn.Module, split: Any, masks: Mapping[str, Tensor], progress: Progress) -> dict[str, Any]:
    """Return the state: numbers, strings, lists, and uint8 tensors that hold eight mask elements a byte."""
    return {
        "version": VERSION,
        "architecture": _fingerprint(model),
        "shapes": {name: list(shape) for name, shape in _shapes(model).items()},
        "split": _description(split),
        **progress._asdict(),
        "masks": {name: _bits(mask) for name, mask in masks.items()},
    }


def unpack(model: nn.Module, split: Any, state: Any, masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Progress]:
    """Return masks and progress of a state; raise unless it fits model and split, and has all of ``masks``."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dict from KnowledgeEvolution.state_dict(), got {type(state).__name__}")
    expected = {"version": VERSION, "architecture": _fingerprint(model), "split": _description(split)}
    missing = {*expected, "seed", "generation", "masks"} - set(state)
    if missing:
        raise ValueError(f"state must come from KnowledgeEvolution.state_dict(), but it lacks {sorted(missing)}")
    for key, value in expected.items():
        if state[key] != value:
            where = _differences(state.get("shapes"), model) if key == "architecture" else ""
            raise ValueError(f"state was saved for another {key}: got {state[key]!r}, expected {value!r}{where}")
    saved, seed, generation = state["masks"], state["seed"], state["generation"]
    if not (isinstance(seed, int) and isinstance(generation, int) and generation >= 0 and isinstance(saved, Mapping)):
        raise ValueError(
            "state is broken: it must hold an int as seed, an int of at least 0 as generation and a dict as masks, got "
            f"{seed!r}, {generation!r} and {type(saved).__name__}"
        )
    if saved.keys() != masks.keys():
        raise ValueError(f"state is broken: its masks lack or exceed {sorted(saved.keys() ^ masks.keys())}")
    fitting = {name: _mask(name, bits, masks[name].shape) for name, bits in saved.items()}
    return fitting, Progress(seed, generation, bool(state.get("trained", False)))


def _fingerprint(model: nn.Module) -> str:
    """Return the class of a model with a digest of its parameters' names and shapes."""
    shapes = list(_shapes(model).items())
    name = type(model).__name__.removeprefix("FSDP")  # fully_shard renames the class of a model
    return f"{name}-{hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]}"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _differences(saved: Any, model: nn.Module) -> str:
    """Return in words which parameters differ, at most three; nothing where the state does not say its shapes."""
    if not isinstance(saved, Mapping):
        return ""
    got, expected = {name: tuple(shape) for name, shape in saved.items()}, _shapes(model)
    differing = [name for name in {**expected, **got} if got.get(name) != expected.get(name)]
    listed = ", ".join(f"{name} of {got.get(name)} for {expected.get(name)}" for name in differing[:3])
    return f"; {len(differing)} parameters differ: {listed}{', ...' * (len(differing) > 3)}"


def _description(split: Any) -> str:
    """Return what a split prints as, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(split))


def _bits(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy()))


def _mask(name: str, bits: Any, shape: torch.Size) -> Tensor:
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
        got = bits.dtype if isinstance(bits, Tensor) else type(bits).__name__
        raise ValueError(f"state is broken: its mask '{name}' must be a tensor of uint8, got {got}")
    size = (shape.numel() + 7) // 8
    if tuple(bits.shape) != (size,):
        raise ValueError(f"state is broken: its mask '{name}' must hold {size} bytes, got shape {tuple(bits.shape)}")
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=shape.numel())).bool().reshape(shape)
