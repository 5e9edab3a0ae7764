"""All or nothing writing."""

import pytest
import torch

from pml_extensions.evolution.bits import difference, write


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_writes_where_not_kept(dtype):
    tensor, values = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    keep = torch.rand(50) < 0.5
    expected = torch.where(keep, tensor.float(), values.float())
    write([tensor], [difference(tensor, values, keep)])
    assert torch.equal(tensor.float(), expected)


class Unwritable:
    def detach(self):
        raise KeyboardInterrupt


def test_takes_back_what_was_written_before_an_exception():
    tensors = [torch.randn(3), torch.randn(4)]
    before = [tensor.clone() for tensor in tensors]
    flips = [difference(tensor, torch.randn(tensor.shape), torch.zeros((), dtype=torch.bool)) for tensor in tensors]
    with pytest.raises(KeyboardInterrupt):
        write([*tensors, Unwritable()], [*flips, flips[0]])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
