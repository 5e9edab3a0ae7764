"""L2-CAF: the filter of unit norm over an image's places that keeps what a network says, as an attention map.

Source: Taha, Yang, Shrivastava and Davis, A generic visualization approach for convolutional neural networks, ECCV
2020, arXiv:2007.09748. Other than there: the minimum is found in closed form where there is one, by a quasi-Newton
method elsewhere; any layer of any network will do; an output may be kept close to another image's.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from captum._utils.common import _format_additional_forward_args, _run_forward
from captum._utils.progress import NullProgress, progress
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from pml_extensions._settings import check_object
from pml_extensions.attr._arguments import Target, check_inputs, check_reference, target_indices
from pml_extensions.attr._exact import solve_exactly
from pml_extensions.attr._network import examples_of, kept_buffers, module_of, refuse_foreign_layer, warn_if_training
from pml_extensions.attr._problem import Problem, Solution, Solver
from pml_extensions.attr._tail import Site, capture, refuse_inference_mode
from pml_extensions.attr.feature_layer import visit_layers, why_useless
from pml_extensions.attr.filters import Filter, UnitNorm
from pml_extensions.attr.layouts import Layout, find_layout
from pml_extensions.attr.lbfgs import LBFGS
from pml_extensions.attr.objectives import ClassOblivious, ClassSpecific, Objective, Reference

__all__ = ["L2CAF", "Report"]


@dataclass(frozen=True)
class Report:
    """How a map was found, for each example.

    Attributes:
        objective: (B,) the objective at the map's filter.
        steps: (B,) passes of what follows the layer that the iterative solver took; 0 for a closed form.
        converged: (B,) whether the solver's stopping rule was met; always so for a closed form.
        exact: (B,) whether the filter is the global minimum, in closed form.
    """

    objective: Tensor
    steps: Tensor
    converged: Tensor
    exact: Tensor


class L2CAF(LayerAttribution):
    """Attention maps of a layer for any output: a class, a whole embedding, or the likeness of two images.

    With A the activation at a layer and f a filter of one value a place, ||f|| = 1, shared by all channels, NT_f(x) is
    the output of the network with A * f in place of A. The map |f| is the filter that keeps the output best:

    - no target: min ||NT(x) - NT_f(x)||^2 (class-oblivious, any output);
    - a target c: min sum_{j != c} NT_f(x)_j - NT_f(x)_c (class-specific);
    - a reference R: min ||R - NT_f(x)||^2 (a pair of images);
    - any other callable ``objective``.

    Where what follows the layer is affine (global pooling and a linear layer, say) the global minimum is found in
    closed form, at about the price of ``LayerGradCam``; elsewhere by ``solver``, which runs only what follows the
    layer.

    Args:
        forward_func: the network, or a function that calls it, as everywhere in captum.
        layer: the layer to explain, or a list of layers; see ``last_feature_layer``. A layer that runs more than
            once counts by its last run.
        device_ids: the devices in the order of the batch, if ``forward_func`` applies a ``DataParallel`` model without
            being one.
        layout: where the places of the activation are. Default: read from the network and the input.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> L2CAF(model, model[1]).attribute(torch.rand(2, 3, 9, 9), target=3).shape
        torch.Size([2, 1, 7, 7])
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        layer: nn.Module | list[nn.Module],
        device_ids: list[int] | None = None,
        layout: Layout | None = None,
    ) -> None:
        layers = layer if isinstance(layer, list) else [layer]
        if not layers or not all(isinstance(one, nn.Module) for one in layers):
            raise TypeError(f"layer must be a torch.nn.Module or a list of them, got {layer!r}")
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, a network, got {type(forward_func).__name__}")
        if layout is not None:
            check_object("layout", layout, "ChannelsFirst()", "spread")
        super().__init__(forward_func, layer, device_ids)
        self.layout = layout

    def __repr__(self) -> str:
        layers = self.layer if isinstance(self.layer, list) else [self.layer]
        network = module_of(self.forward_func)
        names = ", ".join(type(layer).__name__ for layer in layers)
        return (
            f"L2CAF({type(network).__name__ if network is not None else self.forward_func}, layer={names}, "
            f"device_ids={self.device_ids}, layout={self.layout})"
        )

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator] # captum's own habit: NoiseTunnel unwraps it
    def attribute(  # noqa: PLR0917
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target | None = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        reference: Tensor | None = None,
        signed: bool = False,
        *,
        objective: Objective | None = None,
        filter: Filter | None = None,  # noqa: A002 - the method's word
        solver: Solver | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        return_report: bool = False,
    ) -> Any:
        """Return the maps.

        Args:
            inputs: a tensor or a tuple of tensors, (B, ...) each.
            target: the class to explain, in any of captum's forms (int, tuple, list, tensor).
            additional_forward_args: further arguments of ``forward_func``.
            attribute_to_layer_input: put the filter on what the layer takes instead of on what it returns. With
                features as ``inputs``, explain the input of the first module after them.
            reference: (B, K) or (1, K), the output to come close to. Instead of ``target``.
            signed: return f, not |f|. Places of negative f speak against what is explained; |f| shows them too.
            objective: a callable ``(output, original) -> (B,)`` to minimise. Instead of ``target`` and ``reference``.
            filter: how a filter follows from free parameters. Default: ``UnitNorm()``.
            solver: an iterative solver to use. Default: the closed form where there is one, ``LBFGS()`` elsewhere.
            internal_batch_size: explain so many examples at a time. Default: all.
            show_progress: show a bar of the steps of the iterative solver.
            return_report: return ``(maps, report)``, with a ``Report`` of how each map was found.

        Shape:
            the maps are (B, 1, H, W), with H and W those of the layer's activation, and float32 or wider.

        Returns:
            A tensor, or a list of one result a layer if ``layer`` is a list.

        Raises:
            ValueError: if an argument does not fit the network, or the layer's places do not reach the output.
            TypeError: if an argument is of another kind.
            RuntimeError: under ``torch.inference_mode()``.
        """
        refuse_inference_mode()
        inputs = check_inputs(inputs)
        if sum(given is not None for given in (target, reference, objective)) > 1:
            raise ValueError("target, reference and objective exclude each other, got more than one")
        for name, part, method, example in (
            ("objective", objective, "__call__", "ClassOblivious()"),
            ("filter", filter, "start", "UnitNorm()"),
            ("solver", solver, "minimize", "LBFGS()"),
        ):
            if part is not None:
                check_object(name, part, example, method)
        ask = _Question(target, reference, objective, filter or UnitNorm(), solver, show_progress)
        size = len(inputs[0]) if internal_batch_size is None else internal_batch_size
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"internal_batch_size must be a positive integer, got {internal_batch_size}")
        args = _format_additional_forward_args(additional_forward_args) or ()
        layers = self.layer if isinstance(self.layer, list) else [self.layer]
        results = []
        for layer in layers:
            site = Site(
                layer, attribute_to_layer_input, self.device_ids or getattr(self.forward_func, "device_ids", None)
            )
            maps, report = self._explain(site, inputs, args, ask, size)
            maps = maps if signed else maps.abs()
            results.append((maps, report) if return_report else maps)
        return results if isinstance(self.layer, list) else results[0]

    def has_convergence_delta(self) -> bool:
        """Return False: how a map was found is in the report."""
        return False

    def _explain(
        self, site: Site, inputs: tuple[Tensor, ...], args: tuple[Any, ...], ask: "_Question", size: int
    ) -> tuple[Tensor, Report]:
        total = len(inputs[0])
        model = module_of(self.forward_func)
        refuse_foreign_layer(site.layer, model)
        warn_if_training(model)
        parts = []
        with kept_buffers(model):
            for first in range(0, total, size):
                chosen = slice(first, min(first + size, total))
                part = ask.about(chosen, total)
                parts.append(
                    self._solve(site, examples_of(inputs, chosen, total), examples_of(args, chosen, total), part)
                )
        filters = torch.cat([filters for filters, _ in parts]).unsqueeze(1)
        columns = zip(*(vars(report).values() for _, report in parts), strict=True)
        return filters, Report(*(torch.cat(column) for column in columns))

    def _solve(
        self, site: Site, inputs: tuple[Tensor, ...], args: tuple[Any, ...], ask: "_Question"
    ) -> tuple[Tensor, Report]:
        def run() -> Tensor:
            output = cast("Tensor", _run_forward(self.forward_func, inputs, None, args))
            if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != len(inputs[0]):
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"forward_func must return a tensor of one row per example ({len(inputs[0])}), got {shape}"
                )
            return output

        captured = capture(run, site)
        activation = captured.activation
        if len(activation) != len(inputs[0]):
            raise ValueError(
                f"layer must keep the examples in its first dimension ({len(inputs[0])}), got an activation of shape "
                f"{tuple(activation.shape)}"
            )
        for name, tensor in (("the activations of layer", activation), ("the output of forward_func", captured.output)):
            if not tensor.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinity; check inputs and weights")
        model, image = module_of(self.forward_func), _image_size(inputs)
        layout = self.layout or find_layout(activation.shape, image, model, site.layer)
        problem = Problem(captured, layout, ask.filter, ask.objective_for(captured.output.detach()))
        self._refuse_useless_layer(problem, site, run, image)
        return ask.answer(problem)

    def _refuse_useless_layer(
        self, problem: Problem, site: Site, run: Callable[[], Tensor], image: tuple[int, int] | None
    ) -> None:
        gradient = problem.pull_back(problem.probe())
        reason = why_useless(problem.layout, problem.activation, gradient)
        if reason is None:
            return
        model = module_of(self.forward_func)
        advice = "pass an earlier layer"
        if model is not None:
            visits = visit_layers(model, run, problem.examples, image)
            own = [place for place, visit in enumerate(visits) if visit.layer is site.layer]
            earlier = [visit for visit in visits[: own[-1] if own else None] if visit.useful]
            alike = [visit for visit in earlier if visit.shape == problem.activation.shape] or earlier
            advice = (
                f"the nearest earlier layer that will do is {alike[-1].name!r}" if alike else "no earlier one will do"
            )
        raise ValueError(f"layer {type(site.layer).__name__} has no map: {reason}; {advice}")


