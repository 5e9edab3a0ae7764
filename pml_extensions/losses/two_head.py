"""The loss of a model with two heads: a classification loss of its logits, a metric loss of its embeddings.

Source: Taha, Chen, Misu, Shrivastava and Davis, WACV 2020, arXiv:1901.08616, equation 1.
"""

import inspect
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._constructors import checked_constructor
from pml_extensions._host import ModuleWithRecordsAndReducer, check_parts, record, reduced
from pml_extensions._semi_hard import check_device, check_embeddings, check_labels
from pml_extensions._settings import check_number
from pml_extensions.losses._empty_batches import call_with_rows
from pml_extensions.losses.semi_hard_triplet import SemiHardTripletLoss

__all__ = ["TwoHeadLoss"]


@checked_constructor
class TwoHeadLoss(ModuleWithRecordsAndReducer):
    r"""classification_loss(logits, labels) + metric_weight * metric_loss(embeddings, labels).

    Args:
        metric_loss: a loss of pytorch-metric-learning, called with embeddings, labels and ``indices_tuple``, or a
            wrapper that hands its arguments on (``torch.compile``, ``DataParallel``, ...); by default
            ``SemiHardTripletLoss()``.
        classification_loss: a loss of torch, called with logits and labels; by default ``nn.CrossEntropyLoss()``.
        metric_weight: the metric loss's weight, lambda in the paper.
        ignore_label: rows with this label are unlabelled: they do not take part in the classification loss, nor in the
            metric loss unless ``indices_tuple`` names them. None for no such label; that of ``nn.CrossEntropyLoss``,
            its ``ignore_index`` of -100, has to be named here, too.
        **kwargs: as for pytorch-metric-learning's losses: ``reducer`` (the two parts are added up by default; with
            ``DoNothingReducer()`` the call returns both, as a loss dict) and ``collect_stats``, with which the parts of
            the last call are recorded as ``classification_value`` and ``metric_value``, weighted.

    Shape:
        outputs: logits (B, classes) and embeddings (B, d), as a TwoHead model returns them; labels (B,), integers.
        The result is a scalar, float32 or wider.

    Raises:
        TypeError: ``metric_loss`` does not take an ``indices_tuple``, ``outputs`` are not a pair, labels are not
            integers, or a loss returns no tensor.
        ValueError: for outputs and labels of the wrong shape, or a loss that returns more than one number.

    Examples:
        >>> outputs = torch.zeros(4, 2), torch.eye(4)
        >>> round(TwoHeadLoss()(outputs, torch.tensor([0, 0, 1, 1])).item(), 4)  # log(2) + margin
        0.8931
    """

    def __init__(
        self,
        metric_loss: nn.Module | None = None,
        classification_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric_weight: float = 1.0,
        ignore_label: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_parts(kwargs)
        super().__init__(**kwargs)
        self.metric_loss = SemiHardTripletLoss() if metric_loss is None else metric_loss
        self.classification_loss = nn.CrossEntropyLoss() if classification_loss is None else classification_loss
        check_losses(self.metric_loss, self.classification_loss)
        check_number("metric_weight", metric_weight)
        if ignore_label is not None:
            check_class(ignore_label)
        self.metric_weight = metric_weight
        self.ignore_label = ignore_label
        record(self, settings=["metric_weight"], statistics=["classification_value", "metric_value"])

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"metric_weight={self.metric_weight}, ignore_label={self.ignore_label}"

    def sub_loss_names(self) -> list[str]:
        """Return the names of the two parts."""
        return ["classification_loss", "metric_loss"]

    def forward(
        self, outputs: tuple[Tensor, Tensor], labels: Tensor, indices_tuple: tuple[Tensor, ...] | None = None
    ) -> Any:
        """Return the reduced loss of a batch: a scalar, or a dict of the two parts (DoNothingReducer)."""
        self.reset_stats()
        logits, embeddings = checked(outputs, labels)
        labels = labels.to(logits.device, torch.long)  # torch's losses take no other integers
        classification = self._classification(logits, labels)
        metric = self.metric_weight * self._metric(embeddings, labels, indices_tuple)
        if self.collect_stats:
            self.classification_value, self.metric_value = classification.item(), metric.item()
        terms = dict(zip(self.sub_loss_names(), (reduced(classification), reduced(metric)), strict=True))
        return self.reducer(terms, embeddings.to(torch.promote_types(classification.dtype, metric.dtype)), labels)

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.ignore_label is not None:
            labelled = labels != self.ignore_label
            logits, labels = logits[labelled], labels[labelled]
        if not len(labels):
            return (logits * 0).sum()
        with telling_the_batch(self.classification_loss, logits, labels):
            value = self.classification_loss(logits, labels)
        return checked_value("classification_loss", value)

    def _metric(self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None) -> Tensor:
        if self.ignore_label is not None and indices_tuple is None:
            labelled = labels != self.ignore_label
            embeddings, labels = embeddings[labelled], labels[labelled]
        given = (embeddings, labels, indices_tuple)
        return checked_value("metric_loss", call_with_rows(self.metric_loss, len(labels), self.metric_loss, *given))


def check_losses(metric_loss: Any, classification_loss: Any) -> None:
    """Raise if a part cannot be called as it will be."""
    call = metric_loss.forward if isinstance(metric_loss, nn.Module) else metric_loss
    if isinstance(metric_loss, type) or not callable(call) or not takes_indices(call):
        raise TypeError(
            "metric_loss must be a loss of pytorch-metric-learning, called with embeddings, labels and indices_tuple; "
            f"got {metric_loss.__name__ if isinstance(metric_loss, type) else type(metric_loss).__name__}"
        )
    if not callable(classification_loss):
        raise TypeError(f"classification_loss must be callable, got {type(classification_loss).__name__}")


def takes_indices(call: Callable[..., Any]) -> bool:
    """Return whether a function has an ``indices_tuple``, or hands on all that it gets, as wrappers do."""
    parameters = inspect.signature(call).parameters
    return "indices_tuple" in parameters or any(one.kind is one.VAR_POSITIONAL for one in parameters.values())


def check_class(label: Any) -> None:
    """Raise unless a label is one integer, also as a tensor."""
    if isinstance(label, Tensor) and label.numel() == 1 and not label.is_floating_point() and not label.is_complex():
        return
    if isinstance(label, bool) or not isinstance(label, numbers.Integral):
        raise TypeError(f"ignore_label must be a class number, an int, got {label!r}")


@contextmanager
def telling_the_batch(loss: Any, logits: Tensor, labels: Tensor) -> Iterator[None]:
    """Let an error of the classification loss say what it was called with."""
    try:
        yield
    except Exception as error:
        if type(error) not in {IndexError, NotImplementedError, RuntimeError, TypeError, ValueError}:
            raise
        numbers_of = f" from {int(labels.min())} to {int(labels.max())}" if labels.device.type == "cpu" else ""
        raise type(error)(
            f"classification_loss, {getattr(loss, '__name__', type(loss).__name__)}, fails on logits of shape "
            f"{tuple(logits.shape)} and class numbers{numbers_of}; it must take class numbers, which lie between 0 and "
            f"the number of classes less one (a loss of one-hot labels goes beside a metric loss by hand): {error}"
        ) from error


def checked_value(name: str, value: Any) -> Tensor:
    """Return what a loss returned, or raise if it is not one number."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return one number, a tensor, got {type(value).__name__}; give it a reducer")
    if value.numel() != 1:
        raise ValueError(
            f'{name} must return one number, got shape {tuple(value.shape)}; give it reduction="mean" or a reducer'
        )
    return value


def checked(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and embeddings, or raise if they or the labels have the wrong shape."""
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise TypeError(
            f"outputs must be (logits, embeddings), as a TwoHead model returns, got {type(outputs).__name__}"
        )
    logits, embeddings = outputs
    check_embeddings(embeddings)
    if labels is None:
        raise TypeError("labels must be a tensor of integers, got None; each row has a class number, or ignore_label")
    if isinstance(labels, Tensor) and labels.ndim == 2:
        raise ValueError(
            f"labels must have shape (batch,), got {tuple(labels.shape)}; pass class numbers, which the metric loss "
            "compares: labels.argmax(1) of one-hot labels; of mixed ones add up two losses, or take cross_entropy and "
            "a metric loss by hand"
        )
    check_labels(embeddings, labels)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.ndim:
        got = f"{logits.dtype} of {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point tensor of shape (batch, classes), got {got}")
    check_device("logits", logits, "embeddings", embeddings)
    if len(logits) != len(embeddings):
        raise ValueError(f"logits must be as many as embeddings, got {len(logits)} for {len(embeddings)}")
    return logits, embeddings
