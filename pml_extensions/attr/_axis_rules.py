"""What an operation makes of the axes of its tensors; without a rule, axes of which nothing is known.

Convolution, batch and group normalisation and pooling say where channels are: in the second axis, or so many before
the last. Matrix products say that what they sum over holds channels.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_extensions.attr._axes import (
    Axes,
    Axis,
    Kind,
    agreed,
    channels,
    concatenated,
    cut,
    kind,
    learn,
    length,
    lost,
    picked,
    places,
    reshaped,
    resized,
    unknown,
)


@dataclass(frozen=True)
class Call:
    """An operation that ran.

    Attributes:
        name: of the operation, without what marks it as in place.
        arguments: all of them, by name.
        axes_of: the axes of a tensor; those of what the network holds are channels.
        shapes: of the results.
    """

    name: str
    arguments: dict[str, Any]
    axes_of: Callable[[Tensor], Axes]
    shapes: list[torch.Size]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments."""
        return [value for value in self.arguments.values() if isinstance(value, Tensor)]

    def first(self) -> Axes:
        """Return the axes of the first tensor."""
        return self.axes_of(self.tensors()[0])

    def dims(self, ndim: int, name: str = "dim") -> list[int]:
        """Return the dimensions that an argument names; all of them if it names none."""
        given = self[name]
        named = list(range(ndim)) if given is None or given == [] else given if isinstance(given, list) else [given]
        return [dim % ndim for dim in named]


Rule = Callable[[Call], Sequence[Axes]]


def axes_of_results(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axes_of: Callable[[Tensor], Axes],
    shapes: list[torch.Size],
) -> list[Axes]:
    """Return the axes of every tensor that an operation returned, in order."""
    schema = function._schema  # noqa: SLF001 - no public way to ask
    values = [*args, *(kwargs.get(argument.name, argument.default_value) for argument in schema.arguments[len(args) :])]
    arguments = {argument.name: value for argument, value in zip(schema.arguments, values, strict=True)}
    call = Call(schema.name.rpartition("::")[2].rstrip("_"), arguments, axes_of, shapes)
    try:
        found = list(_rule(call, function)(call)) if shapes else []
    except (IndexError, KeyError):  # a form of the operation that its rule does not know
        found = []
    found += [()] * (len(shapes) - len(found))
    return [axes if _fit(axes, shape) else _nothing_known(shape) for axes, shape in zip(found, shapes, strict=True)]


def _rule(call: Call, function: Any) -> Rule:
    if call.name in _RULES:
        return _RULES[call.name]
    if torch.Tag.pointwise in function.tags:
        return _pointwise
    if "keepdim" in call.arguments:
        return _reduction
    return next((rule for part, rule in _FAMILIES.items() if part in call.name), lambda _: [])


def _fit(axes: Axes, shape: torch.Size) -> bool:
    return len(axes) == len(shape) and all(length(axis) == size for axis, size in zip(axes, shape, strict=True))


def _nothing_known(shape: torch.Size) -> Axes:
    return tuple(unknown(size) for size in shape)


def _pointwise(call: Call) -> list[Axes]:
    return [_broadcast([call.axes_of(tensor) for tensor in call.tensors()], call.shapes[0])]


def _broadcast(operands: Sequence[Axes], shape: Sequence[int]) -> Axes:
    def meeting(place: int, size: int) -> Axis:
        there = [axes[place] for axes in operands if len(axes) >= -place and length(axes[place]) == size]
        return agreed(there) if there else unknown(size)

    return tuple(meeting(place - len(shape), size) for place, size in enumerate(shape))


def _same(call: Call) -> list[Axes]:
    return [call.first()] * len(call.shapes)


def _resized(call: Call) -> list[Axes]:
    axes = call.first()
    return [
        tuple(resized(axis, size) for axis, size in zip(axes, shape, strict=True)) if len(axes) == len(shape) else ()
        for shape in call.shapes
    ]


def _reduction(call: Call) -> list[Axes]:
    axes = call.first()
    gone = set(call.dims(len(axes)))
    keep = call["keepdim"]
    return [tuple(() if at in gone else axis for at, axis in enumerate(axes) if keep or at not in gone)] * len(
        call.shapes
    )


# Views


def _view(call: Call) -> list[Axes]:
    return [reshaped(call.first(), call.shapes[0])]


def _permute(call: Call) -> list[Axes]:
    axes = call.first()
    return [tuple(axes[dim] for dim in call.dims(len(axes), "dims"))]


def _transpose(call: Call) -> list[Axes]:
    axes = list(call.first())
    one, other = (0, -1) if call.name == "t" else (call["dim0"], call["dim1"])
    if axes:
        axes[one], axes[other] = axes[other], axes[one]
    return [tuple(axes)]


