"""Checks that a slim network computes what the dense one computes without its reset-hypothesis; for tests and tables.

In a network whose norms do not run over channels this holds as it stands. Elsewhere the dense network is run with every
operation that gathers over channels (layer, group and RMS norms, softmax, means and variances, standardised weights,
the default scale of attention) confined to the kept channels: what is left must agree to rounding.
"""

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from pml_extensions._declared_input import stand_in_inputs
from pml_extensions._slimming import cut
from pml_extensions._slimming.algebra.axes import kept, resolve, size, slim_size
from pml_extensions._slimming.tracing import forward
from pml_extensions._slimming.tracing.modes import WatchIntegers
from pml_extensions._slimming.tracing.size_rules import leading

GATHERING = {
    "layer_norm", "rms_norm", "group_norm", "softmax", "log_softmax", "mean", "var", "std", "var_mean", "std_mean",
    "amax", "amin", "batch_norm", "scaled_dot_product_attention", "multi_head_attention_forward",
}  # fmt: skip


@dataclass
class Gathering:
    """One call that may gather over channels: its function's name, and the axes of its first operand."""

    name: str
    axes: list


def analyse_recording(split, model):
    """Return the split's widths of a model, and the calls of its forward that may gather over channels."""
    calls = []

    class Recording(WatchIntegers):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = super().__torch_function__(func, types, args, kwargs)
            name = getattr(func, "__name__", "")
            if name in GATHERING:
                tensor = args[0] if args else kwargs["input"]
                calls.append(Gathering(name, list(self._trace.axes(tensor))))
            return out

    with mock.patch.object(forward, "WatchIntegers", Recording):
        widths = split.widths(model)
    return widths, calls


class InDoubles(TorchFunctionMode):
    """Compute in double precision what a model's code casts to single."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        doubles = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if func is torch.Tensor.float and args[0].dtype is not torch.float32:
            return args[0].double()
        if doubles and func is torch.Tensor.to:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if doubles and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def new_layers_in(dtype):
    """Let layers that are made without a word on their precision, as some fused ones are, have this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class KeptChannels(TorchFunctionMode):
    """Confine every gathering call of a dense forward pass to the kept channels."""

    def __init__(self, widths, calls):
        super().__init__()
        self.sizes = widths.sizes
        self.calls = iter(calls)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name not in GATHERING:
            return func(*args, **kwargs)
        call = next(self.calls)
        x = args[0] if args else kwargs["input"]
        assert (call.name, len(call.axes)) == (name, x.ndim)
        index = [self._kept(axis, length) for axis, length in zip(call.axes, x.shape, strict=True)]
        if name in {"layer_norm", "rms_norm", "group_norm"}:
            return self._norm(name, call, index, func, args, kwargs)
        if name == "scaled_dot_product_attention":
            if kwargs.get("scale") is None:
                kwargs["scale"] = len(index[-1]) ** -0.5
            return func(*args, **kwargs)
        if name == "multi_head_attention_forward":
            return func(*with_scale_of(len(index[-1]), args), **kwargs)
        return confined(name, index, func, args, kwargs)

    def _kept(self, axis, length):
        """Return the kept indices of an axis; one that is not narrowed may have another length than in the trace."""
        if slim_size(axis, self.sizes) == size(axis):
            return torch.arange(length)
        assert size(axis) == length
        return torch.from_numpy(kept(axis, self.sizes))

    def _norm(self, name, call, index, func, args, kwargs):  # noqa: PLR0917
        names = {"layer_norm": ["input", "normalized_shape", "weight", "bias", "eps"],
                 "rms_norm": ["input", "normalized_shape", "weight", "eps"],
                 "group_norm": ["input", "num_groups", "weight", "bias", "eps"]}[name]  # fmt: skip
        given = dict(zip(names, args, strict=False)) | kwargs
        x, dims = given["input"], [1] if name == "group_norm" else list(range(-len(given["normalized_shape"]), 0))
        small = pick(x, index, dims)
        for affine in ("weight", "bias"):
            if given.get(affine) is not None:
                given[affine] = pick(given[affine], [index[d] for d in dims], range(len(dims)))
        if name == "group_norm":
            given["num_groups"] = slim_size(leading(resolve(call.axes[1]), given["num_groups"]), self.sizes)
        else:
            given["normalized_shape"] = [len(index[d]) for d in dims]
        return put(x, func(**(given | {"input": small})), index, dims)


