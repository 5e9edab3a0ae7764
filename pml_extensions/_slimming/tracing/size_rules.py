"""Where torch takes integers as sizes: the equations that such a use adds.

The table goes by the name of the function, as torch hands it to a TorchFunctionMode. A traced integer that is used
anywhere else is pinned to its dense value, so that nothing it depends on can shrink; in plain arithmetic on tensors
it is free, for there it changes no shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pml_extensions._slimming.algebra.axes import Axis, Cat, Factor, is_frozen, resolve, size
from pml_extensions._slimming.algebra.integers import Equation, Expression, Operation, Size, TracedInt, expression_of
from pml_extensions._slimming.algebra.unification import split_at, split_outer
from pml_extensions._slimming.locations import where
from pml_extensions._slimming.tracing.trace import Trace

USES: dict[str, "Callable[[Use], None]"] = {}
FREE = {
    "add", "sub", "mul", "div", "true_divide", "floor_divide", "pow", "rsub", "remainder", "add_", "sub_", "mul_",
    "div_", "clamp", "clamp_", "eq", "ne", "lt", "gt", "le", "ge", "__rsub__", "__rdiv__", "__rtruediv__", "__rpow__",
    "__pow__", "__truediv__", "__mul__", "__add__", "__sub__", "__rmul__", "__radd__", "sum", "mean", "softmax",
    "transpose", "permute", "unsqueeze", "squeeze", "flatten", "__get__", "dim",
}  # fmt: skip


@dataclass
class Use:
    """One call of a torch function: the tensors and integers it was given, and what it returned."""

    trace: Trace
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, position: int, *names: str) -> Any:
        """Return an argument by position or name, or None."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def sizes(self, position: int, *names: str) -> list[int]:
        """Return sizes given one by one or in a sequence."""
        given = self.argument(position, *names)
        if isinstance(given, int):
            given = self.args[position:]
        return list(given) if isinstance(given, (tuple, list)) else []

    def axes(self, tensor: Tensor) -> list[Axis]:
        """Return the axes of a tensor."""
        return self.trace.axes(tensor)

    def require(self, value: int | Expression, axis: Axis) -> None:
        """Add the equation that an integer is the size of an axis; one that is not keeps its dense value."""
        if isinstance(value, int):
            if value.__index__() != size(axis):
                self.pin(value)
                return
            value = expression_of(value)
        if isinstance(value, int) and is_frozen(axis):
            return
        self.trace.equations.append(Equation(value, "==", Size(axis), where()))

    def pin(self, value: Any) -> None:
        """Add the equation that an integer (each of a nest of them) keeps its dense value."""
        if isinstance(value, TracedInt):
            self.trace.equations.append(Equation(value.expression, "==", int(value), where()))
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.pin(item)
        elif isinstance(value, slice):
            self.pin((value.start, value.stop, value.step))

    def within(self, index: Any, axis: Axis) -> None:
        """Add the inequality that a traced index is one of an axis."""
        if isinstance(index, TracedInt):
            self.trace.equations.append(Equation(index.expression, "<", Size(axis), where()))

    def require_all(self, values: Sequence[int], axes: Sequence[Axis]) -> None:
        """Add the equations of a list of sizes; -1 stands for what is left."""
        for value, axis in zip(values, axes, strict=True):
            if value.__index__() != -1:
                self.require(value, axis)


UseRule: TypeAlias = Callable[[Use], None]


def use(*names: str) -> Callable[[UseRule], UseRule]:
    """Enter a function as the rule of the torch functions of these names."""

    def enter(function: UseRule) -> UseRule:
        USES.update(dict.fromkeys(names, function))
        return function

    return enter


@use("view", "reshape", "expand", "broadcast_to")
def _view(use: Use) -> None:
    sizes = use.sizes(1, "size", "shape")
    if sizes:
        use.require_all(sizes, use.axes(use.out))


@use("zeros", "ones", "empty", "rand", "randn")
def _factory(use: Use) -> None:
    use.require_all(use.sizes(0, "size"), use.axes(use.out))


@use("full")
def _full(use: Use) -> None:
    use.require_all(list(use.argument(0, "size")), use.axes(use.out))
    use.pin(use.argument(1, "fill_value"))


