"""What each process does: ``torchrun --nproc-per-node=4 tests/distributed/ranks.py FOLDER`` writes what all found."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from problems import batches, cases, embedder, metric_loss, own, shares, silent_loss, steps
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch.nn.parallel import DistributedDataParallel

from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.regularizers import SVMaxRegularizer


def value_and_gradient(function, rows):
    """The value, and the gradient as DistributedDataParallel's average over the processes would leave it."""
    leaf = rows.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    return value.detach(), leaf.grad / dist.get_world_size()


def svmax(rank, world):
    return {
        key: value_and_gradient(SVMaxRegularizer(**settings, distributed=True), own(batch, counts, rank))
        for key, batch, counts, settings in cases(world)
    }


def svmax_half_precision(rank, world):
    batch = batches(torch.bfloat16)["tall"]
    value, grad = value_and_gradient(SVMaxRegularizer(distributed=True), own(batch, shares(30, world)["even"], rank))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = SVMaxRegularizer(distributed=True)(own(batch, shares(30, world)["even"], rank).float())
    return value, grad, under_autocast


def svmax_statistics(rank, world):
    regularizer = SVMaxRegularizer(distributed=True, collect_stats=True)
    regularizer(own(batches(torch.float64)["tall"], shares(30, world)["short"], rank))
    return regularizer.mean_singular_value, regularizer.spread, regularizer.effective_rank


def svmax_not_finite(rank, world):
    rows = own(batches(torch.float32)["tall"], shares(30, world)["even"], rank).clone()
    if rank == 1:
        rows[0, 0] = torch.nan
    return value_and_gradient(SVMaxRegularizer(distributed=True, normalize_embeddings=False), rows)


def svmax_refuses(rank, world):
    messages = []
    for shape in ((0, 4), (2, 4 + rank)):
        try:
            SVMaxRegularizer(distributed=True)(torch.ones(shape))
        except ValueError as error:
            messages.append(str(error))
    return messages


def svmax_training(rank, world):
    model = DistributedDataParallel(embedder())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    regularizer = SVMaxRegularizer(distributed=True)
    for inputs, _ in steps():
        embeddings = model(own(inputs, shares(len(inputs), world)["short"], rank))
        optimizer.zero_grad()
        (regularizer(embeddings) + world * embeddings.square().sum() / len(inputs)).backward()
        optimizer.step()
    return model.module.state_dict()


def svmax_in_wrapper(rank, world):
    batch, counts = batches(torch.float64)["wide"][:4], [4 // world] * world
    labels = torch.arange(4) // 2
    mine, my_labels = own(batch, counts, rank), own(labels, counts, rank)
    memory = CrossBatchMemory(silent_loss(distributed=True), 24, 32)
    losses = {
        "whole": DistributedLossWrapper(silent_loss(distributed=True)),
        "efficient": DistributedLossWrapper(silent_loss(distributed=True), efficient=True),
        "memory": DistributedLossWrapper(memory),
        "whole, not asked": DistributedLossWrapper(silent_loss()),
    }
    found = {
        name: value_and_gradient(lambda rows, loss=loss: loss(rows, my_labels), mine) for name, loss in losses.items()
    }
    compiled = torch.compile(losses["efficient"], backend="eager")
    return {**found, "compiled": value_and_gradient(lambda rows: compiled(rows, my_labels), mine)}


def wrapper_training(rank, world):
    found = {}
    for name, loss, efficient in (("whole", metric_loss, False), ("efficient", silent_loss, True)):
        model = DistributedDataParallel(embedder())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = DistributedLossWrapper(loss(distributed=True), efficient=efficient)
        for inputs, labels in steps(last=8):
            counts = shares(len(inputs), world)["even"]
            optimizer.zero_grad()
            wrapper(model(own(inputs, counts, rank)), own(labels, counts, rank)).backward()
            optimizer.step()
        found[name] = model.module.state_dict()
    return found


def semi_hard(rank, world):
    batch, labels = batches(torch.float64)["tall"][:24], torch.arange(24) % 5
    counts = [24 // world] * world
    mine, my_labels = own(batch, counts, rank), own(labels, counts, rank)
    found = {}
    for efficient in (False, True):
        loss = DistributedLossWrapper(SemiHardTripletLoss(), efficient=efficient)
        triplets = DistributedMinerWrapper(SemiHardMiner(), efficient=efficient)(mine, my_labels)
        found[efficient, "mined"] = triplets
        found[efficient, "given"] = value_and_gradient(
            lambda rows, loss=loss, given=triplets: loss(rows, my_labels, given), mine
        )
    loss = DistributedLossWrapper(SemiHardTripletLoss())
    found["by itself"] = value_and_gradient(lambda rows: loss(rows, my_labels), mine)
    return found


CHECKS = [
    svmax,
    svmax_half_precision,
    svmax_statistics,
    svmax_not_finite,
    svmax_refuses,
    svmax_training,
    svmax_in_wrapper,
    wrapper_training,
    semi_hard,
]


def main():
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for world in (4, 2):
        if rank >= world:
            return
        dist.init_process_group("gloo", f"file://{folder}/store-{world}", rank=rank, world_size=world)
        found = {check.__name__: check(rank, world) for check in CHECKS}
        torch.save(found, folder / f"{world}-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
