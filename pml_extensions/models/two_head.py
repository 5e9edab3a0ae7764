"""A timm classifier that also returns an embedding, from the same pass through its trunk.

Source: Taha, Chen, Misu, Shrivastava and Davis, "Boosting Standard Classification Architectures Through a Ranking
Regularizer", WACV 2020, arXiv:1901.08616, figure 2. The paper's embedding reads the flattened last feature map
(``pooling="flatten"``); by default ours reads it pooled as the classifier reads it, 49 times fewer weights at 7 x 7.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from pml_extensions._constructors import checked_constructor
from pml_extensions._settings import check_integer
from pml_extensions.models._head import Head, flattened, look_at_head, not_one_tensor
from pml_extensions.models._layers import layers_of
from pml_extensions.models._undoing import undone_on_error

__all__ = ["TwoHead", "TwoHeadOutput"]


class TwoHeadOutput(NamedTuple):
    """What a two-head model returns.

    Attributes:
        logits: (B, classes), as the classifier alone would return them.
        embeddings: (B, d), of unit length, float32 or wider.
    """

    logits: Tensor
    embeddings: Tensor

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a TwoHead model returns (logits, embeddings), a tuple without {name!r}; take .embeddings or .logits of "
            "it. Where a library asks for an embedder, give it a module that returns output.embeddings"
        )


if hasattr(_pytree, "_register_namedtuple"):  # without it torch.export writes no file of a model that returns one
    _pytree._register_namedtuple(TwoHeadOutput, serialized_type_name=f"{__name__}.{TwoHeadOutput.__name__}")  # noqa: SLF001


@checked_constructor
class TwoHead(nn.Module):
    """Give a timm classifier a second head, an embedding of its last feature map.

    The classifier itself stays as it is, in the attribute ``model``: drop the wrapper and there it is. What the wrapper
    does not have is looked up there, and set there (``get_classifier``, ``reset_classifier``, ``drop_rate``, ...). A
    state dict of the classifier alone loads as well; the embedding then stays as it is.

    Args:
        model: a timm model with ``forward_features`` and ``forward_head``, and a classifier.
        embedding_size: the embedding's dimension, d.
        pooling: what the embedding reads: "avg", the features that the classifier reads, pooled as the model pools by
            default (average, class token, ...); or "flatten", the whole last feature map, as in the paper.
        input_size: (C, H, W) of the images that will come; by default what the model tells of itself. What the two
            heads read is found out with images of that size, in a copy without weights.

    Shape:
        images (B, C, H, W); returns a named tuple of logits (B, classes) and embeddings (B, d).

    Raises:
        TypeError: ``model`` has no feature map or no classifier to put an embedding beside, or returns several logits
            (it is set to distilled training).
        ValueError: for an unknown ``pooling``, an ``embedding_size`` below one, an ``input_size`` that is not of
            three numbers, or a ``model`` whose logits are not one row an image (it does not pool).
        RuntimeError: ``model`` cannot be run on images of ``input_size``.

    Examples:
        >>> import timm
        >>> logits, embeddings = TwoHead(timm.create_model("resnet18"), 64).eval()(torch.randn(2, 3, 32, 32))
        >>> logits.shape, embeddings.shape
        (torch.Size([2, 1000]), torch.Size([2, 64]))
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        embedding_size: int = 256,
        pooling: str = "avg",
        input_size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        check_classifier(model)
        if pooling not in ("avg", "flatten"):
            raise ValueError(f'pooling must be "avg" or "flatten", got {pooling!r}')
        check_integer("embedding_size", embedding_size, least=1)
        check_input_size(input_size)
        self.model = model
        self.pooling = pooling
        self.input_size = input_size
        head = look_at_head(model, input_size)
        self._once = head.once
        like = next(model.parameters())
        self.embedding = nn.Linear(self._width(head), embedding_size, device=like.device, dtype=like.dtype)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"pooling={self.pooling!r}"

    def forward(self, images: Tensor) -> TwoHeadOutput:
        """Return logits and embeddings of ``images``."""
        features = self.model.forward_features(images)
        if self.pooling == "flatten":
            logits, read = self.model.forward_head(features), flattened(features)
        elif self._once:
            read = self.model.forward_head(features, pre_logits=True)
            logits = self.model.get_classifier()(read)
        else:
            logits, read = self.model.forward_head(features), self.model.forward_head(features, pre_logits=True)
        return TwoHeadOutput(one_tensor(self.model, logits), unit(self._embedded(read.flatten(1))))

    def _embedded(self, features: Tensor) -> Tensor:
        try:
            embeddings: Tensor = self.embedding(features)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # memory that ran out, and the like
                raise
            raise RuntimeError(
                f"the embedding fails on features of shape {tuple(features.shape)}, {features.dtype}: pass images of "
                'the size that it was made for (with pooling="flatten" the last feature map grows with them), and '
                f"after a change of the model or of the pooling make a new TwoHead: {error}"
            ) from error
        return embeddings

    def no_weight_decay(self) -> set[str]:
        """Return the names of the model's parameters that take no weight decay, as they are called here."""
        names = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {f"model.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the model's groups for layer-wise learning rates, by the names of here; the embedding is in the last.

        As with every ``group_matcher`` of timm, the result is for ``timm.models.group_parameters`` or
        ``group_modules``, which every layer decay of timm's uses.
        """
        parameters, modules = layers_of(self.model, coarse)
        last = max(parameters.values())
        layers = {**modules, **parameters, **dict.fromkeys(["model", "embedding"], max(modules.values(), default=last))}
        return lambda name: layers.get(name.removeprefix("model."), last)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("__"):
                raise
            found = getattr(self.model, name)
            return self._looking_again(found) if name in _CHANGE_THE_HEAD else found

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is the model's there, and all else here."""
        model = self.__dict__.get("_modules", {}).get("model")
        is_replica = vars(self).get("_is_replica", False)  # nn.DataParallel puts together replicas in every pass
        if name == "model" and model is not None and not is_replica:
            check_classifier(value)
            head = look_at_head(value, self.input_size)
            self._check_width(head, f"{type(value).__name__} as model", "make a new TwoHead of it")
            super().__setattr__(name, value)
            self._once = head.once
        elif model is None or self._has_of_its_own(name) or not hasattr(model, name):
            super().__setattr__(name, value)
        else:
            setattr(model, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete what is the model's there."""
        if self._has_of_its_own(name):
            super().__delattr__(name)
        else:
            delattr(self.model, name)

    def _has_of_its_own(self, name: str) -> bool:
        held = (self.__dict__, self._parameters, self._buffers, self._modules)
        return hasattr(type(self), name) or any(name in names for names in held)

    def _looking_again(self, change: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the model that changes its head, after which both heads must still be right."""

        @wraps(change)
        def changed(*args: Any, **kwargs: Any) -> Any:
            with undone_on_error(self.model):
                result = change(*args, **kwargs)
                check_classifier(self.model)
                size = None if change.__name__ == "set_input_size" else self.input_size
                head = look_at_head(self.model, size)
                cure = f"call {change.__name__} of the model alone (two.model), and put a new TwoHead around it"
                self._check_width(head, change.__name__, cure)
            self.input_size, self._once = size, head.once
            return result

        return changed

    def _check_width(self, head: Head, change: str, cure: str) -> None:
        made_for = width_read(self.embedding)
        if made_for not in {None, self._width(head)}:
            got = self._width(head)
            raise ValueError(
                f"{change} gives the embedding {got} features to read, but it was made for {made_for}; {cure}"
            )

    def _width(self, head: Head) -> int:
        return head.pooled if self.pooling == "avg" else head.flat

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a state dict of the classifier alone, too, or a part of one."""
        given = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        if given.isdisjoint(self.state_dict()) and not given.isdisjoint(self.model.state_dict()):
            for key in given:
                state_dict[f"{prefix}model.{key}"] = state_dict.pop(f"{prefix}{key}")
            state_dict.update({f"{prefix}embedding.{key}": value for key, value in self.embedding.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            "a TwoHead model cannot be compiled by torch.jit.script, for what it does not have it looks up in the "
            "classifier; torch.jit.trace, torch.export, torch.onnx.export and torch.compile work, and the classifier "
            "alone (two.model) can be scripted"
        )


_CHANGE_THE_HEAD = {  # methods of timm's models
    "prune_intermediate_layers", "reset_classifier", "set_distilled_training", "set_input_size",
}  # fmt: skip


@torch.fx.wrap  # for torch.fx these are calls that it does not look into
def one_tensor(model: nn.Module, logits: Any) -> Tensor:
    """Return logits that are one tensor, or raise."""
    if not isinstance(logits, Tensor):
        raise TypeError(not_one_tensor(model, logits))
    return logits


@torch.fx.wrap
def unit(embeddings: Tensor) -> Tensor:
    """Return rows of unit length, float32 or wider."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)


def width_read(embedding: nn.Module) -> int | None:
    """Return how many features an embedding reads: a linear layer, also as the first of several; else None."""
    while isinstance(embedding, nn.Sequential) and len(embedding):
        embedding = embedding[0]
    return getattr(embedding, "in_features", None) or None  # a lazy layer tells 0


def check_classifier(model: Any) -> None:
    """Raise if ``model`` is not a timm classifier with a feature map."""
    needed = ("forward_features", "forward_head", "get_classifier")
    inside = [name for name in ("module", "_orig_mod") if hasattr(getattr(model, name, None), needed[0])]
    missing = [name for name in needed if not callable(getattr(model, name, None))]
    if missing or inside or isinstance(model, type):
        cure = (
            f"pass model.{inside[0]}, and wrap the TwoHead"
            if inside
            else "create it with timm.create_model, features_only=False"
        )
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        without = f" without {', '.join(missing)}" if missing else ""
        raise TypeError(f"model must be a timm classifier, got {got}{without}; {cure}")
    if "pre_logits" not in inspect.signature(model.forward_head).parameters:
        raise TypeError(f"model must be able to return pre-logits, but {type(model).__name__}.forward_head is not")
    if not getattr(model, "num_classes", 0):
        raise TypeError(f"model must have a classifier, got {type(model).__name__} with num_classes=0")


def check_input_size(input_size: Any) -> None:
    """Raise unless ``input_size`` is (C, H, W), or None."""
    if input_size is None:
        return
    if not isinstance(input_size, tuple | list):
        raise TypeError(f"input_size must be (C, H, W), got {type(input_size).__name__}")
    if len(input_size) != 3:
        raise ValueError(f"input_size must be (C, H, W), got {input_size}")
    for number in input_size:
        check_integer("each number of input_size", number, least=1)
