"""All public classes in one table: how to make one, how to use it, and what its repr must show."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import timm
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from pml_extensions import attr, evolution, losses, miners, models, monitors, regularizers, trainers
from pml_extensions.evolution import Owner

SUBPACKAGES = (attr, evolution, losses, miners, models, monitors, regularizers, trainers)
NO_OBJECTS = {
    "Filter",
    "Layout",
    "Objective",
    "Solver",
    "Split",
    "ResettingRule",
    "TracingError",
}  # forms of callables; an error


@dataclass(frozen=True)
class Case:
    """A class of the table.

    Attributes:
        make: returns a new object, always the same.
        use: does with the object what it is for, and returns tensors or plain values.
        shows: what the repr must contain.
        rows: takes (object, rows, dtype) and uses it on so many rows in that precision; None if it has no batch.
        network: what of the object to convert for half precision; None if only its batch is converted.
        precision: how far results in half precision lie from those in single precision, as a share of the largest.
        autocast: the same under autocast.
        refuses_no_rows: words of the error for an empty batch; None if it gives an empty result or zero.
        without_data: shapes of a batch on the meta device and of its results; None if it needs values.
        changes: using it changes it: that is its job.
        modes_differ: train and eval mode give other results.
        holds_lambdas: so it is not pickled.
    """

    make: Callable[[], Any]
    use: Callable[[Any], Any]
    shows: tuple[str, ...]
    rows: Callable[[Any, int, torch.dtype], Any] | None = None
    network: Callable[[Any], nn.Module] | None = None
    precision: float = 0.05
    autocast: float = 1e-5
    refuses_no_rows: str | None = None
    without_data: tuple[tuple[int, ...], list[tuple[int, ...]]] | None = None
    changes: bool = False
    modes_differ: bool = False
    holds_lambdas: bool = False


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels(rows):
    return torch.arange(rows) // 2 % 3


one_at_a_time = Lock()  # torch's global generator is the process's


def seeded(make):
    def made():
        with one_at_a_time, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return made


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()


def two_linear():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def l2_caf():
    model = convolutional()
    return attr.L2CAF(model, model[1], layout=attr.ChannelsFirst())


def attribute(rows, dtype, **kwargs):
    def use(explain):
        return explain.attribute(randn(rows, 3, 6, 6, dtype=dtype), **kwargs)

    return use


def reset(ke):
    ke.reset()
    return {name: weight.detach().clone() for name, weight in ke.model.named_parameters()}


def masks(split):
    return split(two_linear_fixed())


two_linear_fixed = seeded(two_linear)
EXAMPLE = torch.zeros(2, 6)


def rule(one):
    generator = torch.Generator().manual_seed(1)
    return one(torch.ones(3, 4), generator, Owner(nn.Linear(4, 3, device="meta").to_empty(device="cpu"), "weight"))


def solve(solver):
    solution = solver.minimize(lambda p: (p - 1).square().sum(1), torch.zeros(2, 3), lambda: None)
    return solution.parameters, solution.objective


def images_to_two_heads(two, rows=2, dtype=torch.float32):
    return tuple(two.eval()(randn(rows, 3, 32, 32, dtype=dtype)))


def with_gradient(value, leaf):
    value.backward()
    return value.detach(), leaf.grad


def loss_of(loss, rows=8, dtype=torch.float32):
    leaf = randn(rows, 5, dtype=dtype).requires_grad_()
    return with_gradient(loss(leaf, labels(rows)), leaf)


def two_head_loss(loss, rows=8, dtype=torch.float32):
    leaf = randn(rows, 5, dtype=dtype).requires_grad_()
    return with_gradient(loss((randn(rows, 3, dtype=dtype), leaf), labels(rows)), leaf)


def views(loss, rows=8, dtype=torch.float32):
    leaf = randn(rows, 5, dtype=dtype).requires_grad_()
    return with_gradient(loss(leaf, randn(rows, 5, seed=1, dtype=dtype)), leaf)


def monitored(monitor, rows=8, dtype=torch.float32):
    monitor.update(randn(rows, 4, dtype=dtype))
    return monitor.compute()


def regularizer(term, rows=8, dtype=torch.float32):
    leaf = randn(rows, 5, dtype=dtype).requires_grad_()
    return with_gradient(term(leaf), leaf)


def mine(miner, rows=8, dtype=torch.float32):
    return miner(randn(rows, 5, dtype=dtype), labels(rows))


def trainer():
    heads = {"trunk": nn.Linear(4, 8), "embedder": nn.Linear(8, 2), "classifier": nn.Linear(8, 3)}
    return trainers.TrainTwoHead(
        heads,
        {},
        4,
        {"metric_loss": losses.SemiHardTripletLoss(), "classifier_loss": nn.CrossEntropyLoss()},
        [(randn(4, seed=i), i % 3) for i in range(8)],
        data_device="cpu",
    )


def trainer_losses(one):
    one.losses = {"metric_loss": 0, "classifier_loss": 0}
    one.calculate_loss((randn(4, 4), torch.tensor([0, 0, 1, 1])))
    return dict(one.losses)


def attributes(one):
    return tree_map_only(
        nn.Parameter, lambda weight: weight.detach(), dict(vars(one)) if hasattr(one, "__dict__") else tuple(one)
    )


def fields(**values):
    return tuple(f"{name}={value}" for name, value in values.items())


CASES = {
    "L2CAF": Case(
        seeded(l2_caf),
        attribute(2, torch.float32, target=1),
        ("Sequential", "layer=ReLU", "layout=ChannelsFirst()", "device_ids=None"),
        lambda explain, rows, dtype: attribute(rows, dtype, target=1)(explain),
        network=lambda explain: explain.forward_func,
        autocast=0.05,
        refuses_no_rows="inputs must hold at least one example",
    ),
    "LBFGS": Case(lambda: attr.LBFGS(steps=30), solve, fields(steps=30, tolerance=0.0001, history=10)),
    "PublishedSGD": Case(lambda: attr.PublishedSGD(steps=30, scale=2.0), solve, fields(steps=30, scale=2.0)),
    "ChannelsFirst": Case(
        attr.ChannelsFirst, lambda one: one.spread(randn(2, 3, 3), torch.Size([2, 4, 3, 3])), ("ChannelsFirst()",)
    ),
    "ChannelsLast": Case(
        attr.ChannelsLast, lambda one: one.spread(randn(2, 3, 3), torch.Size([2, 3, 3, 4])), ("ChannelsLast()",)
    ),
    "Tokens": Case(
        lambda: attr.Tokens((3, 3), prefix=1),
        lambda one: one.spread(randn(2, 3, 3), torch.Size([2, 10, 4])),
        fields(size="(3, 3)", prefix=1),
    ),
    "UnitNorm": Case(attr.UnitNorm, lambda one: one(randn(2, 9), (3, 3)), ("UnitNorm()",)),
    "Softmax": Case(attr.Softmax, lambda one: one(randn(2, 9), (3, 3)), ("Softmax()",)),
    "Gaussian": Case(lambda: attr.Gaussian(2.0), lambda one: one(randn(2, 2), (3, 3)), fields(std=2.0)),
    "ClassOblivious": Case(
        attr.ClassOblivious, lambda one: one(randn(2, 3), randn(2, 3, seed=1)), ("ClassOblivious()",)
    ),
    "ClassSpecific": Case(
        lambda: attr.ClassSpecific(torch.tensor([[1], [2]])),
        lambda one: one(randn(2, 3), randn(2, 3, seed=1)),
        ("indices=tensor([[1]",),
    ),
    "Reference": Case(
        lambda: attr.Reference(torch.ones(1, 3)), lambda one: one(randn(2, 3), randn(2, 3)), ("reference=tensor([[1.",)
    ),
    "Solution": Case(
        lambda: attr.Solution(torch.zeros(1, 2), torch.zeros(1), torch.ones(1), torch.ones(1).bool()),
        attributes,
        ("objective=tensor",),
    ),
    "Report": Case(
        lambda: attr.Report(torch.zeros(1), torch.ones(1), torch.ones(1).bool(), torch.ones(1).bool()),
        attributes,
        ("objective=tensor([0.])", "converged=tensor([True])"),
    ),
    "KELS": Case(
        lambda: evolution.KELS(0.5, multiple=2, example_input=EXAMPLE), masks, ("KELS(rate=0.5, multiple=2)",)
    ),
    "WELS": Case(lambda: evolution.WELS(0.3, seed=2), masks, ("WELS(rate=0.3, seed=2)",)),
    "Magnitude": Case(lambda: evolution.Magnitude(0.3), masks, ("Magnitude(rate=0.3)",)),
    "LaterLayers": Case(lambda: evolution.LaterLayers("2"), masks, ("LaterLayers(first='2')",)),
    "LastLayer": Case(evolution.LastLayer, masks, ("LastLayer()",)),
    "KaimingUniform": Case(lambda: evolution.KaimingUniform(a=1.0), rule, ("KaimingUniform(a=1.0)",)),
    "KaimingNormal": Case(evolution.KaimingNormal, rule, ("KaimingNormal()",)),
    "LayerDefault": Case(evolution.LayerDefault, rule, ("LayerDefault()",)),
    "ShrinkPerturb": Case(lambda: evolution.ShrinkPerturb(0.5, 0.1), rule, ("ShrinkPerturb(shrink=0.5, std=0.1)",)),
    "KnowledgeEvolution": Case(
        seeded(lambda: evolution.KnowledgeEvolution(two_linear(), evolution.WELS(0.5), seed=3)),
        reset,
        (
            "Sequential",
            "WELS(rate=0.5, seed=0)",
            "rule=KaimingUniform",
            *fields(seed=3, reset_frozen=False, generation=0),
        ),
        changes=True,
    ),
    "Generation": Case(lambda: evolution.Generation(2), attributes, ("Generation(index=2)",)),
    "Owner": Case(
        seeded(lambda: Owner(nn.Linear(2, 2), "weight")), lambda one: one.layer.weight.detach(), ("attribute='weight'",)
    ),
    "FoundWeights": Case(
        seeded(lambda: evolution.find_weights(two_linear())),
        lambda one: {name: weight.detach() for name, weight in one.weights.items()},
        ("weights=", "reasons="),
    ),
    "Row": Case(lambda: evolution.Row("w", (2, 3), 4, 2), attributes, ("name='w'", "fit=4", "reset=2")),
    "SlimSummary": Case(lambda: evolution.SlimSummary(4, 2, 40, 20), attributes, ("dense_parameters=4",)),
    "Summary": Case(lambda: evolution.Summary((evolution.Row("w", (6,), 4, 2),)), str, ("rows=(Row(",)),
    "SemiHardTripletLoss": Case(
        lambda: losses.SemiHardTripletLoss(margin=0.4, smooth_loss=True, block_size=3),
        loss_of,
        fields(margin=0.4, smooth_loss=True, block_size=3),
        loss_of,
    ),
    "TwoHeadLoss": Case(
        lambda: losses.TwoHeadLoss(metric_weight=0.5, ignore_label=2),
        two_head_loss,
        (*fields(metric_weight=0.5, ignore_label=2), "SemiHardTripletLoss", "CrossEntropyLoss"),
        two_head_loss,
    ),
    "CrossBatchMemory": Case(
        lambda: losses.CrossBatchMemory(losses.SemiHardTripletLoss(), 5, memory_size=32),
        loss_of,
        (*fields(embedding_size=5, memory_size=32), "SemiHardTripletLoss", "SemiHardMiner"),
        changes=True,
        modes_differ=True,
    ),
    "SelfSupervisedLoss": Case(
        lambda: losses.SelfSupervisedLoss(losses.SemiHardTripletLoss()),
        views,
        (*fields(symmetric=True), "SemiHardTripletLoss"),
        views,
    ),
    "SemiHardMiner": Case(
        lambda: miners.SemiHardMiner(fallback=None, block_size=4), mine, fields(fallback=None, block_size=4), mine
    ),
    "CollapseMonitor": Case(
        lambda: monitors.CollapseMonitor(window=8, fall=0.25),
        monitored,
        fields(window=8, fall=0.25, normalize_embeddings=True),
    ),
    "TwoHead": Case(
        seeded(lambda: models.TwoHead(timm.create_model("test_resnet", num_classes=3), 4)),
        images_to_two_heads,
        ("pooling='avg'", "out_features=4"),
        images_to_two_heads,
        network=lambda two: two,
        precision=0.3,  # of a network of several layers without training
        autocast=0.3,
        without_data=((4, 3, 32, 32), [(4, 3), (4, 4)]),
        modes_differ=True,
    ),
    "TwoHeadOutput": Case(
        lambda: models.TwoHeadOutput(torch.zeros(1, 2), torch.ones(1, 2)), tuple, ("logits=tensor", "embeddings=tensor")
    ),
    "SVMaxRegularizer": Case(
        lambda: regularizers.SVMaxRegularizer(form="linear", normalize_embeddings=False),
        regularizer,
        fields(form="'linear'", normalize_embeddings=False, distributed=False),
        regularizer,
        refuses_no_rows="embeddings must be a non-empty matrix",
        without_data=((4, 6), [()]),
    ),
    "TrainTwoHead": Case(seeded(trainer), trainer_losses, (), changes=True, holds_lambdas=True),
}