@use("new_zeros", "new_ones", "new_empty")
def _new(use: Use) -> None:
    use.require_all(use.sizes(1, "size"), use.axes(use.out))


@use("unflatten")
def _unflatten(use: Use) -> None:
    tensor, dim, sizes = use.args[0], use.argument(1, "dim"), list(use.argument(2, "sizes"))
    d = int(dim) % tensor.ndim
    use.require_all(sizes, use.axes(use.out)[d : d + len(sizes)])


@use("repeat")
def _repeat(use: Use) -> None:
    for times, axis in zip(use.sizes(1, "repeats"), use.axes(use.out), strict=True):
        use.require(times, leading(axis, times.__index__()))


def leading(axis: Axis, length: int) -> Axis:
    """Return the outer factors of an axis that have the given size together, or a frozen stand-in of it."""
    axis = resolve(axis)
    outer: list[Factor] = []
    for factor in axis:
        if size(tuple(outer)) >= length:
            break
        outer.append(factor)
    if size(tuple(outer)) == length:
        return tuple(outer)
    if len(outer) == 1 and outer[0].size % length == 0 and (split := split_outer(outer[0], length)) is not None:
        return leading(split, length)
    return axis


@use("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def _split(use: Use) -> None:
    sections = use.argument(1, "split_size_or_sections", "split_size", "split_sizes")
    d = _dim(use, 2)
    parts = [use.axes(part)[d] for part in use.out]
    if isinstance(sections, int):
        use.require_all([sections] * (len(parts) - 1), parts[:-1])
    else:
        use.require_all(list(sections), parts)


def _dim(use: Use, position: int) -> int:
    tensor = use.args[0] if use.args else use.kwargs["input"]
    return int(use.argument(position, "dim") or 0) % int(tensor.ndim)


@use("chunk")
def _chunk(use: Use) -> None:
    tensor, chunks, d = use.args[0], use.argument(1, "chunks"), _dim(use, 2)
    use.pin(chunks)
    whole = Operation("+", Size(use.axes(tensor)[d]), int(chunks) - 1)
    for part in use.out[:-1]:
        use.require(Operation("//", whole, int(chunks)), use.axes(part)[d])


@use("tensor_split")
def _tensor_split(use: Use) -> None:
    _split_along(use, _dim(use, 2))


@use("hsplit")
def _hsplit(use: Use) -> None:
    _split_along(use, min(1, use.args[0].ndim - 1))


@use("vsplit")
def _vsplit(use: Use) -> None:
    _split_along(use, 0)


@use("dsplit")
def _dsplit(use: Use) -> None:
    _split_along(use, 2)


def _split_along(use: Use, d: int) -> None:
    """Add the equations of a split into a number of parts, or at the places of a list or tensor."""
    axis = use.axes(use.args[0])[d]
    at = use.argument(1, "indices_or_sections", "tensor_indices_or_sections", "sections", "indices")
    at = at.tolist() if isinstance(at, Tensor) else at
    if isinstance(at, (tuple, list)):
        for place in at:
            _bound(use, axis, place)
        return
    use.pin(at)
    for i, part in enumerate(use.out):
        parts = Operation("//", Operation("+", Size(axis), int(at) - 1 - i), int(at))  # the first get what is left over
        use.require(parts, use.axes(part)[d])


@use("narrow")
def _narrow(use: Use) -> None:
    tensor, d = use.args[0], _dim(use, 1)
    start, length = use.argument(2, "start"), use.argument(3, "length")
    _bound(use, use.axes(tensor)[d], start)
    use.require(length, use.axes(use.out)[d])


def _bound(use: Use, axis: Axis, bound: int | None) -> None:
    """Require that the bound of a slice moves with the axis it cuts."""
    if bound is None:
        return
    value, length = bound.__index__(), size(axis)
    pieces = split_at(axis, value % length) if -length < value < length and not is_frozen(axis) else None
    if value == length:
        use.require(bound, axis)
    elif pieces is None:
        use.pin(bound)
    elif value >= 0:
        use.require(bound, pieces[0])
    else:
        use.require(-bound, pieces[1])


@use("__getitem__", "__setitem__")
def _getitem(use: Use) -> None:
    tensor, index = use.args[0], use.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    axes, d = use.axes(tensor), 0
    for position, item in enumerate(items):
        if item is None or isinstance(item, bool):
            continue
        if item is Ellipsis:
            d = tensor.ndim - sum(_consumed(later) for later in items[position + 1 :])
            continue
        if isinstance(item, slice) and item.step is None:
            _bound(use, axes[d], item.start)
            _bound(use, axes[d], item.stop)
        else:
            use.pin(item)
            use.within(item, axes[d] if d < len(axes) else ())
        d += _consumed(item)


def _consumed(item: object) -> int:
    if item is None or isinstance(item, bool):
        return 0
    if isinstance(item, Tensor) and item.dtype == torch.bool:
        return item.ndim
    return 1


@use("pad")
def _pad(use: Use) -> None:
    tensor, pad = use.args[0], list(use.argument(1, "pad"))
    before, after = use.axes(tensor), use.axes(use.out)
    for i in range(len(pad) // 2):
        d = len(after) - 1 - i
        if is_frozen(after[d]):
            use.pin(pad[2 * i : 2 * i + 2])
        else:
            _pad_one(use, before[d], after[d], pad[2 * i], pad[2 * i + 1])


def _pad_one(use: Use, before: Axis, after: Axis, left: int, right: int) -> None:
    pieces = split_at(after, left.__index__())
    if pieces is None:
        use.pin((left, right))
        return
    use.require(left, pieces[0])
    use.require(Operation("+", Operation("+", expression_of(left), Size(before)), expression_of(right)), after)


@use("layer_norm", "rms_norm")
def _layer_norm(use: Use) -> None:
    shape = list(use.argument(1, "normalized_shape"))
    use.require_all(shape, use.axes(use.args[0])[-len(shape) :])


@use("group_norm")
def _group_norm(use: Use) -> None:
    groups = use.argument(1, "num_groups")
    use.require(groups, leading(use.axes(use.args[0])[1], groups.__index__()))


@use("conv1d", "conv2d", "conv3d")
def _convolution(use: Use) -> None:
    _groups(use, use.argument(6, "groups"))
    use.pin([use.argument(3, "stride"), use.argument(4, "padding"), use.argument(5, "dilation")])


@use("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(use: Use) -> None:
    _groups(use, use.argument(6, "groups"))
    use.pin([use.argument(3, "stride"), use.argument(4, "padding"), use.argument(7, "dilation")])


def _groups(use: Use, groups: int | None) -> None:
    if groups is not None and groups.__index__() > 1:
        tensor, weight = use.argument(0, "input"), use.argument(1, "weight")
        channels = use.axes(tensor)[tensor.ndim - weight.ndim + 1]
        use.require(groups, leading(channels, groups.__index__()))


@use("multi_head_attention_forward")
def _multi_head_attention(use: Use) -> None:
    query, heads = use.args[0], use.argument(4, "num_heads")
    width = use.axes(query)[-1]
    use.require(use.argument(3, "embed_dim_to_check"), width)
    packed = use.argument(5, "in_proj_weight")
    separate = [use.kwargs.get(f"{name}_proj_weight") for name in "qkv"]
    for weight, times in [(packed, 3), *((weight, 1) for weight in separate)]:
        if weight is not None:
            axis = use.axes(weight)[0]
            use.require(Operation("*", times, Size(width)), axis)
            use.require(heads, leading(_last(axis, size(axis) // times), heads.__index__()))


def _last(axis: Axis, length: int) -> Axis:
    """Return the part of a product or a concatenation that stands last and has the given size, or nothing."""
    axis = resolve(axis)
    while size(axis) > length:
        axis = resolve(axis[0].parts[-1] if len(axis) == 1 and isinstance(axis[0], Cat) else axis[1:])
    return axis if size(axis) == length else ()


@use("scaled_dot_product_attention")
def _attention(use: Use) -> None:
    if use.kwargs.get("scale") is None:
        use.trace.note_default_scale(use.axes(use.args[0])[-1])
