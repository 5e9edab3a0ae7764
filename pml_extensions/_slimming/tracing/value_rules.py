"""Rules of the operations that compute: elementwise, products, convolutions, norms, pools, attention, factories."""

from typing import Any

from torch import Tensor

from pml_extensions._slimming.algebra.axes import Axes, Axis, leaves, new_axis, resolve, size
from pml_extensions._slimming.locations import where
from pml_extensions._slimming.tracing.calls import Call, add_operand, aten, rule, tensors


def elementwise(call: Call) -> Axes | list[Axes]:
    """Unify the operands of an operation that works entry by entry, with broadcasting."""
    out = call.out if isinstance(call.out, Tensor) else call.out[0]
    operands = [t for value in call.arguments.values() for t in tensors(value)]
    axes = [broadcast(call, operands, d - out.ndim, length) for d, length in enumerate(out.shape)]
    for operand in operands:
        call.trace.produce(operand)
    return axes if isinstance(call.out, Tensor) else [axes] * len(call.out)


def broadcast(call: Call, operands: list[Tensor], d: int, length: int) -> Axis:
    """Unify dimension ``d`` (counted from the end) of all operands that have it at full length."""
    result: Axis | None = None
    for operand in operands:
        if operand.ndim >= -d and operand.shape[d] == length:
            axis = call.trace.axes(operand)[d]
            result = axis if result is None else call.unify(result, axis)
    return new_axis(length) if result is None else result


rule(
    aten.masked_fill, aten.masked_fill_, aten.where, aten.copy, aten.copy_, aten.lerp, aten.addcmul, aten.addcdiv,
    aten.prelu, aten._prelu_kernel, aten.complex, aten.polar, aten.rsub, aten.hardtanh, aten.hardtanh_, aten.relu6,
    aten.hardswish, aten.hardswish_, aten.hardsigmoid, aten.hardsigmoid_, aten.mish, aten.mish_, aten.silu, aten.silu_,
    aten.gelu, aten.gelu_, aten.elu, aten.elu_, aten.celu, aten.celu_, aten.selu, aten.selu_, aten.leaky_relu,
    aten.leaky_relu_, aten.softplus, aten.log_sigmoid_forward, aten.glu_jvp, aten.relu, aten.relu_, aten.sigmoid,
    aten.sigmoid_, aten.tanh, aten.tanh_, aten.clamp, aten.clamp_, aten.threshold, aten.threshold_,
    aten.rrelu_with_noise,
)(elementwise)  # fmt: skip


@rule(
    aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.argmax, aten.argmin, aten.var, aten.std,
    aten.var_mean, aten.std_mean, aten.logsumexp, aten.prod, aten.any, aten.all, aten.linalg_vector_norm, aten.norm,
    aten.count_nonzero, aten.median, aten.nanmean, aten.aminmax,
)  # fmt: skip
def _reduce(call: Call) -> Axes | list[Axes]:
    if "other" in call.arguments:
        return elementwise(call)
    dims, keep = call.dims(), bool(call.get("keepdim"))
    axes = [() if d in dims else axis for d, axis in enumerate(call.axes()) if keep or d not in dims]
    return axes if isinstance(call.out, Tensor) else [axes] * len(call.out)


def _product(call: Call, left: str, right: str) -> Axes:
    """Contract the last axis of ``left`` with the last but one of ``right``; leading axes are a batch."""
    a, b = call.axes(left), call.axes(right)
    contracted = call.unify(a[-1], b[-2])
    batch = [call.unify(x, y) for x, y in zip(a[:-2], b[:-2], strict=True)]
    for operand, other in ((left, a[-2]), (right, b[-1])):
        if call.trace.is_weight(call[operand]):
            mark(call, contracted)
            mark(call, other, produced=True)
            call.trace.mixtures.append((contracted, other))
    return [*batch, resolve(a[-2]), resolve(b[-1])]


def mark(call: Call, axis: Axis, produced: bool = False) -> None:
    """Note that an axis is one of a weight, and whether the weight decides what the axis holds."""
    call.trace.weight_axes.append((axis, where() or f"submodule {call.trace.module!r}", produced))
    for leaf in leaves(axis) if produced else ():
        leaf.produced = True


@rule(aten.mm, aten.bmm)
def _mm(call: Call) -> Axes:
    return _product(call, "self", "mat2")


@rule(aten.addmm, aten.baddbmm)
def _addmm(call: Call) -> Axes:
    second = "mat1" if "mat1" in call.arguments else "batch1"
    axes = _product(call, second, "mat2" if second == "mat1" else "batch2")
    return add_operand(call, axes, call["self"])


