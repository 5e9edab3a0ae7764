"""Weights of which a process holds only a part: the DTensors of FSDP2 (``fully_shard``) and of tensor parallelism."""

from typing import Any

from torch import Tensor, nn

__all__ = ["is_sharded", "local", "part_of", "reshard", "whole"]


def is_sharded(tensor: Any) -> bool:
    """Return whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """Return what this process holds of ``tensor``: the same memory, without gradient."""
    here: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()
    return here


def whole(tensor: Any) -> Tensor:
    """Return all of ``tensor``; of a DTensor by an all-gather, which every process must take part in."""
    full: Tensor = tensor.to(tensor.device_mesh.device_type).full_tensor() if is_sharded(tensor) else tensor
    return full


def part_of(full: Tensor, tensor: Any) -> Tensor:
    """Return the part of ``full`` that this process holds of ``tensor``, on its device; no process is asked."""
    if not is_sharded(tensor):
        return full.to(tensor.device)
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415 (only for what is sharded)

    mesh = tensor.device_mesh
    everywhere = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = everywhere.redistribute(placements=tensor.placements).to_local()
    return part.to(tensor.device)


def reshard(model: nn.Module) -> None:
    """Let FSDP2 put its weights back into parts; after a forward pass alone some are whole, in copies of their own."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # type: ignore[operator]
