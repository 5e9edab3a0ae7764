"""The rows of the catalogue about attention maps."""

import torch
from torch import nn

from pml_extensions import attr
from pml_extensions.attr._arguments import TargetError

V, T, R = ValueError, TypeError, RuntimeError
TARGET = TargetError
NAN, INF = float("nan"), float("inf")


class TwoTensors(nn.Module):
    def forward(self, x):
        return x, x + 1


class Counts(nn.Module):
    def forward(self, x):
        return (x > 0).long()


def attributed(**kwargs):
    return lambda w: w.explain.attribute(w.x, **kwargs)


def two_tensors(w):
    pair = nn.Sequential(w.model, TwoTensors())
    return attr.L2CAF(lambda x: pair(x)[0], pair[1]).attribute(w.x)


def counts(w):
    chain = nn.Sequential(w.model[0], Counts())
    return attr.L2CAF(lambda x: chain(x).float().mean((2, 3)), chain[1]).attribute(w.x)


def in_inference_mode(w):
    with torch.inference_mode():
        return w.explain.attribute(w.x)


ATTENTION = [
    ("target to the class", lambda w: attr.L2CAF(w.model, w.model[1], target=1), T, "L2CAF 'target' .attribute"),
    ("solver to the class", lambda w: attr.L2CAF(w.model, w.model[1], solver=None), T, "L2CAF 'solver' .attribute"),
    ("layer misspelt", lambda w: attr.L2CAF(w.model, layers=w.model[1]), T, "L2CAF 'layers' 'layer'"),
    ("steps misspelt", lambda _: attr.LBFGS(step=3), T, "LBFGS 'step' 'steps'"),
    ("nothing to set", lambda _: attr.ChannelsFirst(grid=3), T, "ChannelsFirst 'grid' none"),
    ("layer by name", lambda w: attr.L2CAF(w.model, "conv"), T, "layer Module 'conv'"),
    ("layer none", lambda w: attr.L2CAF(w.model, None), T, "layer None"),
    ("no layers", lambda w: attr.L2CAF(w.model, []), T, "layer []"),
    ("a list with a name", lambda w: attr.L2CAF(w.model, [w.model[0], "fc"]), T, "layer 'fc'"),
    ("no function", lambda w: attr.L2CAF("resnet", w.model[1]).attribute(w.x), T, "forward_func callable str"),
    (
        "a foreign layer",
        lambda w: attr.L2CAF(w.model, nn.ReLU()).attribute(w.x),
        V,
        "layer forward_func ReLU Sequential",
    ),
    ("inputs a list", lambda w: w.explain.attribute([w.x]), T, "inputs tensor tuple list"),
    ("inputs none", lambda w: w.explain.attribute(None), T, "inputs NoneType"),
    ("inputs an array", lambda w: w.explain.attribute(w.x.numpy()), T, "inputs ndarray"),
    ("inputs an empty tuple", lambda w: w.explain.attribute(()), T, "inputs tensor"),
    ("inputs a scalar", lambda w: w.explain.attribute(torch.tensor(1.0)), V, "inputs at least one example"),
    ("inputs empty", lambda w: w.explain.attribute(w.x[:0]), V, "inputs at least one example (0, 3, 6, 6)"),
    ("inputs of other sizes", lambda w: w.explain.attribute((w.x, w.x[:2])), V, "inputs same number [3, 2]"),
    ("inputs not a number", lambda w: w.explain.attribute(w.x * NAN), V, "activations finite NaN"),
    ("inputs infinite", lambda w: w.explain.attribute(w.x * INF), V, "activations finite infinity"),
    ("target out of range", attributed(target=3), TARGET, "target out of range (3, 3) got 3"),
    ("target far below zero", attributed(target=-4), TARGET, "target out of range got -4"),
    ("target of a float", attributed(target=1.0), T, "target int float"),
    ("target by name", attributed(target="cat"), T, "target int str"),
    ("target of floats", attributed(target=torch.ones(3)), T, "target integers float32"),
    ("targets too few", attributed(target=[0, 1]), TARGET, "target 3 examples 2"),
    ("targets too many", attributed(target=torch.zeros(4).long()), TARGET, "target 3 examples 4"),
    ("target of two positions", attributed(target=(0, 1)), TARGET, "target 1 position (3, 3) (0, 1)"),
    ("targets of mixed lengths", attributed(target=[(0,), (0, 1), (1,)]), TARGET, "target 1 position"),
    ("targets of text", attributed(target=["a", "b", "c"]), T, "target integers str"),
    ("reference a list", attributed(reference=[1.0]), T, "reference tensor list"),
    ("reference too wide", attributed(reference=torch.ones(3, 4)), V, "reference (3, 3) (3, 4)"),
    ("reference too long", attributed(reference=torch.ones(2, 3)), V, "reference (3, 3) (2, 3)"),
    ("reference flat", attributed(reference=torch.ones(3)), V, "reference (3, 3) (3,)"),
    ("reference not a number", attributed(reference=torch.full((1, 3), NAN)), V, "reference finite NaN"),
    ("two questions", attributed(target=1, reference=torch.ones(1, 3)), V, "target reference objective exclude"),
    ("two other questions", attributed(target=1, objective=attr.ClassOblivious()), V, "target objective exclude"),
    (
        "objective of one value",
        attributed(objective=lambda o, _: o.sum()),
        V,
        "objective one value per example (3,) ()",
    ),
    ("objective of a matrix", attributed(objective=lambda o, _: o), V, "objective (3,) (3, 3)"),
    ("objective by name", attributed(objective="oblivious"), T, "objective callable str"),
    ("objective that raises", attributed(objective=lambda o, _: 1 / 0), ZeroDivisionError, "zero"),
    ("filter by name", attributed(filter="softmax"), T, "filter str"),
    ("filter a class", attributed(filter=attr.Softmax), T, "filter object Softmax(...)"),
    ("solver by name", attributed(solver="lbfgs"), T, "solver minimize str"),
    ("solver a class", attributed(solver=attr.LBFGS), T, "solver object LBFGS(...)"),
    ("batch of nothing", attributed(internal_batch_size=0), V, "internal_batch_size at least 1 0"),
    ("batch negative", attributed(internal_batch_size=-1), V, "internal_batch_size at least 1 -1"),
    ("batch a fraction", attributed(internal_batch_size=1.5), T, "internal_batch_size int float"),
    (
        "layout by name",
        lambda w: attr.L2CAF(w.model, w.model[1], layout="NCHW").attribute(w.x),
        T,
        "layout ChannelsFirst() str",
    ),
    (
        "layout of tokens",
        lambda w: attr.L2CAF(w.model, w.model[1], layout=attr.Tokens((4, 4))).attribute(w.x),
        V,
        "layout 3 dimensions",
    ),
    (
        "layer of vectors",
        lambda w: attr.L2CAF(w.model, w.model[4]).attribute(w.x),
        V,
        "layer shape (3, 3) no places layout",
    ),
    ("layer of one place", lambda w: attr.L2CAF(w.model, w.model[2]).attribute(w.x), V, "(3, 5, 1, 1) no places"),
    ("layer of two tensors", two_tensors, V, "layer one tensor returns 2"),
    ("layer of counts", counts, V, "layer floating-point int64"),
    (
        "output a scalar",
        lambda w: attr.L2CAF(lambda x: w.model(x).sum(), w.model[1]).attribute(w.x),
        V,
        "forward_func one row per example (3)",
    ),
    ("output a list", lambda w: attr.L2CAF(lambda x: [w.model(x)], w.model[1]).attribute(w.x), V, "forward_func list"),
    (
        "output not a number",
        lambda w: attr.L2CAF(lambda x: w.model(x) * NAN, w.model[1]).attribute(w.x),
        V,
        "output of forward_func finite",
    ),
    ("inference mode", in_inference_mode, R, "inference_mode no_grad"),
    ("steps zero", lambda _: attr.LBFGS(steps=0), V, "steps at least 1"),
    ("history zero", lambda _: attr.LBFGS(history=0), V, "history at least 1"),
    ("tolerance negative", lambda _: attr.LBFGS(tolerance=-1.0), V, "tolerance at least 0"),
    ("tolerance not a number", lambda _: attr.LBFGS(tolerance=NAN), V, "tolerance finite nan"),
    ("steps a fraction", lambda _: attr.LBFGS(steps=1.5), T, "steps int float"),
    ("history a fraction", lambda _: attr.LBFGS(history=2.0), T, "history int float"),
    ("published steps a fraction", lambda _: attr.PublishedSGD(steps=1e3), T, "steps int float"),
    ("published rate by name", lambda _: attr.PublishedSGD(learning_rate="fast"), T, "learning_rate number str"),
    ("published steps zero", lambda _: attr.PublishedSGD(steps=0), V, "steps at least 1"),
    ("published look never", lambda _: attr.PublishedSGD(look_every=0), V, "look_every at least 1"),
    ("published scale zero", lambda _: attr.PublishedSGD(scale=0.0), V, "scale positive"),
    ("Gaussian of no width", lambda _: attr.Gaussian(0.0), V, "std positive 0.0"),
    ("Gaussian negative", lambda _: attr.Gaussian(-1.0), V, "std positive -1.0"),
    ("Gaussian not a number", lambda _: attr.Gaussian(NAN), V, "std positive nan"),
    ("Gaussian infinite", lambda _: attr.Gaussian(INF), V, "std finite inf"),
    ("last layer of a name", lambda _: attr.last_feature_layer("resnet18"), T, "model Module str"),
    ("last layer without input", lambda w: attr.last_feature_layer(w.model), V, "inputs Sequential pretrained_cfg"),
    (
        "last layer of no map",
        lambda w: attr.last_feature_layer(w.net, torch.zeros(2, 6)),
        V,
        "no layer Sequential places",
    ),
]
