"""torch.compile, torch.export, autocast, half precision and channels_last, each against its float64 reference.

Tolerances are relative to the largest entry of the reference: 2e-5 for single precision, 2e-2 for half.
"""

import copy

import pytest
import timm
import torch
from classes import randn
from torch._dynamo.testing import CompileCounter

from pml_extensions.attr import L2CAF
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

SINGLE, HALF = 2e-5, 2e-2
LABELS = torch.arange(12) // 3


def close(found, expected, tolerance):
    size = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * size)


def value_and_gradient(function, batch):
    leaf = batch.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    return value.detach(), leaf.grad


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def two_head(dtype=torch.float32):
    torch.manual_seed(0)
    return TwoHead(timm.create_model("test_resnet", num_classes=4), 8).to(dtype).eval()


def images(seed=0, rows=12):
    return randn(rows, 3, 32, 32, seed=seed)


@pytest.mark.parametrize("form", ["exponential", "linear"])
def test_svmax_in_one_graph_from_batch_to_batch(counter, form):
    term = SVMaxRegularizer(form=form)
    compiled = torch.compile(term, backend=counter, fullgraph=True)
    for seed in range(4):
        batch = randn(12, 6, seed=seed)
        value, gradient = value_and_gradient(compiled, batch)
        expected, expected_gradient = value_and_gradient(term, batch.double())
        close(value, expected, SINGLE)
        close(gradient, expected_gradient, SINGLE)
    assert counter.frame_count == 1


def test_two_heads_in_one_graph_from_batch_to_batch(counter):
    model, reference = two_head(), two_head(torch.float64)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for seed in range(3):
        for found, expected in zip(compiled(images(seed)), reference(images(seed).double()), strict=True):
            close(found, expected, SINGLE)
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
def test_two_head_training_step(counter):
    """The model is one graph. How many triplets there are is known from the labels alone, so the loss stays outside."""
    model, reference, loss = two_head(), two_head(torch.float64), TwoHeadLoss()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for seed in range(3):
        value = loss(compiled(images(seed)), LABELS)
        value.backward()
        expected = loss(reference(images(seed).double()), LABELS)
        expected.backward()
        close(value.detach(), expected.detach(), SINGLE)
    close(model.embedding.weight.grad, reference.embedding.weight.grad, 10 * SINGLE)
    assert counter.frame_count == 1
    step = torch.compile(lambda batch, labels: loss(model(batch), labels), backend=counter)
    close(step(images(seed), LABELS).detach(), expected.detach(), SINGLE)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(SemiHardTripletLoss(), backend=counter, fullgraph=True)(randn(12, 6), LABELS)


def test_given_triplets_are_no_obstacle(counter):
    loss, triplets = SemiHardTripletLoss(), (torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([5, 9]))
    compiled = torch.compile(lambda batch: loss(batch, LABELS, triplets), backend=counter)
    for seed in range(3):
        close(compiled(randn(12, 6, seed=seed)), loss(randn(12, 6, seed=seed).double(), LABELS, triplets), SINGLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["autocast", "pure"])
def test_half_precision_training_step(dtype, mode):
    model, reference = two_head(), two_head(torch.float64)
    batch, loss = images(), TwoHeadLoss(SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer()))
    if mode == "pure":
        model, batch = model.to(dtype), batch.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=mode == "autocast"):
        outputs = model(batch)
        value = loss(outputs, LABELS)
    value.backward()
    expected = reference(images().double())
    assert outputs.embeddings.dtype == value.dtype == torch.float32
    close(outputs.logits, expected.logits, 5 * HALF)  # of a network without training
    close(outputs.embeddings, expected.embeddings, 5 * HALF)
    close(value.detach(), loss(expected, LABELS).detach(), HALF)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_losses_of_half_precision_embeddings_are_those_of_the_rounded_ones():
    loss = SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer())
    for dtype in (torch.bfloat16, torch.float16):
        batch = randn(12, 6).to(dtype)
        value, gradient = value_and_gradient(lambda leaf: loss(leaf, LABELS), batch)
        expected, expected_gradient = value_and_gradient(lambda leaf: loss(leaf, LABELS), batch.double())
        close(value, expected, SINGLE)
        close(gradient, expected_gradient, HALF)


def test_channels_last():
    model = two_head().to(memory_format=torch.channels_last)
    twin, reference = two_head(), two_head(torch.float64)
    batch = images().to(memory_format=torch.channels_last)
    for found, expected in zip(model(batch), reference(images().double()), strict=True):
        close(found, expected, SINGLE)
    for one in (model, twin):
        KnowledgeEvolution(one, WELS(0.5), seed=2).reset()
    for weight, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert weight.equal(expected)
    assert model.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(model).double().to(memory_format=torch.contiguous_format)
    objectives = [
        L2CAF(lambda x, one=one: one(x).logits, one.model.layer1).attribute(x, 1, return_report=True)[1].objective
        for one, x in ((model, batch), (plain, images().double()))
    ]
    close(*objectives, 1e-2)  # of a search with many local minima


@pytest.mark.parametrize("kind", ["two heads", "slim", "two heads on a slim network"])
def test_export(kind):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    if kind != "two heads":
        model = KELS(0.5).slim(model).eval()
    if kind != "slim":
        model = TwoHead(model, 8).eval()
    program = torch.export.export(model, (images(rows=2),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    reference = copy.deepcopy(model).double()
    found, expected = program.module()(images()), reference(images().double())
    for one, other in zip(*((out if isinstance(out, tuple) else [out]) for out in (found, expected)), strict=True):
        close(one, other, SINGLE)
