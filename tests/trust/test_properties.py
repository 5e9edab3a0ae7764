"""Properties that hold for every input: a few examples in each run, 2,000 with HYPOTHESIS_PROFILE="2000 examples"."""

import math
import os
import subprocess
import sys

import pytest
import torch
from classes import Owner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pml_extensions.attr import L2CAF, ChannelsFirst
from pml_extensions.evolution import KELS, WELS, KaimingUniform, KnowledgeEvolution, Magnitude
from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.regularizers import SVMaxRegularizer, effective_rank, mean_singular_value, svmax_bounds

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 12)
FORMS = st.sampled_from(["exponential", "linear"])
RATES = st.floats(0.02, 1.0)
LENGTHS = st.floats(1e-6, 1e6)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def rows(seed, b, d):
    """Embeddings in general position, on few directions, or with repeated and zero rows, by the seed."""
    draw = generator(seed)
    batch = torch.randn(b, d, generator=draw, dtype=torch.float64)
    kind = seed % 4
    if kind == 1:
        batch = batch[:, :1] @ torch.randn(1, d, generator=draw, dtype=torch.float64) + 1e-3 * batch
    if kind == 2:
        batch = batch[torch.randint(b, (b,), generator=draw)]
    if kind == 3:
        batch = batch * (torch.rand(b, 1, generator=draw) < 0.7)
    return batch


def distinct_rows(seed, b, d):
    """Embeddings with no ties between distances."""
    return torch.randn(b, d, generator=generator(seed), dtype=torch.float64)


