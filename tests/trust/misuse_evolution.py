"""The rows of the catalogue about Knowledge Evolution, its splits, states and files."""

import warnings

import torch
from classes import two_linear
from torch import nn

from pml_extensions import evolution
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, LaterLayers, Magnitude

NOWHERE = "never.safetensors"

V, T, R = ValueError, TypeError, RuntimeError
NAN, INF = float("nan"), float("inf")


class FullyShardedDataParallel(nn.Module):
    """By its name what torch calls it; the real one needs a GPU."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 2))


def masked(result):
    """An evolution whose split returns ``result``."""
    return lambda w: KnowledgeEvolution(w.net, lambda _: result)


def loaded(**changes):
    return lambda w: w.ke.load_state_dict({**w.state, **changes})


def bits(**changes):
    return lambda w: w.ke.load_state_dict({**w.state, "masks": {**w.state["masks"], **changes}})


def without(key):
    return lambda w: w.ke.load_state_dict({name: value for name, value in w.state.items() if name != key})


def ruled(rule):
    return lambda w: KnowledgeEvolution(w.net, WELS(0.5), rule=rule).reset()


def with_statistics(data, **settings):
    """The slim network of one with a batch norm, from some data."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    ke = KnowledgeEvolution(net, KELS(0.5, example_input=torch.zeros(2, 6)))
    return lambda _: ke.slim(data, **settings)


def quantised():
    layer = nn.Linear(2, 2)
    layer.__class__ = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized"})
    return layer


def lazy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LazyLinear(3)


def after_a_reset(w):
    ke = KnowledgeEvolution(two_linear(), WELS(0.5))
    ke.reset()
    return ke.generations(1)


def trained_to_its_end(_):
    ke = KnowledgeEvolution(two_linear(), WELS(0.5))
    list(ke.generations(2))
    return ke.generations(2)


def slim_of(path_or_file):
    return lambda w: evolution.load_slim(path_or_file)


SPLITS = [
    ("KELS: rate zero", lambda _: KELS(0), V, "rate (0, 1] 0"),
    ("KELS: rate negative", lambda _: KELS(-0.5), V, "rate -0.5"),
    ("KELS: rate above one", lambda _: KELS(1.5), V, "rate 1.5"),
    ("KELS: rate not a number", lambda _: KELS(NAN), V, "rate nan"),
    ("KELS: rate by name", lambda _: KELS("half"), T, "rate number str"),
    ("KELS: rate true", lambda _: KELS(True), T, "rate number bool"),  # noqa: FBT003
    ("KELS: rate none", lambda _: KELS(None), T, "rate number NoneType"),
    ("KELS: multiple zero", lambda _: KELS(0.5, 0), V, "multiple at least 1 0"),
    ("KELS: multiple a fraction", lambda _: KELS(0.5, 1.5), T, "multiple int float"),
    ("KELS: no module", lambda _: KELS(0.5)("resnet18"), T, "model Module str"),
    ("KELS: compiled", lambda _: KELS(0.5).slim(torch.compile(two_linear())), T, "model compiled OptimizedModule"),
    ("KELS: data parallel", lambda w: KELS(0.5)(nn.DataParallel(w.two.model)), T, "model DataParallel model.module"),
    (
        "KELS: data parallel inside",
        lambda w: KnowledgeEvolution(nn.Sequential(nn.DataParallel(w.net)), KELS(0.5)),
        T,
        "model DataParallel .module",
    ),
    ("KELS: slim data parallel", lambda w: KELS(0.5).slim(nn.DataParallel(w.net)), T, "model DataParallel .module"),
    ("KELS: rate misspelt", lambda _: KELS(rates=0.5), T, "KELS 'rates' 'rate'"),
    ("KELS: seed", lambda _: KELS(0.5, seed=1), T, "KELS 'seed' WELS"),
    ("WELS: multiple", lambda _: WELS(0.5, multiple=2), T, "WELS 'multiple' KELS"),
    ("WELS: rate zero", lambda _: WELS(0), V, "rate (0, 1] 0"),
    ("WELS: rate above one", lambda _: WELS(2), V, "rate 2"),
    ("WELS: rate not a number", lambda _: WELS(NAN), V, "rate nan"),
    ("WELS: rate by name", lambda _: WELS("half"), T, "rate number str"),
    ("WELS: rate none", lambda _: WELS(None), T, "rate number NoneType"),
    ("WELS: rate true", lambda _: WELS(True), T, "rate number bool"),  # noqa: FBT003
    ("WELS: seed by name", lambda _: WELS(0.5, seed="a"), T, "seed int str"),
    ("WELS: seed a fraction", lambda _: WELS(0.5, seed=1.5), T, "seed int float"),
    ("magnitude: rate zero", lambda _: Magnitude(0), V, "rate (0, 1] 0"),
    ("magnitude: rate above one", lambda _: Magnitude(1.01), V, "rate 1.01"),
    ("magnitude: rate by name", lambda _: Magnitude("half"), T, "rate number str"),
    ("magnitude: rate not a number", lambda _: Magnitude(NAN), V, "rate nan"),
    ("later layers: unknown", lambda w: LaterLayers("layer4")(w.net), V, "first layer 'layer4'"),
    (
        "later layers: a near miss",
        lambda _: LaterLayers("layer")(nn.ModuleDict({"layer4": nn.Linear(2, 2)})),
        V,
        "first 'layer4' 'layer'",
    ),
    ("later layers: a number", lambda w: LaterLayers(2)(w.net), T, "first str int"),
    (
        "later layers: no weights",
        lambda _: LaterLayers("1")(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))),
        V,
        "first weights '1'",
    ),
]


