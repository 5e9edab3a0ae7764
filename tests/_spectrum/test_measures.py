"""The functions of a batch: exact bounds, scales, degenerate batches, and what is no batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_extensions.regularizers import effective_rank, mean_singular_value, svmax_bounds


def value_and_gradient(function, embeddings):
    embeddings = embeddings.detach().clone().requires_grad_()
    value = function(embeddings)
    (gradient,) = torch.autograd.grad(value, embeddings)
    return value.detach(), gradient


LINE = torch.tensor([0.3, -2.0, 0.7, 1.1])


class TestMeanSingularValue:
    @pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
    def test_scale_passes_through(self, scale):
        embeddings = torch.randn(12, 5)
        value, gradient = value_and_gradient(mean_singular_value, embeddings * scale)
        expected, expected_gradient = value_and_gradient(mean_singular_value, embeddings)
        torch.testing.assert_close(value, expected * scale)
        torch.testing.assert_close(gradient, expected_gradient)

    def test_zero_batch_has_value_and_gradient_zero(self):
        value, gradient = value_and_gradient(mean_singular_value, torch.zeros(4, 3))
        assert value == 0
        assert not gradient.any()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 4)])
    def test_what_is_not_finite_comes_out_as_nan(self, bad, shape):
        embeddings = torch.randn(shape)
        embeddings[0, 1] = bad
        value, gradient = value_and_gradient(mean_singular_value, embeddings)
        assert value.isnan()
        assert gradient.isnan().all()
        assert effective_rank(embeddings).isnan()

    def test_noncontiguous_embeddings(self):
        embeddings = torch.randn(5, 9).T
        torch.testing.assert_close(mean_singular_value(embeddings), mean_singular_value(embeddings.contiguous()))

    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
    def test_bounds_hold_and_rotations_change_nothing(self, b, d, seed):
        generator = torch.Generator().manual_seed(seed)
        embeddings = F.normalize(torch.randn(b, d, generator=generator, dtype=torch.float64))
        s = mean_singular_value(embeddings).item()
        low, high = svmax_bounds(b, d)
        assert low * (1 - 1e-9) <= s <= high * (1 + 1e-9)
        rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        assert mean_singular_value(embeddings @ rotation).item() == pytest.approx(s, rel=1e-9)


class TestBounds:
    @pytest.mark.parametrize(("b", "d"), [(72, 128), (144, 128), (8, 8), (1, 5), (5, 1)])
    def test_both_are_attained(self, b, d):
        low, high = svmax_bounds(b, d)
        assert mean_singular_value(torch.ones(b, d) / math.sqrt(d)).item() == pytest.approx(low, rel=1e-6)
        orthogonal = torch.linalg.qr(torch.randn(max(b, d), min(b, d), dtype=torch.float64))[0]
        orthogonal = orthogonal * math.sqrt(b / min(b, d))
        assert mean_singular_value(orthogonal if b >= d else orthogonal.T).item() == pytest.approx(high, rel=1e-9)

    @pytest.mark.parametrize(("sizes", "name"), [((0, 4), "batch_size"), ((4, -1), "embedding_size")])
    def test_sizes_must_be_positive(self, sizes, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            svmax_bounds(*sizes)


class TestEffectiveRank:
    def test_formula(self):
        embeddings = torch.randn(20, 7)
        p = torch.linalg.svdvals(embeddings.double())
        p = p / p.sum()
        assert effective_rank(embeddings).item() == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-5)

    @pytest.mark.parametrize("collapsed", [torch.ones(6, 4), torch.outer(LINE, LINE), torch.zeros(3, 2)])
    def test_collapsed_is_one(self, collapsed):
        assert effective_rank(collapsed).item() == pytest.approx(1)

    def test_no_gradient(self):
        assert not effective_rank(torch.randn(4, 3, requires_grad=True)).requires_grad
