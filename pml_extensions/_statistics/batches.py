"""The network's inputs in what a training loop iterates over."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["check_data", "inputs_of"]

_IMAGES = ("pixel_values", "images", "image", "img", "inputs", "input", "data", "x")


def check_data(data: Any) -> None:
    """Raise unless ``data`` can be iterated over; nothing is read."""
    batches = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not batches or isinstance(data, Tensor | Mapping | str | bytes | type):
        got = f"the class {data.__name__}" if isinstance(data, type) else f"a {type(data).__name__}"
        raise TypeError(
            f"data must be what a training loop iterates over, such as a DataLoader or a list of batches, got {got}"
            + ("; write [images] or images.split(64)" if isinstance(data, Tensor) else "")
        )


def inputs_of(batch: Any, model: nn.Module, place: int) -> tuple[Tensor, ...]:
    """Return what a model takes of a batch: one tensor, or as many as a slim network was traced with.

    Args:
        batch: the tensor; a tuple or list that begins with it; or a dict that holds it under the name of forward's
            argument, under a usual one (``pixel_values``, ``image``, ``data``, ...), or as its only tensor of floats.
        model: the network.
        place: number of the batch, for the error.

    Raises:
        TypeError: if the batch does not hold it, or if it is not clear where.
        ValueError: if it is empty.
    """
    names = list(inspect.signature(model.forward).parameters)
    count = len(getattr(model, "slim_recipe", {}).get("input_shapes", ())) or 1
    found = _find(batch, count, names)
    if len(found) != count or not all(isinstance(tensor, Tensor) for tensor in found):
        wanted = "a tensor" if count == 1 else f"{count} tensors"
        raise TypeError(
            f"data must yield batches: {wanted}, or a tuple or list that begins with it, or a dict with it under "
            f"{'/'.join(names[:count])} or a name such as 'image'; got as batch {place} {_described(batch)}"
        )
    if not all(tensor.numel() for tensor in found):
        raise ValueError(f"data must yield batches of one or more images, but batch {place} is empty")
    return found


def _find(batch: Any, count: int, names: list[str]) -> tuple[Any, ...]:
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, Mapping):
        return _in_mapping(batch, count, names)
    if not isinstance(batch, tuple | list) or not batch:
        return ()
    if isinstance(batch[0], Mapping) or (count > 1 and isinstance(batch[0], tuple | list)):
        return _find(batch[0], count, names)
    return tuple(batch[:count])


def _in_mapping(batch: Mapping[Any, Any], count: int, names: list[str]) -> tuple[Any, ...]:
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    if len(names) >= count and all(name in tensors for name in names[:count]):
        return tuple(tensors[name] for name in names[:count])
    usual = [tensors[name] for name in _IMAGES if name in tensors]
    return tuple(usual or [tensor for tensor in tensors.values() if tensor.is_floating_point()])


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict of { {key: type(value).__name__ for key, value in batch.items()} }"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of ({', '.join(type(value).__name__ for value in batch)})"
    return f"a {type(batch).__name__}"