EVOLUTION = [
    ("no module", lambda _: KnowledgeEvolution("resnet18", WELS(0.5)), T, "model Module str"),
    ("a function", lambda w: KnowledgeEvolution(lambda x: x, WELS(0.5)), T, "model Module function"),
    ("no split", lambda w: KnowledgeEvolution(w.net, None), T, "split callable NoneType"),
    ("a rate as split", lambda w: KnowledgeEvolution(w.net, 0.5), T, "split callable float"),
    ("a class as split", lambda w: KnowledgeEvolution(w.net, WELS), T, "split WELS(...)"),
    ("a rule by name", lambda w: KnowledgeEvolution(w.net, WELS(0.5), rule="kaiming"), T, "rule callable str"),
    (
        "a class as rule",
        lambda w: KnowledgeEvolution(w.net, WELS(0.5), rule=evolution.KaimingNormal),
        T,
        "rule KaimingNormal(...)",
    ),
    ("a rate", lambda w: KnowledgeEvolution(w.net, rate=0.5), T, "KnowledgeEvolution 'rate' KELS WELS Magnitude"),
    ("a count", lambda w: KnowledgeEvolution(w.net, WELS(0.5), n=5), T, "'n' KnowledgeEvolution(...).generations"),
    ("a class as model", lambda _: KnowledgeEvolution(nn.Linear, WELS(0.5)), T, "model class Linear Linear(...)"),
    ("seed by name", lambda w: KnowledgeEvolution(w.net, WELS(0.5), seed="a"), T, "seed int str"),
    ("seed none", lambda w: KnowledgeEvolution(w.net, WELS(0.5), seed=None), T, "seed int NoneType"),
    ("seed a fraction", lambda w: KnowledgeEvolution(w.net, WELS(0.5), seed=0.5), T, "seed int float"),
    (
        "on the meta device",
        lambda _: KnowledgeEvolution(nn.Linear(2, 2, device="meta"), WELS(0.5)),
        V,
        "model meta to_empty",
    ),
    ("not initialised", lambda _: KnowledgeEvolution(lazy(), WELS(0.5)), V, "model initialised 'weight' batch"),
    ("quantised", lambda _: KnowledgeEvolution(quantised(), WELS(0.5)), V, "model quantised"),
    (
        "flattened",
        lambda w: KnowledgeEvolution(FullyShardedDataParallel(w.net), WELS(0.5)),
        V,
        "FullyShardedDataParallel fully_shard",
    ),
    ("nothing to split", lambda _: KnowledgeEvolution(nn.ReLU(), WELS(0.5)), V, "split at least one mask none"),
    ("only norms", lambda _: KnowledgeEvolution(nn.LayerNorm(4), WELS(0.5)), V, "split at least one mask"),
    ("masks none", masked(None), T, "split dict NoneType"),
    ("masks a list", masked([torch.ones(8, 6).bool()]), T, "split dict list"),
    ("masks empty", masked({}), V, "split at least one"),
    ("mask of an unknown name", masked({"9.weight": torch.ones(8, 6).bool()}), V, "named_parameters '9.weight'"),
    ("mask of another shape", masked({"0.weight": torch.ones(8, 5).bool()}), V, "'0.weight' (8, 6) (8, 5)"),
    ("mask of floats", masked({"0.weight": torch.ones(8, 6)}), T, "'0.weight' torch.bool float32"),
    ("mask of lists", masked({"0.weight": [[True]]}), T, "'0.weight' torch.bool list"),
    ("mask none", masked({"0.weight": None}), T, "'0.weight' NoneType"),
    ("generations zero", lambda w: w.ke.generations(0), V, "n at least 1 got 0"),
    ("generations negative", lambda w: w.ke.generations(-3), V, "n -3"),
    ("generations a fraction", lambda w: w.ke.generations(2.0), T, "n int float"),
    ("generations none", lambda w: w.ke.generations(None), T, "n int NoneType"),
    ("generations true", lambda w: w.ke.generations(True), T, "n int bool"),  # noqa: FBT003
    ("generations of the past", after_a_reset, V, "n at least 2 index 1 got 1"),
    ("optimizer a list", lambda w: w.ke.generations(2, optimizer=[]), T, "optimizer torch.optim.Optimizer list"),
    (
        "optimizer of another model",
        lambda w: w.ke.generations(2, optimizer=torch.optim.SGD(w.model.parameters(), lr=0.1)),
        V,
        "optimizer model.parameters() SGD",
    ),
    ("nothing but trained generations", trained_to_its_end, V, "n 3 trained got 2"),
    ("optimizer a class", lambda w: w.ke.generations(2, optimizer=torch.optim.SGD), T, "optimizer type"),
    ("rule of no result", ruled(lambda v, g, o: None), V, "rule '0.weight' (8, 6) NoneType"),
    ("rule of another shape", ruled(lambda v, g, o: v[:2]), V, "rule '0.weight' (8, 6) (2, 6)"),
    ("rule of a number", ruled(lambda v, g, o: 0.0), V, "rule '0.weight' float"),
    ("rule that raises", ruled(lambda v, g, o: 1 / 0), ZeroDivisionError, "zero"),
    ("slim of WELS", lambda w: w.ke.slim(), T, "WELS(rate=0.5, seed=0) slim KELS"),
    (
        "slim of a function",
        lambda w: KnowledgeEvolution(w.net, lambda m: {"0.weight": torch.zeros(8, 6).bool()}).slim(),
        T,
        "slim KELS",
    ),
    ("slim of images alone", with_statistics(torch.randn(4, 6)), T, "data DataLoader Tensor [images]"),
    ("slim of a number", with_statistics(3), T, "data DataLoader int"),
    ("slim of no batch", with_statistics([]), V, "data at least one batch none"),
    ("slim of text", with_statistics(["text"]), T, "data tensor tuple list dict 0 str"),
    ("slim of another size", with_statistics([torch.randn(4, 5)]), V, "data (N, 6) torch.float32 (4, 5)"),
    ("slim of integers", with_statistics([torch.ones(4, 6).long()]), V, "data torch.float32 (4, 6) torch.int64"),
    ("slim of one row", with_statistics([torch.randn(1, 6)]), V, "data more than one (1, 6)"),
    ("slim of what is not finite", with_statistics([torch.full((4, 6), INF)]), V, "statistics '1' not finite"),
    ("slim of no batches", with_statistics([torch.randn(4, 6)], batches=0), V, "batches at least 1 0"),
    ("slim of part of a batch", with_statistics([torch.randn(4, 6)], batches=0.5), T, "batches int float"),
    ("statistics of no model", lambda w: evolution.reestimate_statistics("resnet18", []), T, "model Module str"),
    ("latency by name", lambda w: w.ke.summary(latency="cpu"), T, "latency tensor tuple str"),
    ("latency of WELS", lambda w: w.ke.summary(latency=torch.randn(2, 6)), T, "latency slim WELS KELS"),
    ("start with a name", lambda w: w.ke.start("kaiming"), T, "rule callable str"),
    ("shrink above one", lambda _: evolution.ShrinkPerturb(1.5, 0.1), V, "shrink [0, 1] 1.5"),
    ("shrink not a number", lambda _: evolution.ShrinkPerturb(NAN, 0.1), V, "shrink nan"),
    ("std negative", lambda _: evolution.ShrinkPerturb(0.5, -1), V, "std at least 0 -1"),
    ("std infinite", lambda _: evolution.ShrinkPerturb(0.5, INF), V, "std finite inf"),
    (
        "default of a layer without one",
        lambda _: KnowledgeEvolution(
            Plain(), lambda m: {"w": torch.zeros(2, 2).bool()}, rule=evolution.LayerDefault()
        ).reset(),
        V,
        "LayerDefault reset_parameters Plain 'w' KaimingUniform()",
    ),
]