def classes_of(seed, b):
    return torch.randint(max(1, b // 3), (b,), generator=generator(seed))


def rotation(seed, d):
    return torch.linalg.qr(torch.randn(d, d, generator=generator(seed), dtype=torch.float64)).Q


def close(one, other, tolerance=1e-6):
    assert not torch.as_tensor(one).isnan().any()
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def value_and_gradient(function, batch):
    leaf = batch.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    return value.detach(), leaf.grad


@given(SEEDS, SIZES, SIZES, FORMS)
def test_svmax_does_not_see_the_order_or_the_axes(seed, b, d, form):
    batch, term = rows(seed, b, d), SVMaxRegularizer(form=form)
    order, turn = torch.randperm(b, generator=generator(seed)), rotation(seed, d)
    value, gradient = value_and_gradient(term, batch)
    assert gradient.isfinite().all()
    permuted, permuted_gradient = value_and_gradient(term, batch[order])
    close(permuted, value)
    if seed % 4 == 0:  # elsewhere the subgradient is not the only one
        close(permuted_gradient, gradient[order])
    close(term(batch @ turn), value)


@given(SEEDS, SIZES, SIZES, FORMS, LENGTHS)
def test_svmax_does_not_see_the_length_of_rows(seed, b, d, form, length):
    batch, term = rows(seed, b, d), SVMaxRegularizer(form=form)
    lengths = 0.5 + torch.rand(b, 1, generator=generator(seed), dtype=torch.float64)
    close(term(length * lengths * batch), term(batch))
    whole = SVMaxRegularizer(normalize_embeddings=False)
    close(whole(length * batch), whole(batch))


@given(SEEDS, SIZES, SIZES)
def test_svmax_stays_within_its_bounds(seed, b, d):
    batch = nn.functional.normalize(distinct_rows(seed, b, d))
    least, most = svmax_bounds(b, d)
    assert least - 1e-9 <= mean_singular_value(batch).item() <= most + 1e-9
    assert 1 - 1e-9 <= SVMaxRegularizer()(rows(seed, b, d)).item() <= math.e + 1e-9
    assert 1 - 1e-9 <= effective_rank(batch).item() <= min(b, d) + 1e-9


@given(SEEDS, st.integers(2, 16), st.integers(1, 8))
def test_semi_hard_loss_does_not_see_order_names_axes_or_lengths(seed, b, d):
    batch, labels, loss = distinct_rows(seed, b, d + 1), classes_of(seed, b), SemiHardTripletLoss()
    value, gradient = value_and_gradient(lambda leaf: loss(leaf, labels) + 0 * leaf.sum(), batch)
    order = torch.randperm(b, generator=generator(seed))
    names = torch.randperm(1000, generator=generator(seed))[:b]
    lengths = 0.5 + torch.rand(b, 1, generator=generator(seed), dtype=torch.float64)
    assert gradient.isfinite().all()
    permuted, permuted_gradient = value_and_gradient(
        lambda leaf: loss(leaf, labels[order]) + 0 * leaf.sum(), batch[order]
    )
    close(permuted, value)
    close(permuted_gradient, gradient[order])
    close(loss(batch, names[labels]) + torch.zeros((), dtype=torch.float64), value)
    close(loss(batch @ rotation(seed, d + 1), labels) + torch.zeros((), dtype=torch.float64), value)
    close(loss(lengths * batch, labels) + torch.zeros((), dtype=torch.float64), value)


@given(SEEDS, st.integers(2, 16), st.integers(1, 8), st.integers(1, 5))
def test_semi_hard_triplets_do_not_see_order_names_or_blocks(seed, b, d, block_size):
    batch, labels, miner = distinct_rows(seed, b, d + 1), classes_of(seed, b), SemiHardMiner()
    order = torch.randperm(b, generator=generator(seed))
    expected = sorted(map(tuple, torch.stack(miner(batch, labels)).T.tolist()))
    permuted = torch.stack([order[column] for column in miner(batch[order], labels[order])])
    assert sorted(map(tuple, permuted.T.tolist())) == expected
    renamed = torch.stack(miner(batch, 1000 - labels))
    assert sorted(map(tuple, renamed.T.tolist())) == expected
    blocks = torch.stack(SemiHardMiner(block_size=block_size)(batch, labels))
    assert sorted(map(tuple, blocks.T.tolist())) == expected
    for anchor, positive, negative in expected:
        assert labels[anchor] == labels[positive] != labels[negative]
        assert anchor != positive


NET = nn.Sequential(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 7), nn.ReLU(), nn.Linear(7, 3)).double()
INPUT = torch.zeros(2, 5, dtype=torch.float64)


@given(RATES, RATES)
def test_masks_of_kels_are_nested_in_the_rate(one, other):
    low, high = (KELS(rate, example_input=INPUT)(NET) for rate in sorted((one, other)))
    for name, mask in low.items():
        assert not (mask & ~high[name]).any()
        assert mask.any()


@pytest.mark.filterwarnings("ignore:the slim network of this Sequential is as wide")  # a few channels round up to all
@given(RATES, RATES, SEEDS)
def test_slim_of_slim_is_the_slim_of_both(one, other, seed):
    first = KELS(one, example_input=INPUT).slim(NET)
    second = KELS(other, example_input=INPUT).slim(first)
    widths = [math.ceil(round(other * math.ceil(round(one * n, 9)), 9)) for n in (11, 7)]
    assert [second[0].out_features, second[2].out_features] == widths
    batch = torch.randn(4, 5, generator=generator(seed), dtype=torch.float64)
    masked = {name: weight.clone() for name, weight in NET.state_dict().items()}
    for place, width in zip((0, 2), widths, strict=True):
        masked[f"{place}.weight"][width:] = 0
        masked[f"{place}.bias"][width:] = 0
    close(second(batch), torch.func.functional_call(NET, masked, (batch,)))


@given(RATES, RATES, SEEDS)
def test_masks_of_wels_and_magnitude_are_nested_too(one, other, seed):
    for split in (lambda rate: WELS(rate, seed=seed), Magnitude):
        low, high = (split(rate)(NET) for rate in sorted((one, other)))
        assert all(not (mask & ~high[name]).any() for name, mask in low.items())


@given(SEEDS, st.integers(0, 30))
def test_resets_keep_the_fit_hypothesis_and_repeat(seed, generations):
    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
        start = model[0].weight.detach().clone()
        ke = KnowledgeEvolution(model, WELS(0.5), seed=seed)
        ke.generation = generations
        ke.reset()
        return start, ke.masks["0.weight"], model[0].weight.detach().clone()

    start, mask, weight = run()
    assert weight[mask].equal(start[mask])
    assert not (weight[~mask] == start[~mask]).any()
    assert run()[2].equal(weight)


@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_draws_stay_within_the_rule(seed, fan_out, fan_in):
    owner = Owner(nn.Linear(1, 1), "weight")
    drawn = KaimingUniform()(torch.empty(fan_out, fan_in), generator(seed), owner)
    assert drawn.abs().max() <= fan_in**-0.5 * (1 + 1e-6)


class Pooled(nn.Module):
    """Affine after its last feature map."""

    def __init__(self, seed):
        super().__init__()
        draw = generator(seed)
        self.kernel = torch.randn(4, 2, 2, 2, generator=draw, dtype=torch.float64)
        self.matrix = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        self.act = nn.ReLU()
        self.sign, self.scale = 1.0, 1.0

    def forward(self, x):
        maps = self.act(nn.functional.conv2d(x, self.kernel))
        return self.sign * self.scale * maps.mean((2, 3)) @ self.matrix.T


@given(SEEDS, st.integers(1, 3), st.integers(0, 2), st.floats(0.01, 100.0))
def test_l2_caf_does_not_see_sign_scale_or_order(seed, b, target, scale):
    """A class-specific map does not see the output's scale, a class-oblivious optimum neither that nor its sign."""
    images = torch.randn(b, 2, 5, 5, generator=generator(seed), dtype=torch.float64)
    model = Pooled(seed)
    explain = L2CAF(model, model.act, layout=ChannelsFirst())
    specific = explain.attribute(images, target)
    maps, report = explain.attribute(images, return_report=True)
    order = torch.randperm(b, generator=generator(seed))
    close(explain.attribute(images[order], target), specific[order])
    model.scale = scale
    close(explain.attribute(images, target), specific)
    model.sign = -1.0
    opposite = explain.attribute(images, return_report=True)[1]
    size = 1e-9 + model(images).square().sum(1)
    close(opposite.objective / size, scale**2 * report.objective / size)
    for one in (maps, specific):
        assert (one >= 0).all()
        close(one.square().sum((1, 2, 3)), torch.ones(b, dtype=torch.float64))


@pytest.mark.slow
def test_two_thousand_examples_of_each():
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "2000 examples"}
    run = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
