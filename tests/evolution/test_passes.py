"""How many forward passes of copies the questions to an evolution take, and that none is answered from an old one."""

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, find_weights


@pytest.fixture
def passes(monkeypatch):
    """Count the forward passes of a class of models."""
    seen = []

    def of(kind):
        forward = kind.forward

        def counted(self, *args, **kwargs):
            seen.append(self)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counted)
        return seen

    return of


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_passes_of_a_kernel_split(passes, name):
    model = timm.create_model(name)
    seen = passes(type(model))
    evolution = KnowledgeEvolution(model, KELS(0.5))
    made = len(seen)
    evolution.slim()
    cut = len(seen)
    evolution.summary()
    assert made <= 2
    assert cut - made <= 2
    assert len(seen) - cut <= 2
    assert model not in seen


def test_passes_of_a_weight_split(passes):
    model = timm.create_model("test_vit")
    seen = passes(type(model))
    evolution = KnowledgeEvolution(model, WELS(0.5))
    evolution.summary()
    assert len(seen) == 2
    plain = timm.create_model("test_resnet")  # whose layers tell
    seen = passes(type(plain))
    KnowledgeEvolution(plain, WELS(0.5)).summary()
    assert not [net for net in seen if isinstance(net, type(plain))]


def test_a_model_that_changed_is_looked_at_anew():
    model = timm.create_model("test_vit", num_classes=4)
    evolution = KnowledgeEvolution(model, KELS(0.5))
    model.reset_classifier(6)
    model.blocks[1].mlp = nn.Sequential(nn.Linear(64, 40), nn.GELU(), nn.Linear(40, 64))
    slim = evolution.slim()
    assert slim(torch.randn(2, 3, 160, 160)).shape == (2, 6)
    assert slim.blocks[1].mlp[0].weight.shape == (20, 32)
    assert evolution.summary().slim.slim_parameters == sum(p.numel() for p in slim.parameters())


class Queries(nn.Module):
    """Learned queries that attend to the input, as in a detection transformer."""

    def __init__(self, frozen):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.queries = nn.Parameter(torch.randn(1, 5, 16), requires_grad=not frozen)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.decoder(self.queries.expand(len(x), -1, -1), self.embed(x)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_with_learned_queries(frozen, training):
    example = torch.randn(2, 7, 6)
    model = Queries(frozen).train(training)
    for split in (KELS(0.5, example_input=example), WELS(0.5, example_input=example)):
        evolution = KnowledgeEvolution(model, split)
        rows = {row.name: row for row in evolution.summary().rows}
        assert rows["queries"].reason == "table, token or scale: not multiplied with features"
    summary = KnowledgeEvolution(model, KELS(0.5, example_input=example)).summary().slim
    assert summary.slim_parameters < summary.dense_parameters
    assert summary.slim_operations < summary.dense_operations


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_what_a_slim_network_loses_is_in_a_mask(channels):
    model = timm.create_model("swiftformer_xs", in_chans=channels)
    assert len(find_weights(model).weights) == 83
    evolution = KnowledgeEvolution(model, KELS(0.5))
    slim = dict(evolution.slim().named_parameters())
    narrower = {name for name, p in model.named_parameters() if slim[name].shape != p.shape and p.ndim > 1}
    tables = {row.name for row in evolution.summary().rows if row.reason and len(row.shape) > 1}
    assert narrower - tables <= evolution.masks.keys()
    assert all(model.get_parameter(name).squeeze().ndim < 2 or "gamma" in name for name in tables)