STATES = [
    ("state none", lambda w: w.ke.load_state_dict(None), T, "state dict NoneType"),
    ("state a list", lambda w: w.ke.load_state_dict([1]), T, "state dict list"),
    (
        "state empty",
        lambda w: w.ke.load_state_dict({}),
        V,
        "state KnowledgeEvolution.state_dict() lacks 'architecture'",
    ),
    ("state of the model", lambda w: w.ke.load_state_dict(w.net.state_dict()), V, "state lacks 'masks'"),
    *(
        (f"state without {key}", without(key), V, f"state lacks '{key}'")
        for key in ("version", "architecture", "split", "seed", "generation", "masks")
    ),
    ("state of a later version", loaded(version=99), V, "version 99 expected 1"),
    ("state of an earlier version", loaded(version=0), V, "version 0 expected 1"),
    ("state of another architecture", loaded(architecture="ResNet-1234"), V, "architecture 'ResNet-1234'"),
    (
        "state of another number of classes",
        lambda w: KnowledgeEvolution(nn.Sequential(*w.net[:2], nn.Linear(8, 5)), WELS(0.5)).load_state_dict(w.state),
        V,
        "architecture 2 parameters 2.weight (3, 8) (5, 8) 2.bias",
    ),
    ("state of another split", loaded(split="WELS(rate=0.4, seed=0)"), V, "split WELS(rate=0.4, seed=0)"),
    ("state with a seed by name", loaded(seed="0"), V, "state seed '0'"),
    ("state with a generation by name", loaded(generation="two"), V, "state generation 'two'"),
    ("state with a negative generation", loaded(generation=-1), V, "state generation -1"),
    ("state with masks in a list", loaded(masks=[]), V, "state masks list"),
    ("state without a mask", loaded(masks={}), V, "state masks '0.weight'"),
    (
        "state with a mask too many",
        bits(**{"9.weight": torch.zeros(6, dtype=torch.uint8)}),
        V,
        "state masks '9.weight'",
    ),
    (
        "state with a mask too short",
        bits(**{"0.weight": torch.zeros(5, dtype=torch.uint8)}),
        V,
        "state mask '0.weight' 6 bytes",
    ),
    (
        "state with a mask too long",
        bits(**{"0.weight": torch.zeros(7, dtype=torch.uint8)}),
        V,
        "state mask '0.weight' 6 bytes",
    ),
    ("state with a mask of floats", bits(**{"0.weight": torch.zeros(6)}), V, "state mask '0.weight' uint8"),
    ("state with a mask of text", bits(**{"0.weight": "0110"}), V, "state mask '0.weight' uint8"),
    (
        "slim file that is not there",
        slim_of("/no/such/file.safetensors"),
        FileNotFoundError,
        "path save_slim /no/such/file",
    ),
    ("slim of no path", slim_of(None), T, "NoneType"),
    ("slim of a dense model", lambda w: evolution.save_slim(w.net, NOWHERE), T, "slim KELS.slim() Sequential"),
    ("slim of nothing", lambda w: evolution.save_slim(None, NOWHERE), T, "slim NoneType"),
    (
        "slim of no timm model",
        lambda w: evolution.save_slim(KELS(0.5, example_input=torch.zeros(2, 6)).slim(w.net), NOWHERE),
        V,
        "slim timm Sequential",
    ),
]
