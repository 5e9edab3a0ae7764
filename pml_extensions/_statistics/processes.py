"""What several processes tell one another while each of them runs the network on its own part of the data."""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gathered", "initialised", "mean_and_variances", "number", "summed"]


def initialised() -> bool:
    """Return whether processes were started together, be it a single one."""
    return dist.is_available() and dist.is_initialized()


def number(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of processes of a group, by default of all."""
    return dist.get_world_size(group) if initialised() else 1


def gathered(value: int, device: torch.device) -> list[int]:
    """Return the values of all processes, each of which must ask."""
    if number() == 1:
        return [value]
    own = torch.tensor(value, device=device)
    parts = [torch.empty_like(own) for _ in range(number())]
    dist.all_gather(parts, own)
    return [int(part) for part in parts]


def summed(values: Tensor) -> Tensor:
    """Return the sum over all processes, each of which must ask."""
    if number() > 1:
        dist.all_reduce(values)
    return values


def mean_and_variances(features: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return each channel's mean, biased and unbiased variance over what all processes of a group hold.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.

    Args:
        features: (N, C, ...) of floating-point numbers; N may differ between the processes.
        group: the processes, each of which must ask; None for all.

    Raises:
        ValueError: if there is only one value a channel.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, [d for d in range(features.ndim) if d != 1], correction=0)
    count = mean.new_tensor([features.numel() // features.shape[1]], dtype=torch.double)
    own = torch.cat([count, mean.double(), variance.double()])
    parts = [torch.empty_like(own) for _ in range(number(group))]
    dist.all_gather(parts, own, group=group)
    counts, means, variances = torch.split(torch.stack(parts), [1, len(mean), len(mean)], dim=1)
    total = counts.sum()
    if total <= 1:
        raise ValueError("expected more than one value per channel over all processes")
    mean = (counts * means).sum(0) / total
    biased = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, biased, biased * total / (total - 1)
