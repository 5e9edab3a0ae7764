"""Every source of chance that the first runs draw from, seeded."""

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seed torch, and numpy, from which pytorch-metric-learning's sampler draws."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
