"""A table of what a split does to a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions.evolution.latency import Latency, check_latency
from pml_extensions.evolution.splits.protocols import Explaining, Narrowing, Split, WithExample
from pml_extensions.evolution.weights import find_weights, weights_by_use

__all__ = ["Row", "SlimSummary", "Summary", "summarize"]


@checked_constructor
@dataclass(frozen=True)
class Row:
    """A parameter: how many of its elements lie in the fit- and in the reset-hypothesis, or why it is not split."""

    name: str
    shape: tuple[int, ...]
    fit: int
    reset: int
    reason: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.fit + self.reset


@checked_constructor
@dataclass(frozen=True)
class SlimSummary:
    """Dense against slim: parameters, operations of one input (torch's FLOP counter), and the widths that stayed whole.

    ``whole`` has one line for each hidden width that could not be narrowed: its size, the reason, the line of the
    model's code; ``outputs`` for each width that is an output of the network, or tied to one, or to what else would not
    become narrower: an input, places in space, a table that the code computes. ``unused`` names the parameters that no
    forward pass uses; they stay as they are. ``unchanged`` says why nothing becomes narrower, and is empty where
    something does. ``norms`` counts the norms that gather statistics: in the slim network these are the dense network's
    unless ``slim(data)`` estimates them anew. ``latency`` was measured if it was asked for.
    """

    dense_parameters: int
    slim_parameters: int
    dense_operations: int
    slim_operations: int
    whole: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    unchanged: str = ""
    norms: int = 0
    latency: Latency | None = None
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"parameters  dense {self.dense_parameters:,}  slim {self.slim_parameters:,}",
            f"operations  dense {self.dense_operations:,}  slim {self.slim_operations:,}",
        ]
        if self.norms:
            lines.append(
                f"statistics  of {self.norms} norms are the dense network's unless slim(data) estimates them anew"
            )
        if self.latency:
            lines.append(str(self.latency))
        if self.unchanged:
            lines.append(f"nothing becomes narrower: {self.unchanged}")
        else:
            lines += [f"stays whole: {line}" for line in (*self.whole, *self.outputs)]
        if self.unused:
            lines.append(f"stays whole: no forward pass uses {', '.join(self.unused)}")
        return "\n".join(lines)


@checked_constructor
@dataclass(frozen=True)
class Summary:
    """The rows of all parameters, with totals; prints as a table. A parameter that is not split counts as fit."""

    rows: tuple[Row, ...]
    slim: SlimSummary | None = None

    @property
    def split(self) -> tuple[Row, ...]:
        """The rows of the parameters that are split."""
        return tuple(row for row in self.rows if not row.reason)

    @property
    def total(self) -> Row:
        """One row for all parameters together."""
        return Row("total", (), sum(row.fit for row in self.rows), sum(row.reset for row in self.rows))

    def __str__(self) -> str:
        lines = [("parameter", "shape", "fit", "reset", "not split")]
        for row in (*self.rows, self.total):
            shape = "x".join(map(str, row.shape))
            lines.append((row.name, shape, f"{row.fit:,}", f"{row.reset:,}", row.reason))
        name, shape_, fit, reset, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
        table = "\n".join(
            f"{line[0]:<{name}}  {line[1]:>{shape_}}  {line[2]:>{fit}}  {line[3]:>{reset}}  {line[4]}".rstrip()
            for line in lines
        )
        return table if self.slim is None else f"{table}\n{self.slim}"


def summarize(model: nn.Module, split: Split, masks: Mapping[str, Tensor], latency: Any) -> Summary:
    """Return the rows of all parameters; the reasons are the split's, where it has some, or the model's."""
    example = split.example_input if isinstance(split, WithExample) else None
    inputs = check_latency(latency, example)
    if inputs and not isinstance(split, Narrowing):
        raise TypeError(f"latency needs a slim network to measure, and {split} has none; use KELS")
    widths = split.widths(model) if isinstance(split, Narrowing) else None
    found = find_weights(model, example) if widths is None else weights_by_use(model, lambda: widths.watched.operands)
    reasons = {**found.reasons, **(split.reasons(model) if isinstance(split, Explaining) else {})}
    rows = []
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        fit = int(masks[name].sum()) if name in masks else size
        reason = "" if name in masks else reasons.get(name, "left out by the split")
        rows.append(Row(name, tuple(parameter.shape), fit, size - fit, reason))
    slim = split.compare(model, inputs, widths=widths) if isinstance(split, Narrowing) else None
    return Summary(tuple(rows), slim)
