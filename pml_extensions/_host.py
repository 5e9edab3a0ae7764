"""What we take from pytorch-metric-learning beyond what its versions 2.9 and 3 both document, in one place.

CONTRIBUTING.md lists every such name with its replacement in version 3.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.reducers import DoNothingReducer
from pytorch_metric_learning.trainers import TrainWithClassifier
from pytorch_metric_learning.utils import distributed
from pytorch_metric_learning.utils.module_with_records_and_reducer import ModuleWithRecordsAndReducer
from torch import Tensor

from pml_extensions._settings import check_flag, check_number

__all__ = [
    "ModuleWithRecordsAndReducer",
    "TrainWithClassifier",
    "TripletIndices",
    "as_triplets",
    "check_indices",
    "check_parts",
    "enclosing_loss_wrapper",
    "has_matrix",
    "has_own_shapes",
    "is_as_shipped",
    "is_distributed",
    "per_triplet",
    "record",
    "record_norms",
    "reduced",
    "unreduced",
    "wrapper_was_given_no_indices",
]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class TripletIndices(NamedTuple):
    """Triplets as the host's losses take them: the i-th is made of the i-th of each, (t,) int64.

    Attributes:
        anchors: rows of the embeddings.
        positives: rows of the references, which are the embeddings unless others are given.
        negatives: rows of the references.
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def as_triplets(indices_tuple: Any, embeddings: Tensor, references: Tensor) -> TripletIndices:
    """Return triplets as they are, and pairs joined at their anchors; raise if ``indices_tuple`` is neither.

    Args:
        indices_tuple: what a miner returned.
        embeddings: what the anchors are rows of.
        references: what positives and negatives are rows of.
    """
    columns = check_indices(indices_tuple, embeddings, references)
    if len(columns) == 3:
        return TripletIndices(*columns)
    of_positives, positives, of_negatives, negatives = columns
    positive, negative = torch.where(of_positives.unsqueeze(1) == of_negatives)
    return TripletIndices(of_positives[positive], positives[positive], negatives[negative])


def check_indices(indices_tuple: Any, embeddings: Tensor, references: Tensor) -> list[Tensor]:
    """Return the columns of triplets or pairs, int64 and where the embeddings are; raise if they are neither."""
    is_list = isinstance(indices_tuple, tuple | list) and len(indices_tuple) in {3, 4}
    if not is_list or not all(isinstance(column, Tensor) for column in indices_tuple):
        got = (
            f"{len(indices_tuple)} entries, {', '.join(type(column).__name__ for column in indices_tuple) or 'none'}"
            if isinstance(indices_tuple, tuple | list)
            else type(indices_tuple).__name__
        )
        raise TypeError(
            "indices_tuple must be three tensors, (anchors, positives, negatives), or four, (anchors, positives, "
            f"anchors, negatives), as a miner returns them; got {got}"
        )
    rows = [embeddings, references, references] if len(indices_tuple) == 3 else [embeddings, references] * 2
    columns = [_indices(*entry) for entry in zip(indices_tuple, rows, strict=True)]
    lengths = list(map(len, columns))
    if len(set(lengths)) > 1 and (len(columns) == 3 or lengths[0] != lengths[1] or lengths[2] != lengths[3]):
        raise ValueError(f"indices_tuple must be tensors of one length for each triplet or pair, got lengths {lengths}")
    return columns


def _indices(column: Tensor, rows: Tensor) -> Tensor:
    """Return a column of indices, where the rows are; one out of range on a GPU, torch tells without a wait."""
    if column.ndim != 1 or column.is_floating_point() or column.is_complex() or column.dtype == torch.bool:
        raise TypeError(
            f"indices_tuple must be tensors of integers of shape (t,), got {column.dtype} of {tuple(column.shape)}"
        )
    if column.device.type == "cpu" and len(column):
        least, most = (int(end) for end in column.aminmax())
        if least < 0 or most >= len(rows):
            raise ValueError(
                f"indices_tuple must name rows from 0 to {len(rows) - 1}, got {least} to {most}; positives and "
                "negatives are rows of ref_emb where it is given"
            )
    return column.to(rows.device, torch.long)


