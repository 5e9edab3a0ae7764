"""The solution from products with a matrix, against the one from its eigenvectors."""

import pytest
import torch
from networks import images
from torch import nn
from torch.nn.functional import normalize

from pml_extensions.attr import L2CAF, ChannelsFirst
from pml_extensions.attr._krylov import minimize_with_products
from pml_extensions.attr._sphere import minimize_on_sphere

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def times(Q, v):
    return (Q @ v.unsqueeze(-1)).squeeze(-1)


def value(Q, h, f):
    return (f * (times(Q, f) / 2 + h)).sum(1)


def solve(Q, h, *, convex):
    """The filters, what Q makes of them, and how many products it took."""
    products = []

    def product(v):
        products.append(v)
        return times(Q, v)

    return (*minimize_with_products(product, h, torch.ones_like(h), convex=convex), len(products))


def check(Q, h, *, convex):
    """As good as the solution from all eigenvectors, but for rounding; with the number of products."""
    f, Qf, products = solve(Q, h, convex=convex)
    wanted = value(Q, h, minimize_on_sphere(Q, h, torch.ones_like(h)))
    scale = wanted.abs() + 1e-6 * (torch.linalg.matrix_norm(Q) + h.norm(dim=1))
    assert ((value(Q, h, f) - wanted).abs() <= 1e-8 * scale).all()
    torch.testing.assert_close(f.norm(dim=1), torch.ones_like(h[:, 0]))
    torch.testing.assert_close(Qf, times(Q, f), rtol=1e-9, atol=1e-9 * float(Q.abs().max()))
    return products


