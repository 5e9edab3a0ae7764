"""First and second derivatives in every mode against those of a full SVD; the third is refused in every mode."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from pml_extensions.regularizers import SVMaxRegularizer, mean_singular_value

# torch 2.14 scripts its own decompositions at the first forward differentiation
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


def by_svd(embeddings):
    return torch.linalg.svdvals(embeddings).sum() / embeddings.shape[1]


def term_by_svd(embeddings):
    rows = embeddings / embeddings.norm(dim=1, keepdim=True)
    low = rows.norm() / rows.shape[1]
    high = low * min(rows.shape) ** 0.5
    return torch.exp((high - by_svd(rows)) / (high - low))


SHAPES = [(6, 4), (4, 6), (5, 5)]
FUNCTIONS = [(mean_singular_value, by_svd), (SVMaxRegularizer(), term_by_svd)]


def second_by_svd(function):
    return jacrev(jacrev(function))


@pytest.fixture(params=list(product(SHAPES, FUNCTIONS)), ids=lambda p: f"{p[0][0]}x{p[0][1]}-{type(p[1][0]).__name__}")
def case(request):
    """Our function, the same by an SVD, embeddings, and a direction."""
    shape, (ours, svd) = request.param
    return ours, svd, torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def tangent(function, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent


def tangent_of_gradient(function, x, v):
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(leaf, v)
        (gradient,) = torch.autograd.grad(function(dual), dual)
        return forward_ad.unpack_dual(gradient).tangent


def double_backward(function, x, v):
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    return torch.autograd.grad((gradient * v).sum(), leaf)[0]


def test_first_derivative_in_every_mode(case):
    ours, svd, x, v = case
    expected = grad(svd)(x)
    along = (expected * v).sum()
    for name, found in {
        "grad": grad(ours)(x),
        "vjp": vjp(ours, x)[1](torch.ones((), dtype=x.dtype))[0],
        "jacrev": jacrev(ours)(x),
        "jacfwd": jacfwd(ours)(x),
    }.items():
        torch.testing.assert_close(found, expected, msg=name)
    torch.testing.assert_close(jvp(ours, (x,), (v,)), (svd(x), along))
    torch.testing.assert_close(tangent(ours, x, v), along)


def test_second_derivative_in_every_mode(case):
    ours, svd, x, v = case
    expected = second_by_svd(svd)(x)
    for name, found in {
        "hessian": hessian(ours)(x),
        "reverse, reverse": jacrev(jacrev(ours))(x),
        "forward, forward": jacfwd(jacfwd(ours))(x),
        "reverse of forward": jacrev(jacfwd(ours))(x),
        "autograd": torch.autograd.functional.hessian(ours, x),
        "autograd, vectorized": torch.autograd.functional.hessian(ours, x, vectorize=True),
        "autograd, forward": torch.autograd.functional.hessian(
            ours, x, vectorize=True, outer_jacobian_strategy="forward-mode"
        ),
    }.items():
        torch.testing.assert_close(found, expected, msg=name)
    along = torch.einsum("ijkl,kl->ij", expected, v)
    for name, found in {
        "forward of reverse": jvp(grad(ours), (x,), (v,))[1],
        "reverse of forward": grad(lambda x: jvp(ours, (x,), (v,))[1])(x),
        "hvp": torch.autograd.functional.hvp(ours, x, v)[1],
        "vhp": torch.autograd.functional.vhp(ours, x, v)[1],
        "dual numbers": tangent_of_gradient(ours, x, v),
        "double backward": double_backward(ours, x, v),
    }.items():
        torch.testing.assert_close(found, along, msg=name)


def test_over_batches_of_embeddings(case):
    ours, svd, x, v = case
    batches = torch.stack([x, v, x - v])
    for derivative in (lambda f: f, grad, hessian, lambda f: lambda x: jvp(f, (x,), (x,))[1]):
        of_svd = second_by_svd if derivative is hessian else derivative
        expected = torch.stack([of_svd(svd)(one) for one in batches])
        torch.testing.assert_close(vmap(derivative(ours))(batches), expected)
        torch.testing.assert_close(vmap(derivative(ours), in_dims=-1)(batches.movedim(0, -1)), expected)
        torch.testing.assert_close(vmap(vmap(derivative(ours)))(batches[None]), expected[None])
    expected = torch.stack([2 * svd(one) * grad(svd)(one) for one in batches])
    torch.testing.assert_close(grad(lambda all_: vmap(ours)(all_).square().sum())(batches), expected)


def test_one_bad_batch_of_many_stays_alone():
    batches = torch.randn(3, 6, 4)
    batches[1, 0, 0] = torch.inf
    for derivative in (lambda f: f, grad, hessian):
        found = vmap(derivative(mean_singular_value))(batches)
        assert found[1].isnan().all()
        torch.testing.assert_close(found[2], derivative(mean_singular_value)(batches[2]))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck_and_gradgradcheck(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for function, _ in FUNCTIONS:
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def orthonormal(n, k):
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64))[0]


def polar_factor(matrix, rank):
    u, _, vh = torch.linalg.svd(matrix)
    return u[:, :rank] @ vh[:rank]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", [(2.0, 2.0, 2.0, 2.0), (3.0, 1.0, 1.0, 0.5), (2.0, 2.0, 0.0, 0.0), (1.0, 0, 0, 0)])
def test_second_derivative_with_equal_and_with_null_singular_values(shape, values):
    """Against the difference of polar factors; null directions stay null along a change that keeps the rank."""
    values = torch.tensor(values, dtype=torch.float64)
    rank = int((values > 0).sum())
    left, right = orthonormal(shape[0], 4)[:, :rank], orthonormal(shape[1], 4)[:, :rank]
    turn_left, turn_right = torch.randn_like(left), torch.randn_like(right)
    if rank == min(shape):
        turn_left, turn_right = torch.randn_like(left), 0 * right

    def moved(step):
        return (left + step * turn_left) * values[:rank] @ (right + step * turn_right).mT

    x, v = moved(0), turn_left * values[:rank] @ right.mT + left * values[:rank] @ turn_right.mT
    step = 1e-5
    expected = (polar_factor(moved(step), rank) - polar_factor(moved(-step), rank)) / (2 * step * shape[1])
    for found in (jvp(grad(mean_singular_value), (x,), (v,))[1], double_backward(mean_singular_value, x, v)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_second_derivative_of_a_zero_batch_is_zero():
    assert not hessian(mean_singular_value)(torch.zeros(4, 3)).any()


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4])
def test_second_derivative_close_to_collapse_in_single_precision(noise):
    for b, d in ((40, 16), (16, 40), (24, 24)):
        x = F.normalize(torch.randn(1, d) + noise * torch.randn(b, d))
        v = torch.randn(b, d)
        expected = double_backward(mean_singular_value, x.double(), v.double())
        found = double_backward(mean_singular_value, x, v)
        assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_meta_gradient_through_two_inner_steps():
    """MAML's outer gradient (Finn et al., arXiv:1703.03400): through the inner gradients."""
    inputs, weight = torch.randn(12, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def outer(term):
        def loss(weight):
            for _ in range(2):
                weight = weight - 0.3 * grad(lambda w: term(inputs @ w))(weight)
            return term(inputs.flip(0) @ weight) + (inputs @ weight).square().mean()

        return grad(loss)(weight)

    torch.testing.assert_close(outer(SVMaxRegularizer()), outer(term_by_svd))


def along(function, v):
    return lambda x: jvp(function, (x,), (v,))[1]


def weighted(function, v):
    return lambda x: (function(x) * v).sum() if function(x).ndim else function(x)


@pytest.mark.parametrize("function", [f for f, _ in FUNCTIONS])
@pytest.mark.parametrize("modes", ["".join(modes) for modes in product("fr", repeat=3)])
def test_third_derivative_is_refused_in_every_mode(function, modes):
    x, v = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    derivative = function
    for mode in modes:
        derivative = along(derivative, v) if mode == "f" else grad(weighted(derivative, v))
    with pytest.raises(RuntimeError, match=r"no third derivative|modified by an inplace operation"):
        derivative(x)


def test_third_derivative_is_refused_by_backward():
    leaf = torch.randn(5, 4, requires_grad=True)
    (first,) = torch.autograd.grad(mean_singular_value(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + first.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="the mean singular value has no third derivative here"):
        second.sum().backward()


COMPILED = [grad, vmap, lambda f: vmap(grad(f))]
if hasattr(torch.compiler, "set_stance"):  # torch 2.6; before, torch does not compile them
    COMPILED += [jacfwd, jacrev]


class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize("transform", COMPILED, ids=lambda transform: transform.__name__)
    def test_transforms_in_one_graph(self, transform):
        x = torch.randn(6, 4) if transform in (grad, jacfwd, jacrev) else torch.randn(3, 6, 4)
        compiled = torch.compile(transform(mean_singular_value), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), transform(mean_singular_value)(x))

    @pytest.mark.parametrize("function", [mean_singular_value, SVMaxRegularizer(normalize_embeddings=False)])
    def test_a_graph_without_a_second_derivative_refuses_it(self, function):
        compiled = torch.compile(function, backend="aot_eager")
        x = torch.randn(6, 4)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            double_backward(compiled, x, x)
