"""L2-CAF: the filter of unit norm over an image's places that keeps what a network says, as an attention map.

Source: Taha, Yang, Shrivastava and Davis, A generic visualization approach for convolutional neural networks, ECCV
2020, arXiv:2007.09748. Other than there: the minimum is found in closed form where there is one, by a quasi-Newton
method elsewhere; any layer of any network will do; an output may be kept close to another image's.
"""

from collections.abc import Callable
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args, _run_forward
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer, check_object
from pml_extensions.attr._arguments import Target, check_inputs, check_output, check_parts
from pml_extensions.attr._known_layout import known_layout
from pml_extensions.attr._network import (
    differentiable,
    examples_of,
    module_of,
    refuse_foreign_layer,
    slices,
    warn_if_training,
)
from pml_extensions.attr._problem import Problem
from pml_extensions.attr._solving import Report, joined, solve
from pml_extensions.attr._tail import Site, capture, refuse_inference_mode
from pml_extensions.attr._tunnel import works_in_tunnels
from pml_extensions.attr.feature_layer import refuse_useless_layer
from pml_extensions.attr.filters import Filter, UnitNorm
from pml_extensions.attr.layouts import Layout
from pml_extensions.attr.objectives import Objective, objective_for
from pml_extensions.attr.solver import Solver

__all__ = ["L2CAF", "Report"]


@checked_constructor
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
        network = module_of(self.forward_func)
        names = ", ".join(type(layer).__name__ for layer in self._layers())
        return (
            f"L2CAF({type(network).__name__ if network is not None else self.forward_func}, layer={names}, "
            f"device_ids={self.device_ids}, layout={self.layout})"
        )

    @works_in_tunnels
    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator] # captum's own habit: NoiseTunnel unwraps it
    def attribute(  # noqa: PLR0917
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target | None = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *,
        reference: Tensor | None = None,
        signed: bool = False,
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
            relu_attributions: return max(f, 0), not |f|: only the places that the output wants as they are. Beside it
                ``signed`` is without effect.
            attr_dim_summation: False returns the filtered activation, A times the map, in the shape of the activation.
                Default: True, the map alone.
            reference: (B, K) or (1, K), the output to come close to. Instead of ``target``.
            signed: return f, not |f|. Places of negative f speak against what is explained; |f| shows them too.
            objective: a callable ``(output, original) -> (B,)`` to minimise. Instead of ``target`` and ``reference``.
            filter: how a filter follows from free parameters. Default: ``UnitNorm()``.
            solver: an iterative solver to use. Default: the closed form where there is one, ``LBFGS()`` elsewhere.
            internal_batch_size: explain so many examples at a time. Default: all.
            show_progress: show a bar of the steps of the iterative solver.
            return_report: return ``(maps, report)``, with a ``Report`` of how each map was found. Through
                ``NoiseTunnel`` it holds the means over the noisy copies.

        Shape:
            the maps are (B, 1, H, W), with H and W those of the layer's activation; (B, 1, L) of sequences and points,
            (B, 1, D, H, W) of volumes and videos. They are float32 or wider.

        Returns:
            A tensor, or a list of one result a layer if ``layer`` is a list.

        Raises:
            ValueError: if an argument does not fit the network, or the layer's places do not reach the output. That of
                a bad target is an ``AssertionError`` as well, as captum's.
            TypeError: if an argument is of another kind.
            RuntimeError: under ``torch.inference_mode()``.
        """
        refuse_inference_mode()
        inputs = check_inputs(inputs)
        if sum(given is not None for given in (target, reference, objective)) > 1:
            raise ValueError("target, reference and objective exclude each other, got more than one")
        check_parts(objective, filter, solver)
        if internal_batch_size is not None:
            check_integer("internal_batch_size", internal_batch_size, least=1)
        total = len(inputs[0])
        args = _format_additional_forward_args(additional_forward_args) or ()
        model = module_of(self.forward_func)
        warn_if_training(model)

        def solve_some(layer: nn.Module, chosen: slice) -> tuple[Tensor, Report]:
            own_target, own_reference = examples_of((target, reference), chosen, total)
            problem = self._problem(
                Site(
                    layer, attribute_to_layer_input, self.device_ids or getattr(self.forward_func, "device_ids", None)
                ),
                differentiable(examples_of(inputs, chosen, total)),
                differentiable(examples_of(args, chosen, total)),
                filter or UnitNorm(),
                lambda output: objective_for(output, own_target, own_reference, objective),
            )
            filters, report = solve(problem, solver, show_progress=show_progress)
            maps = filters.clamp_min(0) if relu_attributions else filters if signed else filters.abs()
            return maps.unsqueeze(1) if attr_dim_summation else problem.filtered(maps).to(maps.dtype), report

        results = []
        for layer in self._layers():
            refuse_foreign_layer(layer, model)
            parts = [solve_some(layer, chosen) for chosen in slices(total, internal_batch_size or total)]
            maps = torch.cat([maps for maps, _ in parts])
            results.append((maps, joined([report for _, report in parts])) if return_report else maps)
        return results if isinstance(self.layer, list) else results[0]

    @classmethod
    def get_name(cls) -> str:
        """Return the method's name."""
        return "L2-CAF"

    def has_convergence_delta(self) -> bool:
        """Return False: how a map was found is in the report."""
        return False

    def _layers(self) -> list[nn.Module]:
        return self.layer if isinstance(self.layer, list) else [self.layer]

    def _problem(
        self,
        site: Site,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        filter: Filter,  # noqa: A002
        objective_of: Callable[[Tensor], Objective],
    ) -> Problem:
        """Run the network once and pose the problem of a layer."""

        def run() -> Tensor:
            return check_output(_run_forward(self.forward_func, inputs, None, args), len(inputs[0]))

        model = module_of(self.forward_func)
        captured = capture(run, site, inputs)
        activation, output = captured.activation.detach(), captured.output.detach().to(captured.dtype)
        layout = self.layout or known_layout(captured.axes, activation.shape, site.layer, model)
        problem = Problem(captured, layout, filter, objective_of(output))
        refuse_useless_layer(problem, site.layer, model, run, inputs)
        return problem