def factor(kind, places, outputs):
    J = randn(4, places, outputs)
    if kind == "positive":
        return J.clamp_min(0)
    if kind == "rows of all scales":
        return J * torch.logspace(-6, 4, outputs, dtype=F64)
    if kind == "places of all scales":
        return J * torch.logspace(-6, 4, places, dtype=F64)[:, None]
    if kind == "places twice":
        return torch.cat([J[:, : (places + 1) // 2], J[:, : places // 2]], 1)
    if kind == "examples of all scales":
        return J * torch.logspace(-8, 8, 4, dtype=F64)[:, None, None]
    return J


FACTORS = [
    "ordinary",
    "positive",
    "rows of all scales",
    "places of all scales",
    "places twice",
    "examples of all scales",
]


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize(("places", "outputs"), [(1, 1), (2, 1), (5, 3), (30, 1), (30, 4), (30, 50)])
@pytest.mark.parametrize("convex", [True, False])
def test_squared_distances(kind, places, outputs, convex):
    """Of the output itself, of a far output, of one that a filter on the sphere or inside it gives, and of zero."""
    J = factor(kind, places, outputs)
    Q = 2 * J @ J.mT
    on_sphere = normalize(randn(4, places, seed=1), dim=1)
    for h in (
        -Q.sum(2),
        -2 * times(J, randn(4, outputs, seed=2)),
        -2e3 * times(J, randn(4, outputs, seed=3)),
        -times(Q, on_sphere),
        -times(Q, on_sphere / 3),
        torch.zeros(4, places, dtype=F64),
    ):
        check(Q, h, convex=convex)


@pytest.mark.parametrize("places", [7, 40])
@pytest.mark.parametrize("pull", [1.0, 0.01])
@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("share", [1.0, 1e-9, 0.0], ids=["easy", "nearly hard", "hard"])
def test_indefinite_matrices(places, pull, multiplicity, share):
    """``share`` of what pulls along the lowest eigenvectors is left: nothing of it in the hard case."""
    w, V = torch.linalg.eigh(randn(3, places, places) + randn(3, places, places).mT)
    w[:, :multiplicity] = w[:, :1]
    Q = V @ torch.diag_embed(w) @ V.mT
    h, lowest = pull * randn(3, places, seed=1), V[:, :, :multiplicity]
    along = times(lowest, times(lowest.mT, h))
    check((Q + Q.mT) / 2, h - (1 - share) * along, convex=False)


def test_a_least_eigenvector_that_nothing_points_at_is_found():
    Q = torch.diag(torch.cat([torch.linspace(1, 2, 49, dtype=F64), torch.tensor([-3.0], dtype=F64)]))[None]
    h = torch.cat([randn(49), torch.zeros(1, dtype=F64)])[None] / 10
    f, _ = minimize_with_products(lambda v: times(Q, v), h, h, convex=False)
    assert f[0, -1].abs() > 0.9


@pytest.mark.parametrize("convex", [True, False])
def test_nothing_to_minimise_gives_the_preferred_direction(convex):
    zero = torch.zeros(2, 30, 30, dtype=F64)
    f, _, _ = solve(zero, zero[:, 0], convex=convex)
    torch.testing.assert_close(f, torch.full((2, 30), 30**-0.5, dtype=F64))


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_products_are_as_many_as_the_rank_and_few_where_the_output_is_to_be_kept(rank):
    J = randn(2, 600, rank)
    Q = 2 * J @ J.mT
    for h in (-2 * times(J, randn(2, rank, seed=1)), -times(Q, normalize(randn(2, 600), dim=1) / 3)):
        assert solve(Q, h, convex=True)[2] <= 1.5 * (rank + 4)
    J = randn(2, 600, 300).clamp_min(0)
    Q = 2 * J @ J.mT
    assert check(Q, -Q.sum(2), convex=True) <= 6


def test_no_example_costs_another_its_accuracy():
    J = factor("examples of all scales", 60, 9)
    Q = 2 * J @ J.mT
    h = -times(Q, randn(4, 60, seed=1)) * torch.tensor([1e-3, 1, 0, 1e3], dtype=F64)[:, None]
    together, _, _ = solve(Q, h, convex=True)
    for i in range(4):
        alone, _, _ = solve(Q[i : i + 1], h[i : i + 1], convex=True)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-6, rtol=0)


class Affine(nn.Module):
    """The places' sums, weighted or not, and a linear layer."""

    def __init__(self, outputs, channels=6, kernel=3):
        super().__init__()
        self.features = nn.Conv2d(3, channels, kernel)
        self.fc = nn.Linear(channels, outputs)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def transcription(model, x, reference=None):
    """The least objective of each example from the whole matrix of places, in double precision."""
    A = nn.functional.conv2d(x.double(), model.features.weight.double(), model.features.bias.double()).flatten(2)
    J = A.mT @ model.fc.weight.double().T / A.shape[2]  # (B, places, outputs)
    bias = model.fc.bias.double()
    wanted = J.sum(1) + bias if reference is None else reference.double()
    Q, h = 2 * J @ J.mT, -2 * times(J, wanted - bias)
    f = minimize_on_sphere(Q, h, torch.ones_like(h))
    return f, ((f[:, None] @ J)[:, 0] + bias - wanted).square().sum(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", [1, 5, 200])
@pytest.mark.parametrize("size", [3, 4, 14])
def test_maps_are_those_of_the_whole_matrix(dtype, outputs, size):
    torch.manual_seed(0)
    model = Affine(outputs).to(dtype).eval()
    x = images(3, size).to(dtype)
    x[1] *= 100
    other = model(images(3, size, seed=1).to(dtype)).detach()
    for reference in (None, other, model(x).detach() / 10):
        maps, report = L2CAF(model, model.features, layout=ChannelsFirst()).attribute(
            x, reference=reference, signed=True, return_report=True
        )
        f, objective = transcription(model, x, reference)
        assert report.exact.all()
        torch.testing.assert_close(report.objective.double(), objective, rtol=1e-6, atol=1e-7)
        if reference is None:  # elsewhere many may be as good
            torch.testing.assert_close(maps.flatten(1).double(), f, rtol=0, atol=1e-4)