@rule(aten._cdist_forward)
def _distances(call: Call) -> Axes:
    one, other = call.axes("x1"), call.axes("x2")
    call.unify(one[-1], other[-1])
    batch = [broadcast(call, [call["x1"], call["x2"]], d - call.out.ndim, n) for d, n in enumerate(call.out.shape[:-2])]
    return [*batch, one[-2], other[-2]]


@rule(aten._weight_norm_interface)
def _weight_norm(call: Call) -> list[Axes]:
    axes = call.axes("v")
    return [add_operand(call, axes, call["g"]), call.axes("g")]


@rule(aten.mv)
def _mv(call: Call) -> Axes:
    matrix, (vector,) = call.axes(), call.axes("vec")
    call.unify(matrix[1], vector)
    return [matrix[0]]


@rule(aten.dot, aten.vdot)
def _dot(call: Call) -> Axes:
    call.unify(call.axes()[0], call.axes("tensor" if "tensor" in call.arguments else "other")[0])
    return []


@rule(aten._trilinear)
def _trilinear(call: Call) -> Axes:
    """Multiply three tensors, each spread over the dimensions that it lacks, and add up along some of them."""
    expanded = []
    for name, missing in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        axes = list(call.axes(name))
        for d in sorted(call[missing]):
            axes.insert(d, ())
        expanded.append(axes)
    joined = []
    for d, meeting in enumerate(zip(*expanded, strict=True)):
        wide: Axes = [axis for axis in meeting if size(axis) > 1] or [()]
        for other in wide[1:]:
            call.unify(wide[0], other)
        joined.append(resolve(wide[0]))
        for name, axis in zip(("i1", "i2", "i3"), meeting, strict=True):
            if call.trace.is_weight(call[name]) and size(axis) > 1:
                mark(call, axis, produced=d not in call["sumdim"])
    return [axis for d, axis in enumerate(joined) if d not in call["sumdim"]]


@rule(aten.convolution, aten._convolution)
def _convolution(call: Call) -> Axes:
    axes, weight = call.axes("input"), call.axes("weight")
    batched = len(axes) == call["weight"].ndim
    channels = axes[1] if batched else axes[0]
    first, second, *kernel = weight
    if not call.trace.is_weight(call["weight"]):  # a kernel made by the network: both its axes are widths of their own
        for axis in (first, second):
            call.trace.made_kernels.update(leaves(axis))
    for axis in kernel:
        call.freeze(axis, "a kernel", by_design=True)
    tied = (first, channels) if call["transposed"] else (channels, first)
    out = _channels(call, *tied, second)
    if call["bias"] is not None:
        call.unify(out, call.axes("bias")[0])
    pointwise = all(n == 1 for n in call["weight"].shape[2:])
    rank = len(kernel)
    space = call.space(axes[-rank:], call.out.shape[-rank:], pointwise) if rank else []
    return [*axes[:1], resolve(out), *space] if batched else [resolve(out), *space]


