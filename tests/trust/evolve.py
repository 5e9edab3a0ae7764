"""A training of several generations that writes a checkpoint after every step, and goes on from it when run again."""

import os
import time

import torch
from torch import nn

from pml_extensions.evolution import WELS, KnowledgeEvolution

GENERATIONS, STEPS = 4, 12


def write(state, path):
    """Write a checkpoint in one step: a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)  # noqa: PTH105 (as the documentation shows it)


def begin():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), KnowledgeEvolution(model, WELS(0.5))


def evolve(path, pause=0.0):
    model, optimizer, ke = begin()
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ke.load_state_dict(saved["ke"])
        first = saved["step"]
    for generation in ke.generations(GENERATIONS, optimizer=optimizer):
        for step in range(first, STEPS):
            batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * generation.index + step))
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ke": ke.state_dict()}
            write({**state, "step": step + 1}, path)
            time.sleep(pause)
        first = 0
    return model.state_dict()


def train_in(folder, pause):
    torch.set_num_threads(1)
    (folder / "started").touch()
    write(evolve(folder / "checkpoint.pt", pause), folder / "final.pt")
