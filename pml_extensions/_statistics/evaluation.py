"""Run a user's model without leaving a trace: modes, caches, gradients and random state are as before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["device_of", "evaluating", "random_state_kept", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` or a data-parallel wrapper holds; any other model as it is."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    original = getattr(model, "_orig_mod", None)  # torch.compile's; its class is costly to import
    return unwrapped(original) if isinstance(original, nn.Module) else model


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first tensor, where its inputs belong."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients; every module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()  # where modules forget what they have computed for evaluation, as attention biases
        for module, training in modes.items():
            module.training = training


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the global generators of Python, numpy and torch back afterwards; loaders draw from them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
