"""Write new values into some elements of tensors, all or nothing, through the difference of their bits.

What ``write`` flips is told by the difference alone, so flipping it again takes a write back: no copy of the old
values is needed, and elements outside the mask keep every bit, those of negative zeros and NaNs included.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["difference", "write"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def difference(tensor: Tensor, values: Tensor, keep: Tensor) -> Tensor:
    """Return the bits in which ``tensor`` and ``values`` differ, none where ``keep`` is True; overwrites ``values``."""
    bits = _bits(values)
    chosen = keep.to(bits.dtype).sub_(1)  # 0 where kept, all bits elsewhere
    return bits.bitwise_xor_(_bits(tensor)).bitwise_and_(chosen)


def write(tensors: Sequence[Tensor], differences: Sequence[Tensor]) -> None:
    """Flip the bits of ``tensors`` where ``differences`` say; after an exception every tensor is as before."""
    written = 0
    try:
        for tensor, flips in zip(tensors, differences, strict=True):
            _bits(tensor).bitwise_xor_(flips)
            written += 1
    except BaseException:
        for tensor, flips in zip(tensors[:written], differences[:written], strict=True):
            _bits(tensor).bitwise_xor_(flips)
        raise


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_INTEGERS[tensor.element_size()])