def _squeeze(call: Call) -> list[Axes]:
    axes = call.first()
    allowed = call.dims(len(axes)) if "dim" in call.arguments else range(len(axes))
    return [tuple(axis for at, axis in enumerate(axes) if at not in allowed or length(axis) != 1)]


def _unsqueeze(call: Call) -> list[Axes]:
    axes = list(call.first())
    axes.insert(call["dim"] % (len(axes) + 1), ())
    return [tuple(axes)]


def _select(call: Call) -> list[Axes]:
    axes = call.first()
    (gone,) = call.dims(len(axes))
    return [tuple(axis for at, axis in enumerate(axes) if at != gone)] * len(call.shapes)


def _slice(call: Call) -> list[Axes]:
    axes, shape = list(call.first()), call.shapes[0]
    (dim,) = call.dims(len(axes))
    size, start = length(axes[dim]), call["start"] or 0
    start = min(max(start + size, 0) if start < 0 else start, size)
    axes[dim] = cut(axes[dim], start, start + shape[dim]) if call["step"] == 1 else resized(axes[dim], shape[dim])
    return [tuple(axes)]


def _split(call: Call) -> list[Axes]:
    axes = call.first()
    (dim,) = call.dims(len(axes))
    found, start = [], 0
    for shape in call.shapes:
        found.append((*axes[:dim], cut(axes[dim], start, start + shape[dim]), *axes[dim + 1 :]))
        start += shape[dim]
    return found


def _repeat(call: Call) -> list[Axes]:
    return [_broadcast([call.first()], call.shapes[0])]


def _unfold(call: Call) -> list[Axes]:
    (axes,) = _resized(Call("unfold", call.arguments, call.axes_of, [call.shapes[0][:-1]]))
    return [(*axes, unknown(call.shapes[0][-1]))]


def _concatenation(call: Call) -> list[Axes]:
    operands = [call.axes_of(tensor) for tensor in call["tensors"] if tensor.numel()]
    dim = call["dim"] % len(operands[0])
    axes = list(_broadcast(operands, call.shapes[0]))
    axes[dim] = concatenated([operand[dim] for operand in operands])
    return [tuple(axes)]


def _stack(call: Call) -> list[Axes]:
    shape = list(call.shapes[0])
    dim = call["dim"] % len(shape)
    count = shape.pop(dim)
    axes = list(_broadcast([call.axes_of(tensor) for tensor in call["tensors"]], shape))
    axes.insert(dim, unknown(count))
    return [tuple(axes)]


def _view_as_real(call: Call) -> list[Axes]:
    return [(*call.first(), channels(2))]


def _view_as_complex(call: Call) -> list[Axes]:
    return [call.first()[:-1]]


# Layers


def _channels_first(axes: Axes, spatial: int) -> None:
    """Note that an operation takes the last so many axes for places, and the one before them for channels."""
    learn(axes[-spatial - 1], Kind.CHANNELS)
    for axis in axes[-spatial:] if spatial else ():
        learn(axis, Kind.PLACES)


def _convolution(call: Call) -> list[Axes]:
    shape, axes = call.shapes[0], call.first()
    _channels_first(axes, len(shape) - 2)
    return [(axes[0], channels(shape[1]), *map(places, shape[2:]))]


def _batch_norm(call: Call) -> list[Axes]:
    examples, features, *spatial = axes = call.first()
    _channels_first(axes, len(spatial))
    features = channels(length(features)) if lost(features) else features
    known = (places(length(axis)) if lost(axis) else axis for axis in spatial)
    return [(examples, features, *known)]


def _layer_norm(call: Call) -> list[Axes]:
    axes = call.first()
    if len(call["normalized_shape"]) == 1:
        learn(axes[-1], Kind.CHANNELS)
    return [axes]


def _pool(call: Call) -> list[Axes]:
    """Pooling and resampling: places, unless it pools a network's channels, as maxout does."""
    axes, shape = call.first(), call.shapes[0]
    named = re.search(r"(\d)d", call.name)
    spatial = int(named[1]) if named else 2
    before = axes[-spatial - 1]
    if kind(before) is Kind.PLACES and all(kind(axis) in {Kind.CHANNELS, None} for axis in axes[-spatial:]):
        return _resized(call)
    _channels_first(axes, spatial)
    known = channels(length(before)) if lost(before) else resized(before, shape[-spatial - 1])
    return [(*axes[: -spatial - 1], known, *map(places, shape[-spatial:]))] * len(call.shapes)


