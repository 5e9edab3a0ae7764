"""A table of what a split does to a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pml_extensions.evolution.weights import find_weights

__all__ = ["Row", "Summary", "summarize"]


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


@dataclass(frozen=True)
class Summary:
    """The rows of all parameters, with totals; prints as a table. A parameter that is not split counts as fit."""

    rows: tuple[Row, ...]

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
        return "\n".join(
            f"{line[0]:<{name}}  {line[1]:>{shape_}}  {line[2]:>{fit}}  {line[3]:>{reset}}  {line[4]}".rstrip()
            for line in lines
        )


def summarize(model: nn.Module, split: Any, masks: Mapping[str, Tensor]) -> Summary:
    """Return the rows of all parameters; the reasons are the split's, where it has ``reasons``, or the model's."""
    reasons = dict(find_weights(model, getattr(split, "example_input", None)).reasons)
    if hasattr(split, "reasons"):
        reasons.update(split.reasons(model))
    rows = []
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        fit = int(masks[name].sum()) if name in masks else size
        reason = "" if name in masks else reasons.get(name, "left out by the split")
        rows.append(Row(name, tuple(parameter.shape), fit, size - fit, reason))
    return Summary(tuple(rows))
