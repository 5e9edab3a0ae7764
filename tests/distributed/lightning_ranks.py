"""Generations in Lightning's trainer: ``torchrun --nproc-per-node=2 tests/distributed/lightning_ranks.py FOLDER``.

Each process writes what it found; without torchrun, one process alone does the same.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pml_extensions.evolution import KELS
from pml_extensions.evolution.lightning import KnowledgeEvolutionCallback

EPOCHS, GENERATIONS, BATCH = 2, 3, 8


def examples():
    images = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(images, torch.arange(24) % 3)


class Module(pl.LightningModule):
    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        between = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(6, 8), between, nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def fit(folder, module, *, slim=False, ckpt_path=None):
    """Return the weights and the callback of a fit over all processes."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    callback = KnowledgeEvolutionCallback(
        KELS(0.5, example_input=torch.zeros(2, 6)), EPOCHS, module="net", seed=3, slim=slim
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS * GENERATIONS,
        callbacks=[callback, ModelCheckpoint(folder, filename=f"{{epoch}}-of-{world}", save_top_k=-1)],
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        use_distributed_sampler=False,  # Lightning's own shuffles
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = examples()
    sampler = DistributedSampler(data, world, int(os.environ.get("RANK", "0")), shuffle=False)
    trainer.fit(module, DataLoader(data, BATCH // world, sampler=sampler), ckpt_path=ckpt_path)
    return {name: value.clone() for name, value in module.state_dict().items()}, callback


def check(folder):
    """Return what this process found: weights after all generations, resumed within one, and the slim network."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    weights, callback = fit(folder, Module())
    resumed = {epoch: fit(folder, Module(), ckpt_path=folder / f"epoch={epoch}-of-{world}.ckpt")[0] for epoch in (1, 2)}
    normed, own = fit(folder / "normed", Module(norm=True), slim=True)
    return {
        "generation": callback.evolution.generation,
        "weights": weights,
        "resumed": resumed,
        "normed": normed,
        "slim": own.slim_network.state_dict(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    target = Path(sys.argv[1])
    torch.save(check(target), target / f"rank-{os.environ.get('RANK', '0')}.pt")