def _channels(call: Call, whole_in: Axis, whole_out: Axis, part: Axis) -> Axis:
    """Tie the channels of a convolution in groups; ``part`` is the weight's axis of one group; return the output's.

    Plain: the input holds groups x part, the weight's first axis is the output. Transposed: the weight's first axis is
    the input (``whole_in``) and the output holds groups x part; ``whole_out`` is then the input's axis.
    """
    groups = call["groups"]
    mark(call, part)
    if call["transposed"]:
        call.unify(whole_in, whole_out)
        mark(call, whole_in)
        counted = new_axis(groups)
        call.unify(whole_in, (*counted, *new_axis(size(whole_in) // groups)))
        out: Axis = (*counted, *part)
    else:
        counted = new_axis(groups)
        each = new_axis(size(whole_out) // groups)
        call.unify(whole_in, (*counted, *part))
        call.unify(whole_out, (*counted, *each))
        if size(part) == 1:
            call.trace.multiplied.append((counted, each))
        mark(call, whole_in)
        out = whole_out
    mark(call, out, produced=True)
    return out


@rule(
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten._batch_norm_no_update, aten.cudnn_batch_norm, aten._batch_norm_with_update,
)  # fmt: skip
def _batch_norm(call: Call) -> list[Axes]:
    axes = list(call.axes("input"))
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            axes[1] = call.unify(axes[1], call.axes(name)[0])
    return [axes, *([new_axis(n) for n in t.shape] for t in call.out[1:])]


@rule(aten.native_layer_norm)
def _layer_norm(call: Call) -> list[Axes]:
    return _normalised(call)


@rule(aten._fused_rms_norm)
def _rms_norm(call: Call) -> list[Axes]:
    return _normalised(call)[: len(call.out)]


def _normalised(call: Call) -> list[Axes]:
    """Tie the last axes of the input to those of the affine terms; statistics have size one there."""
    axes = list(call.axes("input"))
    rank = len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            axes[-rank:] = [call.unify(a, b) for a, b in zip(axes[-rank:], call.axes(name), strict=True)]
    return [axes, *([*axes[:-rank], *([()] * rank)] for _ in call.out[1:])]


@rule(aten.native_group_norm)
def _group_norm(call: Call) -> list[Axes]:
    axes = list(call.axes("input"))
    groups = new_axis(call["group"])
    axes[1] = call.unify(axes[1], (*groups, *new_axis(size(axes[1]) // call["group"])))
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            axes[1] = call.unify(axes[1], call.axes(name)[0])
    return [axes, *([axes[0], groups] for _ in call.out[1:])]


@rule(
    aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d,
    aten.max_pool3d_with_indices, aten.avg_pool3d, aten.avg_pool1d, aten._adaptive_avg_pool3d, aten.adaptive_avg_pool2d,
    aten.upsample_bilinear2d, aten.upsample_nearest2d, aten.upsample_bicubic2d, aten.upsample_nearest1d,
    aten.upsample_linear1d, aten.upsample_trilinear3d, aten.upsample_nearest3d, aten._upsample_bicubic2d_aa,
    aten._upsample_bilinear2d_aa, aten._upsample_nearest_exact2d, aten.max_pool2d, aten.adaptive_max_pool3d,
    aten._upsample_nearest_exact1d, aten._upsample_nearest_exact3d, aten.max_unpool2d, aten.max_unpool3d,
)  # fmt: skip
def _resample(call: Call) -> Axes | list[Axes]:
    axes = call.axes("self" if "self" in call.arguments else "input")
    if call.get("output_size"):
        for axis in axes[-len(call["output_size"]) :]:
            call.freeze(axis, "it is resampled to a size of its own", by_design=True)
    out = call.out if isinstance(call.out, Tensor) else call.out[0]
    name = call.func.overloadpacket.__name__
    rank = next(int(digit) for digit in name if digit in "123")
    after = [*axes[:-rank], *call.space(axes[-rank:], out.shape[-rank:])]
    return after if isinstance(call.out, Tensor) else [after] * len(call.out)


@rule(aten.grid_sampler_2d, aten.grid_sampler)
def _grid_sample(call: Call) -> Axes:
    batch, channels, *space = call.axes("input")
    for axis in (*space, *call.axes("grid")):
        call.freeze(axis, "space is sampled", by_design=True)
    return [batch, channels, *(call.frozen(n, "space") for n in call.out.shape[2:])]


@rule(
    aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_attention_math,
    aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_flash_attention,
    aten.scaled_dot_product_attention, aten._scaled_dot_product_fused_attention_overrideable,
)  # fmt: skip
def _attention(call: Call) -> Axes | list[Axes]:
    query, key, value = call.axes("query"), call.axes("key"), call.axes("value")
    batch = [call.unify(call.unify(q, k), v) for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True)]
    call.unify(query[-1], key[-1])
    call.unify(key[-2], value[-2])
    axes = [*batch, query[-2], value[-1]]
    mask = call.get("attn_mask")
    if mask is not None:
        add_operand(call, [*batch, query[-2], key[-2]], mask)
    if isinstance(call.out, Tensor):
        return axes
    return [axes, *(_frozen_like(call, t) for t in call.out[1:])]


def _frozen_like(call: Call, tensor: Any) -> Axes:
    return [call.frozen(n, "statistics") for n in tensor.shape] if isinstance(tensor, Tensor) else []


@rule(aten._fft_r2c, aten._fft_c2c, aten._fft_c2r)
def _fft(call: Call) -> Axes:
    axes = list(call.axes())
    for d in call.dims("dim"):
        call.freeze(axes[d], "a Fourier transform runs along it")
        axes[d] = call.frozen(call.out.shape[d], "frequencies")
    return axes


@rule(
    aten.zeros, aten.ones, aten.empty, aten.full, aten.rand, aten.randn, aten.new_zeros, aten.new_ones, aten.new_full,
    aten.new_empty, aten.empty_strided, aten.new_empty_strided,
)  # fmt: skip
def _factory(call: Call) -> Axes:
    if call.out.dtype.is_floating_point:
        return [new_axis(n) for n in call.out.shape]
    return [call.frozen(n, "a table of integers") for n in call.out.shape]


@rule(aten.arange, aten.linspace, aten.eye, aten.randint, aten.randperm, aten.scalar_tensor, aten.hann_window)
def _table(call: Call) -> Axes:
    return [call.frozen(n, "a table of positions") for n in call.out.shape]
