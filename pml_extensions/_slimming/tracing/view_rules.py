"""Rules of the operations that move, split, join and pick dimensions."""

from pml_extensions._slimming.algebra.axes import Axes, Axis, concatenate, is_frozen, new_axis, resolve, size
from pml_extensions._slimming.algebra.unification import split_at
from pml_extensions._slimming.tracing.calls import Call, aten, keep_open, rule


@rule(aten.view, aten._unsafe_view, aten._reshape_alias, aten.reshape)
def _view(call: Call) -> Axes:
    if call.func is aten.view.dtype:
        for axis in call.axes():
            call.freeze(axis, "its bytes are read as another type")
        return [call.frozen(n, "its bytes are read as another type") for n in call.out.shape]
    after = [new_axis(length) for length in call.out.shape]
    if call.out.numel():
        call.unify(sum(call.axes(), ()), sum(after, ()))
    return after


@rule(
    aten.alias, aten.detach, aten.clone, aten.contiguous, aten._to_copy, aten.lift_fresh, aten.lift_fresh_copy,
    aten._conj, aten.conj, aten.resolve_conj, aten._softmax, aten._log_softmax, aten._safe_softmax, aten.cumsum,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like, aten.triu,
    aten.tril, aten.fill, aten.fill_, aten.zero_, aten.view_as, aten.native_dropout, aten.bernoulli, aten.bernoulli_,
    aten.uniform_, aten.normal_, aten._assert_async, aten.nan_to_num, aten.cumprod, aten.logcumsumexp, aten.cummax,
    aten.cummin,
)  # fmt: skip
def _same(call: Call) -> Axes | list[Axes]:
    axes = call.axes("self" if "self" in call.arguments else next(iter(call.arguments)))
    return [axes] * len(call.out) if isinstance(call.out, tuple) else axes


@rule(aten.permute)
def _permute(call: Call) -> Axes:
    axes = call.axes()
    return [axes[d] for d in call.dims("dims")]


@rule(aten.transpose, aten.t, aten.transpose_, aten.t_, aten.swapaxes, aten.numpy_T, aten.mT)
def _transpose(call: Call) -> Axes:
    axes = list(call.axes())
    a, b = (call.dim("dim0"), call.dim("dim1")) if "dim0" in call.arguments else (0, -1)
    if axes:
        axes[a], axes[b] = axes[b], axes[a]
    return axes


@rule(aten.squeeze, aten.squeeze_)
def _squeeze(call: Call) -> Axes:
    dims = call.dims()
    return [axis for d, axis in enumerate(call.axes()) if not (d in dims and size(axis) == 1)]


@rule(aten.unsqueeze, aten.unsqueeze_)
def _unsqueeze(call: Call) -> Axes:
    axes = list(call.axes())
    axes.insert(call["dim"] % (len(axes) + 1), ())
    return axes


@rule(aten.expand)
def _expand(call: Call) -> Axes:
    axes = call.axes()
    padded = [()] * (call.out.ndim - len(axes)) + axes
    return [
        axis if size(axis) == length else new_axis(length) for axis, length in zip(padded, call.out.shape, strict=True)
    ]


@rule(aten.repeat)
def _repeat(call: Call) -> Axes:
    axes = call.axes()
    padded: Axes = [()] * (call.out.ndim - len(axes)) + axes
    return [(*new_axis(times), *axis) for axis, times in zip(padded, call["repeats"], strict=True)]


@rule(aten.select)
def _select(call: Call) -> Axes:
    axes, d = call.axes(), call.dim()
    call.freeze(axes[d], "single entries of it are picked")
    return axes[:d] + axes[d + 1 :]


@rule(aten.unbind)
def _unbind(call: Call) -> list[Axes]:
    axes, d = call.axes(), call.dim()
    call.freeze(axes[d], "it joins parts of one entry each", by_design=True)
    return [axes[:d] + axes[d + 1 :]] * len(call.out)


