"""What each process does: ``torchrun --nproc-per-node=4 tests/distributed/ranks.py FOLDER`` writes what all found."""

import os
import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from problems import (
    FSDP2,
    RULES,
    WithNorms,
    batches,
    cases,
    classifier,
    embedder,
    metric_loss,
    mlp,
    normed_mlp,
    own,
    pictures,
    randn,
    shared_batches,
    shares,
    silent_loss,
    steps,
    two_head,
)
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from pml_extensions.evolution import (
    KELS,
    WELS,
    KnowledgeEvolution,
    LayerDefault,
    Magnitude,
    reestimate_statistics,
)
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.regularizers import SVMaxRegularizer

if FSDP2:
    from torch.distributed.fsdp import fully_shard

FULL = StateDictOptions(full_state_dict=True)


def fully_sharded(model):
    """FSDP2 over the processes, each block a unit of its own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for unit in model.blocks if hasattr(model, "blocks") else model[:2]:
        fully_shard(unit, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def full_state(model):
    return {name: weight.clone() for name, weight in get_model_state_dict(model, options=FULL).items()}


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
    def refused(shape):
        try:
            SVMaxRegularizer(distributed=True)(torch.ones(shape))
        except ValueError as error:
            return str(error)

    return refused((0, 4)), refused((2, 4 + rank))


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
    return {
        name: value_and_gradient(lambda rows, loss=loss: loss(rows, my_labels), mine) for name, loss in losses.items()
    }


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


def two_head_training(rank, world):
    found = {}
    for name, shard in (("ddp", DistributedDataParallel), *([("fsdp", fully_sharded)] if FSDP2 else [])):
        model = shard(two_head())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = TwoHeadLoss(DistributedLossWrapper(SemiHardTripletLoss()))
        for images, labels in pictures():
            counts = shares(len(images), world)["even"]
            optimizer.zero_grad()
            loss(model(own(images, counts, rank)), own(labels, counts, rank)).backward()
            optimizer.step()
        found[name] = full_state(model)
    return found


def resets(rank, world):
    """Evolutions made before and after the model is dealt out, with each rule; on other global generators."""
    found = {}
    for name, rule in RULES.items():
        ways = [("before", DistributedDataParallel), ("after", DistributedDataParallel)]
        for made, shard in ways + [("before", fully_sharded), ("after", fully_sharded)] * FSDP2:
            torch.manual_seed(rank)
            model = mlp()
            ke = KnowledgeEvolution(model, WELS(0.5), rule=rule, seed=3)
            sharded = shard(model)
            if made == "after":
                ke = KnowledgeEvolution(sharded, WELS(0.5), rule=rule, seed=3)
            ke.reset()
            states = [full_state(sharded)]
            with torch.no_grad():  # FSDP2 leaves the weights of the root whole after this
                sharded(torch.zeros(2, 7))
            ke.reset()
            states.append(full_state(sharded))
            ke.start(rule)
            found[name, made, shard.__name__] = [*states, full_state(sharded)]
    return found


def resets_of_computed_weights(rank, world):
    found = {}
    for shard in [DistributedDataParallel, *[fully_sharded] * FSDP2]:
        for rule in (RULES["uniform"], RULES["shrink"]):
            torch.manual_seed(rank)
            model = normed_mlp()
            ke = KnowledgeEvolution(model, WELS(0.5), rule=rule, seed=3)
            sharded = shard(model)
            ke.reset()
            found[shard.__name__, str(rule)] = full_state(sharded)
    return found


def failing_reset(rank, world):
    model = fully_sharded(mlp())

    def fails(values, generator, owner):
        if owner.layer.out_features == 3:
            raise ArithmeticError
        return values.zero_()

    ke = KnowledgeEvolution(model, WELS(0.5), rule=fails)
    try:
        ke.reset()
    except ArithmeticError:
        return ke.generation, full_state(model)


def training_goes_on(rank, world):
    """Generations of a sharded model with its optimiser, killed and resumed from what one process would save."""
    torch.manual_seed(0)

    def begin():
        model = fully_sharded(mlp())
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), KnowledgeEvolution(model, WELS(0.5))

    def train(model, optimizer):
        for step in range(3):
            optimizer.zero_grad()
            model(randn(4, 7, seed=step)).square().mean().backward()
            optimizer.step()

    model, optimizer, ke = begin()
    for generation in ke.generations(3, optimizer=optimizer):
        if generation.index == 1:
            saved = full_state(model), ke.state_dict()
        train(model, optimizer)
    other, optimizer, resumed = begin()
    set_model_state_dict(other, saved[0], options=FULL)
    resumed.load_state_dict(saved[1])
    dense = KnowledgeEvolution(mlp(), WELS(0.5))
    dense.load_state_dict(saved[1])
    for _ in resumed.generations(3, optimizer=optimizer):
        train(other, optimizer)
    return full_state(model), full_state(other), dense.generation


def slim_of_a_sharded_model(rank, world):
    dense = mlp()
    evolution = KnowledgeEvolution(dense, KELS(0.5, example_input=torch.zeros(2, 7)))
    model = fully_sharded(mlp())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    dense.load_state_dict(full_state(model))
    return evolution.slim().state_dict()


def refusals(rank, world):
    def refused(call):
        try:
            call()
        except (TypeError, ValueError) as error:
            return str(error)

    leaf = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (world,)))
    evolution = KnowledgeEvolution(leaf, WELS(0.5), rule=LayerDefault())
    return [
        refused(lambda: KnowledgeEvolution(fully_sharded(classifier()), KELS(0.5))),
        refused(lambda: KnowledgeEvolution(fully_sharded(classifier()), WELS(0.5))),
        refused(evolution.reset),
    ]


def magnitude_of_a_sharded_model(rank, world):
    return KnowledgeEvolution(fully_sharded(mlp()), Magnitude(0.3)).masks


def statistics(rank, world):
    """Statistics estimated anew by all processes: with as many batches each, with fewer, and with none in one."""
    found = {}
    for name, norm in (("batch", nn.BatchNorm2d), ("synchronised", nn.SyncBatchNorm)):
        for share, counts in (("even", [3] * world), ("uneven", [3, 1, 2, 2][:world])):
            model = WithNorms(norm)
            reestimate_statistics(model, shared_batches(world, counts)[rank])
            found[name, share] = model.state_dict()
    model = WithNorms()
    reestimate_statistics(model, shared_batches(world, [0, *[2] * (world - 1)])[rank])
    found["batch", "empty"] = model.state_dict()
    model = DistributedDataParallel(WithNorms(), find_unused_parameters=True)
    reestimate_statistics(model, shared_batches(world, [3] * world)[rank])
    found["batch", "wrapped"] = model.module.state_dict()
    return found


def failing_statistics(rank, world):
    """Errors of one process or of all, and the statistics afterwards."""
    good = shared_batches(world, [2] * world)[rank]

    def broken():
        yield good[0]
        if rank == world - 1:
            raise ArithmeticError("the disk is full")
        yield good[1]

    cases = {
        "data": broken,
        "no tensor": lambda: ["text"] if rank == 0 else good,
        "not finite": lambda: [good[0] * float("nan")] if rank == 0 else good,
        "no batch": list,
        "another size": lambda: [good[0][:, :1]] if rank == 0 else good,
    }
    found = {}
    for norm, name in product((nn.BatchNorm2d, nn.SyncBatchNorm), cases):
        if norm is nn.SyncBatchNorm and name == "another size":  # it stops one process in the midst of a pass
            continue
        model = WithNorms(norm)
        try:
            reestimate_statistics(model, cases[name]())
        except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
            found[norm.__name__, name] = f"{type(error).__name__}: {error}", model.state_dict()
    return found


def slim_with_statistics(rank, world):
    split = KELS(0.5, example_input=torch.zeros(2, 3, 8, 8))
    return split.slim(WithNorms().body, shared_batches(world, [2] * world)[rank]).state_dict()


def statistics_of_a_sharded_model(rank, world):
    model = fully_sharded(nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    reestimate_statistics(model, [randn(5, 7, seed=10 * rank + step) for step in range(2 + rank)])
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


SHARDED = [
    statistics_of_a_sharded_model,
    failing_reset,
    training_goes_on,
    slim_of_a_sharded_model,
    refusals,
    magnitude_of_a_sharded_model,
]
CHECKS = [
    statistics,
    failing_statistics,
    slim_with_statistics,
    two_head_training,
    resets,
    resets_of_computed_weights,
    *(SHARDED if FSDP2 else []),
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
