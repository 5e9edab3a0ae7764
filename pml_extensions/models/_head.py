"""How a classifier's head comes to its logits, seen in one pass of a copy that computes shapes alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pml_extensions._declared_input import stand_in_inputs
from pml_extensions._slimming import ShapesOnly, TracingError, stand_in, tensors_in, undisturbed, weightless

__all__ = ["Head", "flattened", "look_at_head", "not_one_tensor"]


class Head(NamedTuple):
    """What a head reads and does.

    Attributes:
        pooled: width of its pre-logits, as rows.
        flat: width of the last feature map, as rows.
        once: the logits must be the classifier's of the very pre-logits that the embedding reads, for the way to them
            writes in training (running statistics), and would write twice if it were gone twice.
    """

    pooled: int
    flat: int
    once: bool


def flattened(features: Any) -> Tensor:
    """Return the last feature map, or the last maps of a model with several branches, as rows."""
    maps = features if isinstance(features, list | tuple) else [features]
    return torch.cat([one.flatten(1) for one in maps], dim=1)


def look_at_head(model: Any, input_size: Sequence[int] | None = None) -> Head:
    """Return what the head of ``model`` does in training with images of (C, H, W), or of the size that the model tells.

    The model is neither run nor changed: the pass happens in a copy without weights.

    Raises:
        TypeError: the model returns several logits in training.
        ValueError: the model tells no size; its logits are not one row an image; or its head writes statistics on the
            way to pre-logits from which its classifier does not make the logits.
        RuntimeError: the pass fails.
    """
    images = _images(model, input_size)
    lean = weightless(model)
    with undisturbed(lean), _Watch(lean, images) as watch:
        features, _ = watch.seen(lambda: lean.forward_features(images))
        _train(lean)
        pooled, to_pooled = watch.seen(lambda: lean.forward_head(features, pre_logits=True))
        _check_row(model, pooled, "pre-logits")
        logits, to_logits = watch.seen(lambda: lean.forward_head(features))
        _check_row(model, logits, "logits")
        once = to_pooled.writes
        if once and to_logits.operations != to_pooled.operations + watch.classifier(pooled):
            raise ValueError(
                f"model must have a head that an embedding can stand beside, but that of {type(model).__name__} "
                "updates statistics on the way to its pre-logits, and its logits are not get_classifier() of them"
            )
        return Head(pooled.flatten(1).shape[1], flattened(features).shape[1], once)


class _Seen(NamedTuple):
    """What a part of a pass did: its operations in order, and whether it wrote into a buffer of the model."""

    operations: list[Any]
    writes: bool


class _Watch(ShapesOnly):  # type: ignore[no-untyped-call]  # torch is untyped there
    """A pass without values that notes its operations, and what it writes into buffers."""

    def __init__(self, model: Any, images: Tensor) -> None:
        super().__init__([images, *model.parameters()])
        self._model, self._images = model, images
        self._operations: list[Any] = []
        self._memory: set[int] = set()

    def seen(self, part: Callable[[], Any]) -> tuple[Any, _Seen]:
        """Run a part of the pass, and return its result with what it did; an error tells the model and the images."""
        self._operations, self._memory = [], set()
        before = _storages(self._model)
        try:
            result = part()
        except (AssertionError, RuntimeError, ValueError) as error:  # of torch or timm, about a shape
            raise RuntimeError(
                f"{type(self._model).__name__} fails on an image of input_size {tuple(self._images.shape[1:])}, or is "
                f"made for another: {type(error).__name__}: {error}"
            ) from error
        return result, _Seen(self._operations, not self._memory.isdisjoint(before) or _storages(self._model) != before)

    def classifier(self, pooled: Tensor) -> list[Any]:
        """Return the operations of the classifier, or none if there is not one that takes ``pooled``."""
        with suppress(Exception):
            return self.seen(lambda: self._model.get_classifier()(pooled))[1].operations
        return []

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:  # noqa: ARG002
        """Note an operation, and the memory that it wrote into."""
        self._operations.append(func)
        for place, argument in enumerate(func._schema.arguments):  # noqa: SLF001 (where torch says what an operation writes)
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = kwargs[argument.name] if argument.name in kwargs else args[place]
                self._memory.update(t.untyped_storage().data_ptr() for t in tensors_in(written))


def _storages(model: nn.Module) -> list[int]:
    return [buffer.untyped_storage().data_ptr() for buffer in model.buffers()]


def _images(model: nn.Module, input_size: Sequence[int] | None) -> Tensor:
    if input_size is not None:
        like = next(model.parameters())
        return stand_in((2, *input_size), like.dtype)
    try:
        images: Tensor = stand_in_inputs(model, None)[0]
    except TracingError as error:
        raise ValueError(
            f"input_size must be given, the (C, H, W) of the images: {type(model).__name__} has no pretrained "
            "configuration that tells it"
        ) from error
    return images


def _train(lean: nn.Module) -> None:
    """Set a copy to training, with every dropout at work, and norms over processes as those of one process."""
    for module in lean.train().modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 (the base of all dropouts)
            module.p = 0.5
        if isinstance(getattr(module, "drop_rate", None), float):
            vars(module)["drop_rate"] = 0.5
        if isinstance(module, nn.SyncBatchNorm):
            vars(module)["forward"] = MethodType(nn.BatchNorm2d.forward, module)


def not_one_tensor(model: nn.Module, logits: Any) -> str:
    """Return what is wrong with logits that are not one tensor."""
    return (
        f"model must return one tensor of logits in training, but {type(model).__name__} returns a "
        f"{type(logits).__name__}; of a distilled model call set_distilled_training(False)"
    )


def _check_row(model: nn.Module, output: Any, name: str) -> None:
    """Raise unless an output of the head is one row an image; single places beside the channels may remain."""
    if not isinstance(output, Tensor):
        raise TypeError(not_one_tensor(model, output))
    if max(output.shape[1:], default=0) != math.prod(output.shape[1:]):
        raise ValueError(
            f"model must pool its features, but the {name} of {type(model).__name__} have shape "
            f"(B, {', '.join(map(str, output.shape[1:]))}); make it with a global_pool, or call "
            'reset_classifier(num_classes, "avg")'
        )
