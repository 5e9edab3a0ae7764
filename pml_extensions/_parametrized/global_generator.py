"""torch's global CPU generator, lent to code that can draw from no other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["global_generator_seeded"]

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def global_generator_seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, and put it back afterwards."""
    with _ONE_AT_A_TIME:
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state)