def _patches(call: Call) -> list[Axes]:
    """im2col: a column for every patch, row by row."""
    axes, shape = call.first(), call.shapes[0]
    _channels_first(axes, 2)
    window = zip(call["kernel_size"], call["dilation"], call["padding"], call["stride"], strict=True)
    rows, columns = (
        (length(axis) + 2 * padding - dilation * (size - 1) - 1) // stride + 1
        for axis, (size, dilation, padding, stride) in zip(axes[-2:], window, strict=True)
    )
    return [(*axes[:-3], channels(shape[-2]), (*places(rows), *places(columns)))]


def _summed_over(one: Axis, other: Axis) -> None:
    """Note that what is summed over against a weight holds channels, unless it is a flattened image."""
    for axis, against in ((one, other), (other, one)):
        if kind(against) is Kind.CHANNELS and len(axis) == 1:
            learn(axis, Kind.CHANNELS)


def _linear(call: Call) -> list[Axes]:
    axes = call.first()
    _summed_over(axes[-1], channels(length(axes[-1])))
    return [(*axes[:-1], channels(call.shapes[0][-1]))]


def _embedding(call: Call) -> list[Axes]:
    return [(*call.axes_of(call["indices"]), channels(call.shapes[0][-1]))]


def _product(call: Call) -> list[Axes]:
    left, right = call.tensors()[-2:]
    rows, columns = call.axes_of(left), call.axes_of(right)
    _summed_over(rows[-1], columns[-2])
    shared = [agreed([rows[0], columns[0]])] if len(rows) == 3 else []
    return [(*shared, rows[-2], columns[-1])]


def _distances(call: Call) -> list[Axes]:
    one, other = (call.axes_of(tensor) for tensor in call.tensors()[:2])
    return [(*_broadcast([one[:-2], other[:-2]], call.shapes[0][:-2]), one[-2], other[-2])]


def _attention(call: Call) -> list[Axes]:
    return [(*call.axes_of(call["query"])[:-1], call.axes_of(call["value"])[-1])]


def _pick(call: Call) -> list[Axes]:
    """Entries of one dimension in an order of their own, of each column another if there are as many indices."""
    axes = list(call.first())
    (dim,) = call.dims(len(axes))
    sorts = call.name in {"sort", "topk"}  # by value: what comes where is a matter of the values
    axes[dim] = unknown(call.shapes[0][dim]) if sorts else picked(axes[dim], call.shapes[0][dim])
    return [tuple(resized(axis, size) for axis, size in zip(axes, call.shapes[0], strict=True))] * len(call.shapes)


def _index(call: Call) -> list[Axes]:
    """Entries of one dimension, or of several beside one another, in the order of the indices."""
    axes, indices = call.first(), call["indices"]
    indexed = [dim for dim, index in enumerate(indices) if index is not None]
    first, last = indexed[0], indexed[-1]
    if indexed != list(range(first, last + 1)) or any(
        index.dtype is torch.bool for index in indices if index is not None
    ):
        return []
    ndim = len(call.shapes[0]) - len(axes) + len(indexed)
    found = _broadcast([call.axes_of(indices[dim]) for dim in indexed], call.shapes[0][first : first + ndim])
    if len(indexed) == 1 and len(found) == 1:
        found = (picked(axes[first], length(found[0])),)
    return [(*axes[:first], *found, *axes[last + 1 :])]


_FAMILIES: dict[str, Rule] = {
    "conv": _convolution,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "pool": _pool,
    "upsample": _pool,
    "grid_sampler": _pool,
    "scaled_dot_product": _attention,
    "cdist": _distances,
    "scatter": _same,
    "index_": _same,
    "masked_": _same,
    "dropout": _same,
    "softmax": _same,
    "_like": _same,
    "pad": _resized,
    "fft_": _resized,
    "fake_quantize": _same,
}
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "_reshape_copy"), _view),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split),
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("expand", "repeat"), _repeat),
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(("index_select", "gather", "topk", "sort"), _pick),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "col2im"), _pool),
    **dict.fromkeys(("hardswish", "rsub", "where", "copy", "prelu", "_prelu_kernel", "lerp"), _pointwise),
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "cumprod", "cumsum", "detach", "fill", "flip", "roll", "tril", "triu"),
        _same,
    ),
    **dict.fromkeys(("_to_copy", "convert_element_type", "cummax", "cummin", "lift_fresh", "rrelu_with_noise"), _same),
    "linear": _linear,
    "native_group_norm": _batch_norm,
    "permute": _permute,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "unfold": _unfold,
    "glu": _resized,
    "cat": _concatenation,
    "stack": _stack,
    "view_as_real": _view_as_real,
    "view_as_complex": _view_as_complex,
    "im2col": _patches,
    "embedding": _embedding,
    "index": _index,
}
