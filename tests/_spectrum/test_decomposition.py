"""Values and gradients against a full float64 SVD, on batches that are spread, crowded, nearly and wholly collapsed."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from pml_extensions._spectrum import decomposition
from pml_extensions.regularizers import effective_rank, mean_singular_value


def point(d):
    return torch.randn(1, d)


def around_one_point(noise):
    return lambda b, d: point(d) + noise * torch.randn(b, d)


def by_class(size, noise):
    return lambda b, d: torch.randn(-(-b // size), d).repeat_interleave(size, 0)[:b] + noise * torch.randn(b, d)


BATCHES = {
    "spread": torch.randn,
    "noise 1e-1": around_one_point(1e-1),
    "noise 1e-2": around_one_point(1e-2),
    "noise 1e-3": around_one_point(1e-3),
    "noise 1e-4": around_one_point(1e-4),
    "noise 1e-5": around_one_point(1e-5),
    "16 a class": by_class(16, 0.3),
    "8 a class, close": by_class(8, 1e-3),
    "a line and two points": lambda b, d: torch.randn(b, 1) @ point(d) + by_class(-(-b // 2), 1e-2)(b, d),
    "decay": lambda b, d: torch.randn(b, d) / torch.arange(1, d + 1),
    "fast decay": lambda b, d: torch.randn(b, d) * torch.logspace(0, -6, d),
    "duplicates": lambda b, d: torch.randn(-(-b // 3), d).repeat(3, 1)[:b],
    "close duplicates": lambda b, d: around_one_point(1e-3)(-(-b // 3), d).repeat(3, 1)[:b],
    "of few directions": lambda b, d: torch.randn(b, 3).round(decimals=2) @ torch.eye(d)[:3],
    "collapsed": lambda b, d: point(d).expand(b, d),
}
SIZES = ((40, 8), (24, 64), (72, 128), (33, 32), (144, 128), (256, 256), (1024, 64), (64, 1024))


def value_and_gradient(embeddings):
    embeddings = embeddings.detach().clone().requires_grad_()
    value = mean_singular_value(embeddings)
    (gradient,) = torch.autograd.grad(value, embeddings)
    return value.detach(), gradient


def by_svd(embeddings, null):
    """The mean singular value and its gradient; directions up to ``null`` of the largest singular value are zero."""
    u, s, vh = torch.linalg.svd(embeddings.double(), full_matrices=False)
    return s.sum() / embeddings.shape[1], u * (s > null * s[0]) @ vh / embeddings.shape[1]


def relative_error(got, expected):
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("size", SIZES)
def test_single_precision_is_right_to_five_digits(name, size):
    embeddings = F.normalize(BATCHES[name](*size))
    value, gradient = value_and_gradient(embeddings)
    expected, expected_gradient = by_svd(embeddings, 1e-12)
    assert relative_error(value, expected) < 3e-7
    assert relative_error(gradient, expected_gradient) < 6e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("size", [(512, 512), (1024, 512), (512, 2048)])
@pytest.mark.parametrize("seed", range(3))
def test_large_batches(name, size, seed):
    torch.manual_seed(seed)
    test_single_precision_is_right_to_five_digits(name, size)


def test_the_nearly_collapsed_batch_of_the_documentation():
    embeddings = F.normalize(around_one_point(1e-2)(512, 512))
    assert relative_error(value_and_gradient(embeddings)[1], by_svd(embeddings, 0)[1]) < 1e-6


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("size", SIZES[:5])
def test_double_precision_is_right_to_eight_digits(name, size):
    embeddings = F.normalize(BATCHES[name](*size).double())
    value, gradient = value_and_gradient(embeddings)
    expected, expected_gradient = by_svd(embeddings, 1e-13)
    assert value.dtype == torch.float64
    assert relative_error(value, expected) < 1e-12
    assert relative_error(gradient, expected_gradient) < 1e-8


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("size", SIZES)
def test_without_double_precision_it_is_that_of_a_single_precision_svd(name, size, monkeypatch):
    """As on Apple's GPUs: the directions that are not trusted are split off in single precision."""
    single = decomposition.Precision(torch.float32, torch.float32)
    monkeypatch.setattr(decomposition.Precision, "of", lambda _: single)
    embeddings = F.normalize(BATCHES[name](*size))
    value, gradient = value_and_gradient(embeddings)
    expected, expected_gradient = by_svd(embeddings, null := single.null)
    assert relative_error(value, expected) < 3e-6
    values = torch.linalg.svdvals(embeddings.double())
    if ((values > null / 10 * values[0]) & (values < 1000 * null * values[0])).any():  # no one's digits are right there
        assert gradient.norm() <= (min(size) ** 0.5 + 1e-3) / size[1]
    else:
        assert relative_error(gradient, expected_gradient) < 1e-3


def precisions(embeddings):
    """The precision and size of each eigenproblem."""
    with mock.patch("torch.linalg.eigh", wraps=torch.linalg.eigh) as eigh:
        mean_singular_value(embeddings)
    return [(call.args[0].dtype, len(call.args[0])) for call in eigh.call_args_list]


def test_a_spread_batch_pays_for_one_eigenproblem_in_its_own_precision():
    for shape in ((400, 64), (64, 400)):
        assert precisions(torch.randn(shape)) == [(torch.float32, 64)]
        assert precisions(torch.randn(shape).double()) == [(torch.float64, 64)]


def test_a_square_batch_pays_for_a_small_second_one():
    (first, whole), (second, few) = precisions(torch.randn(128, 128))
    assert (first, second, whole) == (torch.float32, torch.float64, 128)
    assert 0 < few < 40


@pytest.mark.parametrize("batch", [around_one_point(1e-1), around_one_point(1e-2), by_class(16, 0.3)])
def test_a_crowded_batch_pays_for_one_in_double_precision(batch):
    assert precisions(F.normalize(batch(160, 64))) == [(torch.float64, 64)]


def test_null_directions_get_the_subgradient_of_least_norm():
    left, right = torch.linalg.qr(torch.randn(9, 2))[0], torch.linalg.qr(torch.randn(6, 2))[0]
    embeddings = left @ torch.diag(torch.tensor([3.0, 1.0])) @ right.T
    torch.testing.assert_close(value_and_gradient(embeddings)[1], left @ right.T / 6, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(4, 4), (64, 16), (16, 64), (3, 200)])
def test_rounding_of_a_collapsed_batch_is_no_direction(shape):
    for scale in (torch.ones(shape[0], 1), torch.randn(shape[0], 1)):
        embeddings = F.normalize(scale * point(shape[1]))
        assert effective_rank(embeddings).item() == pytest.approx(1, abs=1e-6)
        u, _, vh = torch.linalg.svd(embeddings.double(), full_matrices=False)
        torch.testing.assert_close(
            value_and_gradient(embeddings)[1].double(), torch.outer(u[:, 0], vh[0]) / shape[1], atol=1e-6, rtol=0
        )


def test_a_stack_of_matrices_is_decomposed_one_by_one():
    stack = torch.randn(2, 3, 6, 4)
    stack[1, 2, 0, 0] = torch.nan
    values, polar = decomposition.decompose(stack)
    for i, j in ((0, 0), (1, 1), (1, 2)):
        for all_of_them, one in zip((values, polar), decomposition.decompose(stack[i, j]), strict=True):
            torch.testing.assert_close(all_of_them[i, j], one, rtol=0, atol=0, equal_nan=True)
    assert values.isnan().sum() == 4
    torch.library.opcheck(torch.ops.pml_extensions.decompose.default, (torch.randn(2, 5, 3),))