def cut(call: Call, axis: Axis, start: int, stop: int) -> Axis:
    """Return the axis of a contiguous slice, binding leaves to what stands before, in and after it."""
    if start == 0 and stop == size(axis):
        return axis
    if not is_frozen(axis):
        keep_open()
        head = split_at(axis, stop)
        piece = split_at(head[0], start) if head is not None else None
        if piece is not None:
            return resolve(piece[1])
        call.freeze(axis, "a slice cuts through a product")
    return call.frozen(stop - start, "a slice of what keeps its size")


@rule(aten.glu)
def _glu(call: Call) -> Axes:
    axes, d = list(call.axes()), call.dim()
    half, whole = size(axes[d]) // 2, size(axes[d])
    axes[d] = call.unify(cut(call, axes[d], 0, half), cut(call, axes[d], half, whole))
    return axes


@rule(aten.slice)
def _slice(call: Call) -> Axes:
    axes, d = list(call.axes()), call.dim()
    length, step = size(axes[d]), call["step"]
    start, stop, step = slice(call["start"], call["end"], step).indices(length)
    if step != 1:
        call.freeze(axes[d], "it is read in strides")
    axes[d] = cut(call, axes[d], start, max(start, stop)) if step == 1 else call.frozen(call.out.shape[d], "strided")
    return axes


@rule(aten.split, aten.split_with_sizes, aten.unsafe_split, aten.unsafe_split_with_sizes, aten.chunk, aten.unsafe_chunk)
def _split(call: Call) -> list[Axes]:
    axes, d = call.axes(), call.dim()
    pieces, start = [], 0
    for part in call.out:
        stop = start + part.shape[d]
        pieces.append([*axes[:d], cut(call, axes[d], start, stop), *axes[d + 1 :]])
        start = stop
    return pieces


@rule(aten.cat)
def _cat(call: Call) -> Axes:
    operands = [t for t in call["tensors"] if t.shape != (0,)]
    for operand in operands:
        call.trace.produce(operand)
    many = [call.trace.axes(t) for t in operands]
    d = call["dim"] % operands[0].ndim
    axes = list(many[0])
    for other in many[1:]:
        axes = [a if i == d else call.unify(a, other[i]) for i, a in enumerate(axes)]
    joined = concatenate([other[d] for other in many])
    axes[d] = call.frozen(size(joined), "joined from what keeps its size") if is_frozen(joined) else joined
    return axes


@rule(aten.stack)
def _stack(call: Call) -> Axes:
    many = [call.trace.axes(t) for t in call["tensors"]]
    axes = list(many[0])
    for other in many[1:]:
        axes = [call.unify(a, b) for a, b in zip(axes, other, strict=True)]
    axes.insert(call["dim"] % (len(axes) + 1), call.frozen(len(many), "it counts stacked tensors"))
    return axes


@rule(aten.flip, aten.roll, aten.rot90)
def _reorder(call: Call) -> Axes:
    axes = call.axes()
    for d in call.dims("dims"):
        call.freeze(axes[d], "its entries change their order")
    return axes


