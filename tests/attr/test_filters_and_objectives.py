"""Filters and objectives against the formulas of the paper."""

import pytest
import torch

from pml_extensions.attr import ClassOblivious, ClassSpecific, Gaussian, Reference, Softmax, UnitNorm


def test_filters():
    p = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(UnitNorm()(p, (3, 4)), (p / p.norm(dim=1, keepdim=True)).view(3, 3, 4))
    torch.testing.assert_close(Softmax()(p, (3, 4)), (p.exp() / p.exp().sum(1, keepdim=True)).view(3, 3, 4))
    mean = torch.tensor([[0.5, -1.0], [0.0, 3.0]], dtype=torch.float64)
    got = Gaussian(std=1.5)(mean, (7, 5))
    for i in range(2):
        wanted = torch.empty(7, 5, dtype=torch.float64)
        for r in range(7):
            for c in range(5):
                distance = (r - 3 - mean[i, 0]) ** 2 + (c - 2 - mean[i, 1]) ** 2
                wanted[r, c] = torch.exp(-distance / (2 * 1.5**2))
        torch.testing.assert_close(got[i], wanted / wanted.sum())
    for filter_ in (UnitNorm(), Softmax(), Gaussian()):
        start = filter_(filter_.start(2, (3, 3)), (3, 3))
        assert start.shape == (2, 3, 3)
        torch.testing.assert_close(start, start.flip(1, 2))
    with pytest.raises(ValueError, match="std must be positive and finite, got 0"):
        Gaussian(std=0)


def test_objectives():
    output, original = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(ClassOblivious()(output, original), ((output - original) ** 2).sum(1))
    torch.testing.assert_close(Reference(original[:1])(output, output), ((output - original[:1]) ** 2).sum(1))
    got = ClassSpecific(torch.tensor([[1], [4], [0]]))(output, original)
    for i, c in enumerate((1, 4, 0)):
        torch.testing.assert_close(got[i], sum(output[i, j] for j in range(5) if j != c) - output[i, c])
    maps = torch.randn(2, 5, 3, 4)
    got = ClassSpecific(torch.tensor([[1, 2, 3], [0, 0, 0]]))(maps, maps)
    torch.testing.assert_close(got[0], maps[0, :, 2, 3].sum() - 2 * maps[0, 1, 2, 3])
    torch.testing.assert_close(got[1], maps[1, :, 0, 0].sum() - 2 * maps[1, 0, 0, 0])