def check_parts(settings: Mapping[str, Any]) -> None:
    """Raise unless what a constructor hands on to the host is what the host will make of it.

    A class in the place of an object is not told here, but by ``checked_constructor``.
    """
    for name, what, fits in (
        ("distance", "a distance of pytorch-metric-learning, such as CosineSimilarity()", _is_distance),
        ("reducer", "a reducer of pytorch-metric-learning, such as MeanReducer()", partial(_takes, count=3)),
        ("embedding_regularizer", "a regularizer, such as SVMaxRegularizer()", partial(_takes, count=1)),
    ):
        value = settings.get(name)
        if value is not None and not isinstance(value, type) and not fits(value):
            got = repr(value) if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
            raise TypeError(f"{name} must be {what}, got {got}")
    if settings.get("embedding_regularizer") is not None or settings.get("embedding_reg_weight") is not None:
        check_number("embedding_reg_weight", settings.get("embedding_reg_weight", 1))
    if settings.get("collect_stats") is not None:
        check_flag("collect_stats", settings["collect_stats"])


def _is_distance(value: Any) -> bool:
    return callable(value) and hasattr(value, "is_inverted")


def _takes(value: Any, count: int) -> bool:
    """Return whether a value can be called with so many arguments."""
    call = getattr(value, "forward", value)
    try:
        inspect.signature(call).bind(*[None] * count)
    except (TypeError, ValueError):  # it is not callable, takes others, or does not tell
        return False
    return True


def reduced(value: Any) -> dict[str, Any]:
    """Return a term that is one number, in the form that reducers take."""
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def per_triplet(losses: Tensor, triplets: TripletIndices) -> dict[str, Any]:
    """Return a term of one loss for each triplet, in the form that reducers take."""
    return {"losses": losses, "indices": tuple(triplets), "reduction_type": "triplet"}


@contextmanager
def unreduced(loss: Any) -> Iterator[None]:
    """Let a loss return its terms as they are."""
    reducer = loss.reducer
    loss.reducer = DoNothingReducer()
    try:
        yield
    finally:
        loss.reducer = reducer


def record(module: Any, settings: Iterable[str] = (), statistics: Iterable[str] = ()) -> None:
    """Tell the host which attributes its record keeper logs: settings, and statistics that each call resets."""
    for names, is_stat in ((settings, False), (statistics, True)):
        for name in names:
            module.add_to_recordable_attributes(name=name, is_stat=is_stat)


def record_norms(distance: BaseDistance, x: Tensor, y: Tensor) -> None:
    """Record what a call of ``distance`` with these embeddings would."""
    distance.reset_stats()
    if distance.collect_stats:
        distance.set_default_stats(x, y, distance.maybe_normalize(x), distance.maybe_normalize(y))


def has_matrix(distance: Any) -> bool:
    """Return whether a distance defines its matrix, or the call that returns it."""
    kind = type(distance)
    return (
        getattr(kind, "compute_mat", None) is not BaseDistance.compute_mat or kind.forward is not BaseDistance.forward
    )


def has_own_shapes(distance: Any) -> bool:
    """Return whether a distance says for itself which shapes it takes."""
    check_shapes = getattr(getattr(distance, "check_shapes", None), "__func__", BaseDistance.check_shapes)
    return check_shapes is not BaseDistance.check_shapes


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at a module, not at tensors
def is_as_shipped(module: Any, *kinds: type) -> bool:
    """Return whether a module is one of ``kinds`` and nothing was added: no subclass, no method, hook or tensor."""
    if type(module) not in kinds or any(getattr(module, hooks) for hooks in HOOKS):
        return False
    own = [*vars(module).values(), *module.parameters(recurse=False), *module.buffers(recurse=False)]
    return not any(callable(value) or isinstance(value, Tensor) for value in own)


def is_distributed() -> bool:
    """Return whether there are other processes to share a batch with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def enclosing_loss_wrapper() -> distributed.DistributedLossWrapper | None:
    """Return the host's DistributedLossWrapper that is being called, if there is one.

    It tells its loss neither whether it gathered the batch nor that it will multiply the result by the number of
    processes, so the call stack is asked.
    """
    return next((call["self"] for call in wrapper_calls()), None)


def wrapper_was_given_no_indices() -> bool:
    """Return whether an efficient DistributedLossWrapper is being called without an ``indices_tuple``."""
    return any(call["self"].efficient and call.get("indices_tuple", 0) is None for call in wrapper_calls())


def wrapper_calls() -> Iterator[dict[str, Any]]:
    """Yield the variables of all calls of DistributedLossWrapper's methods that are going on, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == distributed.__file__:
            names = frame.f_locals
            if isinstance(names.get("self"), distributed.DistributedLossWrapper):
                yield names
        frame = frame.f_back