@rule(
    aten.constant_pad_nd, aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d, aten.replication_pad1d,
    aten.replication_pad2d, aten.replication_pad3d,
)  # fmt: skip
def _pad(call: Call) -> Axes:
    axes, pad = list(call.axes()), call.get("pad") or call.get("padding")
    for i in range(len(pad) // 2 if call.func.overloadpacket is not aten.constant_pad_nd else 0):
        if any(pad[2 * i : 2 * i + 2]):
            call.freeze(axes[-1 - i], "it is padded with entries of its own")
    for i in range(len(pad) // 2):
        before, after = pad[2 * i : 2 * i + 2]
        d = len(axes) - 1 - i
        if min(before, after) < 0 or is_frozen(axes[d]):
            call.freeze(axes[d], "it is cropped")
            axes[d] = axes[d] if before == after == 0 else call.frozen(call.out.shape[d], "padded space")
        else:
            axes[d] = concatenate([p for p in (new_axis(before), axes[d], new_axis(after)) if size(p) or p])
    return axes


@rule(aten.unfold)
def _windows(call: Call) -> Axes:
    axes, d = list(call.axes()), call.dim("dimension")
    call.freeze(axes[d], "windows are cut from it", by_design=True)
    axes[d] = call.frozen(call.out.shape[d], "it counts windows")
    return [*axes, call.frozen(call.out.shape[-1], "a window")]


@rule(aten.im2col)
def _im2col(call: Call) -> Axes:
    *batch, channels, height, width = call.axes()
    for axis in (height, width):
        call.freeze(axis, "windows are cut from it", by_design=True)
    window = call.frozen(call.out.shape[-2] // size(channels), "a window")
    return [*batch, (*channels, *window), call.frozen(call.out.shape[-1], "it counts windows")]


@rule(aten.col2im)
def _col2im(call: Call) -> Axes:
    *batch, stacked, windows = call.axes()
    call.freeze(windows, "it counts windows", by_design=True)
    channels = new_axis(call.out.shape[-3])
    call.unify(stacked, (*channels, *call.frozen(size(stacked) // size(channels), "a window")))
    return [*batch, channels, *(call.frozen(n, "space") for n in call.out.shape[-2:])]


@rule(aten.pixel_shuffle)
def _pixel_shuffle(call: Call) -> Axes:
    *batch, stacked, height, width = call.axes()
    channels = new_axis(call.out.shape[-3])
    call.unify(stacked, (*channels, *call.frozen(call["upscale_factor"] ** 2, "it becomes space")))
    return [*batch, channels, *call.space([height, width], call.out.shape[-2:])]


@rule(aten.pixel_unshuffle)
def _pixel_unshuffle(call: Call) -> Axes:
    *batch, channels, height, width = call.axes()
    stacked = (*channels, *call.frozen(call["downscale_factor"] ** 2, "it was space"))
    return [*batch, stacked, *call.space([height, width], call.out.shape[-2:])]


@rule(aten.channel_shuffle, aten.native_channel_shuffle)
def _channel_shuffle(call: Call) -> Axes:
    batch, channels, *space = call.axes()
    groups, each = call.frozen(call["groups"], "it counts groups"), new_axis(size(channels) // call["groups"])
    call.unify(channels, (*groups, *each))
    return [batch, resolve((*each, *groups)), *space]


@rule(aten._pack_padded_sequence)
def _pack(call: Call) -> list[Axes]:
    axes, (data, counts) = call.axes("input"), call.out
    for axis in axes[:2]:
        call.freeze(axis, "it counts steps and sequences", by_design=True)
    return [[call.frozen(len(data), "steps of all sequences"), *axes[2:]], [call.frozen(len(counts), "steps")]]


@rule(aten._pad_packed_sequence)
def _pad_packed(call: Call) -> list[Axes]:
    padded, lengths = call.out
    counts = [call.frozen(n, "it counts steps and sequences") for n in padded.shape[:2]]
    return [[*counts, *call.axes("data")[1:]], [call.frozen(len(lengths), "sequences")]]


@rule(aten.sort, aten.topk, aten.kthvalue)
def _sort(call: Call) -> list[Axes]:
    axes, d = list(call.axes()), call.dim()
    call.freeze(axes[d], "its entries change their order")
    axes[d] = call.frozen(call.out[0].shape[d], "sorted") if call.out[0].ndim == len(axes) else axes[d]
    return [axes, axes]


@rule(aten.diagonal, aten.as_strided)
def _frozen_view(call: Call) -> Axes:
    for axis in call.axes():
        call.freeze(axis, f"{call.func.overloadpacket} reads it out of order")
    return [call.frozen(n, "read out of order") for n in call.out.shape]


@rule(aten.view_as_complex)
def _view_as_complex(call: Call) -> Axes:
    *axes, parts = call.axes()
    call.freeze(parts, "real and imaginary part")
    return axes


@rule(aten.view_as_real)
def _view_as_real(call: Call) -> Axes:
    return [*call.axes(), call.frozen(2, "real and imaginary part")]
