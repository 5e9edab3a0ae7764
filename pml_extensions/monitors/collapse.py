"""Watch over how many directions the embeddings of a training use, in a window that may be larger than a batch.

A batch of b embeddings of length d has at most b directions, so for b < d it cannot tell a spread embedding from one
that uses b directions only; a window of several batches can.
"""

import math
import warnings
from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer, check_number
from pml_extensions._spectrum import entropy_rank, floating_matrix, nuclear_norm, spread_between_bounds

NEARLY_A_LINE = 1.5
"""Embeddings with a lower effective rank lie along one line, whatever they did before."""


@checked_constructor
class CollapseMonitor:
    """Keep the last embeddings of a training, measure their spread, and warn once when it falls.

    ``compute`` returns the measures that ``SVMaxRegularizer(collect_stats=True)`` records, over the window:

    - ``mean_singular_value``: the sum of the singular values, divided by d (arXiv:2103.02770);
    - ``spread``: the fraction of the way from its lower bound, all embeddings on one line, to its upper bound, equal
      singular values;
    - ``effective_rank``: the exponential of the entropy of the normalised singular values (arXiv:2210.02885).

    The first full window counts as the start. A warning comes when the spread or the effective rank of a full window is
    below ``fall`` times the highest of its kind so far, or when the effective rank is below 1.5: nearly one line.

    Args:
        window: how many embeddings to keep; by default four for each dimension (4 d). With fewer than d no measure can
            tell more directions than the window has rows.
        fall: the share of the highest measure so far below which a warning comes, in [0, 1).
        normalize_embeddings: L2-normalise the rows first (default), as ``SVMaxRegularizer`` does.

    Attributes:
        highest: the highest spread and effective rank of a full window so far.
        warned: whether the warning has come.

    Nothing of a training changes: embeddings are copied without a gradient, and no random number is drawn. Old rows of
    the window come from weights of some steps ago. In several processes each monitor sees what it is given: hand over
    gathered rows (such as ``accelerator.gather(embeddings)``) to see all.

    Raises:
        TypeError: if a setting is of another type.
        ValueError: if ``window`` is below 2, or ``fall`` is not in [0, 1).

    Examples:
        >>> monitor = CollapseMonitor(window=64)
        >>> for _ in range(8):
        ...     monitor.update(torch.eye(16))
        >>> monitor.compute()
        {'mean_singular_value': 2.0, 'spread': 1.0, 'effective_rank': 16.0}
    """

    def __init__(self, window: int | None = None, *, fall: float = 0.5, normalize_embeddings: bool = True) -> None:
        if window is not None:
            check_integer("window", window, least=2)
        check_number("fall", fall)
        if not 0 <= fall < 1:
            raise ValueError(f"fall must be a share in [0, 1), got {fall}")
        self.window = window
        self.fall = fall
        self.normalize_embeddings = normalize_embeddings
        self.reset()

    def reset(self) -> None:
        """Forget all embeddings, what was highest, and that a warning has come."""
        self._batches: deque[Tensor] = deque()
        self._count = 0
        self.highest: dict[str, float] = {}
        self.warned = False

    @torch.no_grad()
    def update(self, embeddings: Tensor) -> None:
        """Take the embeddings of a batch into the window; the oldest leave it.

        Args:
            embeddings: the batch, on any device and of any floating dtype; it may be empty.

        Shape:
            embeddings (b, d).

        Raises:
            TypeError: if ``embeddings`` is not a floating-point tensor.
            ValueError: if it is not a matrix, or its width is not that of the embeddings before.
        """
        floating_matrix(embeddings, may_be_empty=True)
        width = embeddings.shape[1]
        if not len(embeddings):
            return
        if self._batches and width != self._batches[0].shape[1]:
            raise ValueError(f"embeddings must be of width {self._batches[0].shape[1]} as before, got {width}")
        rows = self._rows(width)
        self._batches.append(embeddings[-rows:].detach().clone())
        self._count += len(self._batches[-1])
        while self._count - len(self._batches[0]) >= rows:
            self._count -= len(self._batches.popleft())
        if self._count > rows:
            self._batches[0] = self._batches[0][self._count - rows :].clone()
            self._count = rows

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Return the measures of the window by name, and warn once if they have fallen.

        They are NaN while an embedding in the window is not finite.

        Raises:
            RuntimeError: if there is no embedding yet.
        """
        if not self._count:
            raise RuntimeError("there are no embeddings yet: call update(embeddings) first")
        embeddings = floating_matrix(self._window())
        if self.normalize_embeddings:
            embeddings = F.normalize(embeddings)
        norm, singular_values = nuclear_norm(embeddings)
        measures = {
            "mean_singular_value": float(norm / embeddings.shape[1]),
            "spread": float(spread_between_bounds(norm, torch.linalg.matrix_norm(embeddings), embeddings.shape)),
            "effective_rank": float(entropy_rank(singular_values)),
        }
        if self.is_full and embeddings.shape[1] > 1 and math.isfinite(measures["spread"]):
            self._judge(measures, embeddings.shape)
        return measures

    @property
    def count(self) -> int:
        """How many embeddings are in the window."""
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether the window holds as many embeddings as it may."""
        return bool(self._batches) and self._count == self._rows(self._batches[0].shape[1])

    def state_dict(self) -> dict[str, Any]:
        """Return the window and what was seen, for a checkpoint; ``torch.load(weights_only=True)`` reads it."""
        rows = self._window() if self._batches else None
        return {"embeddings": rows, "highest": dict(self.highest), "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; of a larger window the last embeddings are taken."""
        self.reset()
        if state_dict["embeddings"] is not None:
            self.update(state_dict["embeddings"])
        self.highest = dict(state_dict["highest"])
        self.warned = state_dict["warned"]

    def __repr__(self) -> str:
        settings = f"window={self.window}, fall={self.fall}, normalize_embeddings={self.normalize_embeddings}"
        return f"{type(self).__name__}({settings})"

    def _rows(self, width: int) -> int:
        return 4 * width if self.window is None else self.window

    def _window(self) -> Tensor:
        """Return the embeddings of the window, the oldest first, where the last batch is."""
        device = self._batches[-1].device
        with torch.autocast(device.type, enabled=False):
            return torch.cat([batch.to(device) for batch in self._batches])

    def _judge(self, measures: dict[str, float], shape: torch.Size) -> None:
        """Compare the measures of a full window with the highest so far."""
        for name in ("spread", "effective_rank"):
            self.highest[name] = max(measures[name], self.highest.get(name, 0.0))
        rank, spread = measures["effective_rank"], measures["spread"]
        fell = rank < self.fall * self.highest["effective_rank"] or spread < self.fall * self.highest["spread"]
        if not self.warned and (fell or rank < NEARLY_A_LINE):
            self.warned = True
            warnings.warn(
                f"the embeddings collapse: over the last {shape[0]} the effective rank is {rank:.3g} of at most "
                f"{min(shape)} (its highest was {self.highest['effective_rank']:.3g}) and the spread {spread:.3g} "
                f"({self.highest['spread']:.3g}); a smaller learning rate, or SVMaxRegularizer, keeps them apart",
                RuntimeWarning,
                stacklevel=4,
            )
