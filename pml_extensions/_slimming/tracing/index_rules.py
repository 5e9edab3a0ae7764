"""Rules of operations that read or write at indices, which are places and no channels."""

import torch

from pml_extensions._slimming.algebra.axes import Axes, Axis, size
from pml_extensions._slimming.tracing.calls import Call, add_operand, aten, rule, tensors


@rule(aten.index)
def _index(call: Call) -> Axes:
    before, after = _without_index(call)
    lengths = call.out.shape[len(before) : call.out.ndim - len(after)]
    return [*before, *(call.frozen(n, "indices") for n in lengths), *after]


@rule(aten.index_put, aten.index_put_)
def _index_put(call: Call) -> Axes:
    """Tie what is written to the dimensions without an index, which stand where they would if they were read."""
    axes, (before, after) = call.axes(), _without_index(call)
    picked: Axes = [()] * max(1 if t.dtype == torch.bool else t.ndim for t in tensors(call["indices"]))
    add_operand(call, [*before, *picked, *after], call["values"])
    call.trace.produce(call["values"])
    return axes


def _without_index(call: Call) -> tuple[Axes, Axes]:
    """Return the axes without an index, before and after what the indices pick; what is indexed keeps its size."""
    places: list[int] = []
    free: list[int] = []
    d = 0
    for index in call["indices"]:
        span = index.ndim if index is not None and index.dtype == torch.bool else 1
        (free if index is None else places).extend(range(d, d + span))
        d += span
    for place in places:
        call.freeze(call.axes()[place], "it is indexed")
    axes = call.axes()
    free.extend(range(d, len(axes)))
    apart = any(places[0] < d < places[-1] for d in free)  # what they pick then comes first
    before = [] if apart else [d for d in free if d < places[0]]
    return [axes[d] for d in before], [axes[d] for d in free if d not in before]


@rule(aten.index_select, aten.gather, aten.take_along_dim)
def _pick(call: Call) -> Axes:
    axes, d = call.axes(), call.dim()
    call.freeze(axes[d], "it is indexed")
    index = call.trace.axes(call["index"])
    out = []
    for i, length in enumerate(call.out.shape):
        if i == d:
            out.append(call.frozen(length, "indices"))
        elif call.func.overloadpacket is aten.index_select:
            out.append(axes[i])
        else:
            out.append(call.unify(index[i], axes[i]) if size(axes[i]) == length else call.frozen(length, "indices"))
    return out


@rule(aten.masked_select)
def _masked_select(call: Call) -> Axes:
    """Keep the last axes, along which the mask is spread; the places that it picks stand before them."""
    axes, mask = call.axes(), call["mask"]
    spread = 0
    while spread < min(len(axes), mask.ndim) and mask.shape[-1 - spread] == 1:
        spread += 1
    kept = axes[len(axes) - spread :]
    for axis in axes[: len(axes) - spread]:
        call.freeze(axis, "single entries of it are picked")
    whole: Axis = sum(kept, ())
    return [(*call.frozen(call.out.shape[0] // size(whole), "indices"), *whole)]


@rule(aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_, aten.scatter_reduce, aten.scatter_reduce_)
def _scatter(call: Call) -> Axes:
    """Beside the dimension that is indexed, index and source are as the tensor, or begin as it does."""
    axes, indexed = call.axes(), call.dim()
    call.freeze(axes[indexed], "it is indexed")
    for operand in tensors([call["index"], call.get("src")]):
        for d, other in enumerate(call.trace.axes(operand)):
            if d != indexed and operand.shape[d] == size(axes[d]):
                call.unify(axes[d], other)
            elif d != indexed:
                call.freeze(axes[d], "a part of it is written to")
                call.freeze(other, "it is written to a part")
    return axes


@rule(aten.index_add, aten.index_add_, aten.index_copy, aten.index_copy_)
def _index_add(call: Call) -> Axes:
    axes, indexed = call.axes(), call.dim()
    call.freeze(axes[indexed], "it is indexed")
    for d, other in enumerate(call.axes("source")):
        if d != indexed:
            call.unify(axes[d], other)
    return axes


@rule(aten.embedding)
def _embedding(call: Call) -> Axes:
    vocabulary, width = call.axes("weight")
    call.freeze(vocabulary, "it is indexed")
    call.trace.produce(call["weight"])
    return [*call.axes("indices"), width]


@rule(aten._embedding_bag, aten._embedding_bag_forward_only)
def _embedding_bag(call: Call) -> list[Axes]:
    bags, *others = call.out
    vocabulary, width = call.axes("weight")
    call.freeze(vocabulary, "it is indexed")
    call.trace.produce(call["weight"])
    return [[call.frozen(len(bags), "bags"), width], *([call.frozen(n, "bags") for n in t.shape] for t in others)]
