"""KELS: the kernel-level split of Knowledge Evolution, and the slim network that it holds."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions._declared_input import ExampleInput, stand_in_inputs
from pml_extensions._settings import check_integer, check_model, check_rate
from pml_extensions._sharding import is_sharded
from pml_extensions._slim_files import mark
from pml_extensions._slimming import CountOperations, Widths, analyse, cut, with_unread_integers
from pml_extensions._statistics import reestimate_statistics, statistics_of
from pml_extensions.evolution.latency import measure
from pml_extensions.evolution.summary import SlimSummary
from pml_extensions.evolution.weights import weights_by_use

__all__ = ["KELS"]


@checked_constructor
@dataclass(frozen=True)
class KELS:
    """Put the leading ``ceil(rate * n)`` channels of every hidden width into the fit-hypothesis.

    The fit-hypothesis is then a narrower network of the same architecture, the slim network. Input channels and the
    outputs (classes, or the embedding of a headless model) stay whole; each part of a concatenation is split by itself;
    of heads times channels the channels are split, and so are the channels of a group rather than the groups. Which
    dimensions are widths is read off one forward pass of a copy of the model that holds no values.

    Args:
        rate: the split rate s_r, in (0, 1]; 0.5 is the published choice.
        multiple: round every width up to a multiple of this, where the dense width allows it.
        example_input: input of that forward pass, two or more samples; by default what a timm model declares.

    Returns:
        Called with a model, the masks: name of each weight -> bool tensor of its shape, True = fit-hypothesis.

    Raises:
        TypeError: if ``rate`` is no number, ``multiple`` no integer or ``example_input`` no tensor or tuple of them;
            called with a model that is compiled, or inside ``DataParallel`` or ``DistributedDataParallel``.
        ValueError: if ``rate`` lies outside (0, 1] or ``multiple`` is below 1.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> KELS(0.5, example_input=torch.zeros(2, 3)).slim(model, data=[torch.randn(8, 3)])
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )

    Source: Taha, Shrivastava and Davis, arXiv:2103.05152, section 3.2, and the published code.
    """

    rate: float
    multiple: int = 1
    example_input: ExampleInput = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_integer("multiple", self.multiple, least=1)
        given = self.example_input if isinstance(self.example_input, tuple) else (self.example_input,)
        if self.example_input is not None and not all(isinstance(tensor, Tensor) for tensor in given):
            kinds = ", ".join(type(tensor).__name__ for tensor in given)
            raise TypeError(
                f"example_input must be a tensor or a tuple of tensors, got {kinds}; for keyword arguments, dicts or "
                "nests give KELS a module around the model whose forward takes tensors and hands them on"
            )

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks of ``model``, which is not touched."""
        return self.masks(model, self.widths(model))

    def masks(self, model: nn.Module, widths: Widths) -> dict[str, Tensor]:
        """Return the masks that belong to widths found before."""
        weights = weights_by_use(model, lambda: widths.watched.operands).weights
        return {name: _mask(weight, widths, name) for name, weight in weights.items()}

    def widths(self, model: nn.Module) -> Widths:
        """Return what the analysis of ``model`` found: what is kept of each tensor, and what stayed whole and why."""
        check_model(model, with_data=False)
        for name, part in model.named_modules():
            if hasattr(part, "_orig_mod") or isinstance(part, torch.jit.ScriptModule):  # torch.compile's, or scripted
                place = f" in {name!r}" if name else ""
                raise TypeError(
                    f"model must not be compiled, got {type(part).__name__}{place}; split the original and compile it "
                    "afterwards"
                )
        parallel = [m for m in model.modules() if isinstance(m, nn.DataParallel | nn.parallel.DistributedDataParallel)]
        if parallel:
            raise TypeError(
                f"model must be the network that {type(parallel[0]).__name__} holds: pass model.module, evolve it in "
                "place, and wrap the slim network anew"
            )
        if any(map(is_sharded, model.parameters())):
            raise ValueError(
                "model must not be sharded yet; make the KnowledgeEvolution before fully_shard, and cut the slim "
                "network from a dense copy with the full state dict"
            )
        return analyse(model, stand_in_inputs(model, self.example_input), self.rate, self.multiple)

    def slim(self, model: nn.Module, data: Iterable[Any] | None = None, *, batches: int = 50) -> Any:
        """Return the fit-hypothesis of ``model`` alone: a new, narrower model of the same class.

        Args:
            model: the dense model; it is not touched, and shares no tensor with the slim one. Of a model on the meta
                device the slim one is there, too: neither takes memory.
            data: training batches, as a training loop iterates over them, from which the statistics of batch norms are
                estimated anew (``reestimate_statistics``). Without them the slim network has those of the dense one, as
                published: the masked dense network, but of little use before it is trained on.
            batches: the most batches to read.

        Raises:
            TracingError: if no consistent slim network can be made.
            TypeError, ValueError: if ``data`` will not do; see ``reestimate_statistics``.

        Warns:
            UserWarning: if the slim network is as wide as the dense one though ``rate`` is below 1, with the reasons.
        """
        widths = self.widths(model)
        if widths.unchanged and self.rate < 1:
            warnings.warn(
                f"the slim network of this {type(model).__name__} is as wide as the dense one: {widths.unchanged}. "
                "Outputs keep their size: give KELS the model with the layers that follow, such as its head; rates and "
                "multiples round up; and where the code ties a width down, WELS splits single weights",
                stacklevel=2,
            )
        slim = cut(model, with_unread_integers(model, widths))
        mark(slim, self.rate, self.multiple, widths.watched.inputs)
        if data is not None:
            reestimate_statistics(slim, data, batches=batches)
        return slim

    def compare(
        self, model: nn.Module, latency: tuple[Tensor, ...] | None = None, *, widths: Widths | None = None
    ) -> SlimSummary:
        """Return parameters and operations of ``model`` and of its slim network, and what stayed whole.

        ``latency`` is an input to measure the time of a pass with; ``widths`` are those of the very model, if known.
        """
        widths = widths or self.widths(model)
        counted, inputs = CountOperations(), widths.watched.inputs
        slim = cut(model, widths, counted)
        batch = max(1, inputs[0].shape[0] if inputs and inputs[0].ndim else 1)
        return SlimSummary(
            sum(p.numel() for p in model.parameters()),
            sum(p.numel() for p in slim.parameters()),
            widths.watched.operations // batch,
            counted.total // batch,
            tuple(map(str, widths.whole)),
            tuple(dict.fromkeys(map(str, widths.outputs))),
            widths.unchanged,
            norms=sum(bool(statistics_of(module)) for module in slim.modules()),
            latency=measure(model, slim, latency) if latency else None,
            unused=tuple(name for name, _ in model.named_parameters() if widths.kept(name) is None),
        )


def _mask(weight: Tensor, widths: Widths, name: str) -> Tensor:
    mask = torch.ones(weight.shape, dtype=torch.bool)
    for dimension, index in enumerate(widths.kept(name) or ()):
        along = torch.zeros(weight.shape[dimension], dtype=torch.bool)
        along[torch.from_numpy(index)] = True
        mask &= along.view([-1 if d == dimension else 1 for d in range(weight.ndim)])
    return mask