@dataclass(frozen=True)
class _Question:
    """What is asked about the examples of a batch, and how it is to be answered."""

    target: Target | None
    reference: Tensor | None
    objective: Objective | None
    filter: Filter
    solver: Solver | None
    show_progress: bool

    def about(self, chosen: slice, total: int) -> "_Question":
        """Return the question about some of the examples."""
        (target, reference) = examples_of((self.target, self.reference), chosen, total)
        return _Question(target, reference, self.objective, self.filter, self.solver, self.show_progress)

    def objective_for(self, output: Tensor) -> Objective:
        """Return the objective, checked against the output."""
        if self.objective is not None:
            return self.objective
        if self.reference is not None:
            return Reference(check_reference(self.reference, output))
        if self.target is not None:
            return ClassSpecific(target_indices(self.target, output))
        if output.ndim > 2:
            raise ValueError(
                f"forward_func must return (B, K) where no target is given, got shape {tuple(output.shape)}; pass a "
                "target, or an objective of your own"
            )
        return ClassOblivious()

    def answer(self, problem: Problem) -> tuple[Tensor, Report]:
        """Return the filters (B, H, W) and how they were found."""
        solution, exact = (solve_exactly(problem) if self.solver is None else None) or (None, None)
        if solution is None or exact is None or not exact.all():
            found = self._iterate(problem)
            solution = found if solution is None or exact is None else _where(exact, solution, found)
        exact = torch.zeros_like(solution.converged) if exact is None else exact
        with torch.no_grad():
            filters = problem.filter(solution.parameters, problem.grid)
        uniform = filters.amax((1, 2)) - filters.amin((1, 2)) <= 1e-3 * filters.abs().amax((1, 2))
        if (uniform & solution.converged).any():
            warnings.warn(
                "a map is uniform: no place matters more than another. An output that is normalised to unit length "
                "does not feel a uniform filter at all; explain what it was before",
                stacklevel=6,
            )
        return filters, Report(solution.objective, solution.steps, solution.converged, exact)

    def _iterate(self, problem: Problem) -> Solution:
        bar = progress(desc="L2CAF attribution") if self.show_progress else NullProgress()
        with bar:
            return (self.solver or LBFGS()).minimize(problem.value, problem.start(), bar.update)


def _where(chosen: Tensor, one: Solution, other: Solution) -> Solution:
    fields = zip(vars(one).values(), vars(other).values(), strict=True)
    return Solution(*(torch.where(chosen[:, None] if a.ndim == 2 else chosen, a, b) for a, b in fields))


def _image_size(inputs: Sequence[Tensor]) -> tuple[int, int] | None:
    return next(((tensor.shape[2], tensor.shape[3]) for tensor in inputs if tensor.ndim == 4), None)