def with_scale_of(width, args):
    """Return arguments of torch's attention whose queries are scaled as those of a model of the given width."""
    query, key, value, embed_dim, heads, weight, bias, *rest = args
    factor = torch.ones(weight.shape[0], dtype=weight.dtype)
    factor[:embed_dim] = (embed_dim / width) ** 0.5
    return query, key, value, embed_dim, heads, weight * factor[:, None], bias * factor, *rest


def pick(x, index, dims):
    for d in dims:
        if len(index[d]) < x.shape[d]:
            x = x.index_select(d, index[d])
    return x


def put(x, small, index, dims):
    """Return zeros of the shape of ``x`` with ``small`` at the kept places of ``dims``."""
    if small.shape == x.shape:
        return small
    where = [torch.arange(n) for n in x.shape]
    for d in dims:
        where[d] = index[d]
    out = torch.zeros_like(x)
    out[torch.meshgrid(*where, indexing="ij")] = small
    return out


def confined(name, index, func, args, kwargs):
    """Run a reduction, a softmax or the batch norm of a weight over the kept entries of what it gathers over."""
    x, *rest = args or (kwargs.pop("input"),)
    if name == "batch_norm":
        training = kwargs.get("training", rest[4] if len(rest) > 4 else False)
        dims = [d for d in range(x.ndim) if d != 1] if training else []
        return put(x, func(pick(x, index, dims), *rest, **kwargs), index, dims)
    dim = kwargs.get("dim", rest[0] if rest else None)
    listed = list(range(x.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    dims = [d % x.ndim for d in listed]
    small = func(pick(x, index, dims), *rest, **kwargs)
    return put(x, small, index, dims) if "softmax" in name else small


def randomised(model, seed=0):
    """Return a float64 copy with random weights, affine terms and statistics, small enough to stay finite."""
    model = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, math.prod(parameter.shape[1:]))
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim >= 2:
                scale = max(2 * fan_in**-0.5, float(parameter.std(correction=0)))
                parameter.copy_(noise * min(1.0, scale))
            elif parameter.ndim == 1:
                parameter.add_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def input_like(model, split, seed=1):
    """Return random float64 inputs of the traced shape."""
    generator = torch.Generator().manual_seed(seed)
    inputs = stand_in_inputs(model, split.example_input)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in inputs]


def without_reset_hypothesis(dense, masks):
    """Return a copy with the masked-out weights set to zero."""
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return masked


def without_dropped_entries(dense, widths):
    """Return a copy in which every parameter is zero wherever the slim one has no entry."""
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            index = widths.kept(name)
            if index is not None:
                where = [torch.from_numpy(i) for i in index]
                parameter.copy_(
                    put(parameter, pick(parameter, where, range(parameter.ndim)), where, range(parameter.ndim))
                )
    return masked


def relative_error(a, b):
    a, b = (torch.cat([t.flatten() for t in (x if isinstance(x, (tuple, list)) else [x])]) for x in (a, b))
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-300))


def gathers_over_widths(widths, calls):
    """Tell whether any gathering call had a narrowed axis among those it may gather over."""
    for call in calls:
        axes = {"group_norm": call.axes[1:2], "scaled_dot_product_attention": call.axes[-1:]}.get(call.name, call.axes)
        if call.name == "batch_norm":
            axes = [a for d, a in enumerate(call.axes) if d != 1]
        if call.name in {"softmax", "log_softmax", "layer_norm", "rms_norm", "multi_head_attention_forward"}:
            axes = call.axes[-1:]
        if any(slim_size(a, widths.sizes) < size(a) for a in axes) and call.name not in {"mean", "amax"}:
            return True
    return False


def amplification(model, split):
    """Return how far the dense network's output moves where its input moves by 1e-14: what rounding alone may do."""
    dense = randomised(model)
    inputs = input_like(dense, split)
    with torch.no_grad(), InDoubles():
        return relative_error(dense(*inputs), dense(*(x * (1 + 1e-14) for x in inputs)))


def exactness(model, split, train=False):
    """Return ("masked" or "kept channels", relative error of the slim network against the dense one without resets)."""
    dense = randomised(model).train(train)
    widths, calls = analyse_recording(split, dense)
    slim = cut(dense, widths)
    inputs = input_like(dense, split)
    with torch.no_grad(), InDoubles():
        out = slim(*inputs)
        if relative_error(out, slim(*input_like(dense, split, seed=2))) < 1e-6:
            raise ValueError("the slim network's output does not depend on its input: nothing would be compared")
        strict = relative_error(without_reset_hypothesis(dense, split.masks(dense, widths))(*inputs), out)
        if strict < 1e-9 or train:
            return "masked", strict
        with KeptChannels(widths, calls):
            reference = without_dropped_entries(dense, widths)(*inputs)
    return "kept channels", relative_error(reference, out)
