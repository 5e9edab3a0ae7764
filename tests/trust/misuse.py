"""The catalogue of misuse: a call, the error that it must raise, and the words that the error must hold."""

from types import SimpleNamespace

import timm
import torch
from classes import convolutional, labels, randn, two_linear
from misuse_attention import ATTENTION
from misuse_evolution import EVOLUTION, SPLITS, STATES
from misuse_metric import BATCHES, LOSSES, PARTS, REGULARIZER, TWO_HEAD

from pml_extensions import attr, losses, miners, models
from pml_extensions.evolution import WELS, KnowledgeEvolution
from pml_extensions.regularizers import SVMaxRegularizer


def world():
    """Fresh objects of every kind; ``model``, ``net`` and ``two`` are watched."""
    torch.manual_seed(0)
    model, net = convolutional(), two_linear()
    two = models.TwoHead(timm.create_model("test_resnet", num_classes=3), 4).eval()
    x = randn(3, 3, 6, 6)
    w = SimpleNamespace(model=model, net=net, two=two, x=x, e=randn(8, 5), y=labels(8))
    w.explain = attr.L2CAF(model, model[1])
    w.ke = KnowledgeEvolution(net, WELS(0.5))
    w.state = w.ke.state_dict()
    w.loss, w.miner = losses.SemiHardTripletLoss(), miners.SemiHardMiner()
    w.both, w.term = losses.TwoHeadLoss(), SVMaxRegularizer()
    w.logits = randn(8, 3)
    return w


CATALOGUE = {
    f"{part}: {name}": (call, error, words)
    for part, rows in {
        "SVMax": REGULARIZER,
        "losses": LOSSES,
        "parts": PARTS,
        "batches": BATCHES,
        "TwoHead": TWO_HEAD,
        "splits": SPLITS,
        "evolution": EVOLUTION,
        "states": STATES,
        "L2CAF": ATTENTION,
    }.items()
    for name, call, error, words in rows
}
