"""What every timm model offers beside its forward: features, a head, a new classifier, and widths that it tells of.

None of it is needed for a model to be cut; where a model has it, the slim model's must agree. Most integers here
(``num_features``, ``feature_info``) are not read by the forward, so no equation of the forward gives them.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor, nn

from pml_extensions._slimming.algebra.axes import Axis, size
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Size
from pml_extensions._slimming.tracing.stand_ins import tensors_in
from pml_extensions._slimming.tracing.trace import Trace

_METHODS = ("forward_features", "forward_intermediates")
_LISTS = ("embed_dim", "embed_dims", "num_features")  # of models that tell one width a stage or branch
_TAKEN = ("in_features", "in_channels", "in_chs")  # by parts of models, such as heads and stems
_RETURNED = ("num_features", "hidden_size", "out_features", "out_channels", "out_chs")


def has_contract(module: nn.Module) -> bool:
    """Tell whether a module is a timm model, or what timm makes of one with ``features_only=True``."""
    return hasattr(type(module), "forward_features") or bool(_entries(module))


class Contract:
    """What one timm model, wherever it is, hands out in a watched pass, and what it says of that.

    Args:
        trace: where the axes are written down.
        path: the model's name.
        model: a traced copy.
    """

    def __init__(self, trace: Trace, path: str, model: nn.Module) -> None:
        self._trace, self._path, self._model = trace, path, model
        self._told: dict[Attribute, Axis] = {}
        self._given: tuple[Any, ...] | None = None
        self._features: Any = None
        self._listen()

    def _listen(self) -> None:
        """Note what the model's features are made of and what they are, and the outputs that feature_info tells of."""
        for name in _METHODS:
            method = getattr(self._model, name, None)
            if method is not None:
                vars(self._model)[name] = self._noting(method)
        modules = dict(self._model.named_modules())
        for path, module in modules.items():
            if any(isinstance(vars(module).get(name), int) for name in (*_TAKEN, *_RETURNED)) and path:
                module.register_forward_hook(lambda _m, given, out, path=path: self._tell_part(path, given, out))
        for place, entry in enumerate(_entries(self._model)):
            name = str(entry.get("module") or "no name")
            module = modules.get(name) or modules.get(name.replace(".", "_"))  # as timm's extractors flatten it
            if module is not None and entry.get("hook_type", "forward") == "forward":
                module.register_forward_hook(lambda _m, _i, out, place=place: self._tell_entry(place, out))
        chosen = getattr(getattr(self._model, "feature_info", None), "out_indices", None)
        if chosen is not None:
            self._model.register_forward_hook(lambda _m, _i, out: self._tell_entries(chosen, out))

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            out = method(*args, **kwargs)
            self._given = (*args, *kwargs.values())[:1]
            if method.__name__ == "forward_features":
                self._features = out
                self._tell_root(("num_features", "embed_dim"), out)
            return out

        return noted

    def ask(self) -> None:
        """Run, after a pass, what it did not: the head by itself, the features of every stage, a new classifier."""
        if self._given is not None:
            for question in (self._ask_features, self._ask_head, self._ask_stages, self._ask_new_classifier):
                self._attempt(question)
        self._tell_lists()
        self._trace.equations.extend(Equation(at, "==", Size(axis)) for at, axis in self._told.items())

    def _attempt(self, question: Callable[[], None]) -> None:
        equations = len(self._trace.equations)
        try:
            question()
        except Exception:  # noqa: BLE001  # a model that cannot do it when dense need not when slim
            del self._trace.equations[equations:]

    def _ask_features(self) -> None:
        if self._features is None:
            self._call("forward_features", *self._inputs())

    def _ask_head(self) -> None:
        pooled = self._call("forward_head", self._features, pre_logits=True)
        self._tell_root(("head_hidden_size", "num_features"), pooled)

    def _ask_stages(self) -> None:
        entries = range(len(_entries(self._model)))
        if any(self._entry(place) not in self._told for place in entries):
            stages = self._call("forward_intermediates", *self._inputs(), intermediates_only=True)
            self._tell_entries(entries, stages, "NCHW")

    def _ask_new_classifier(self) -> None:
        """Give the copy a new classifier and run it: what its layers are made with are sizes of their weights."""
        self._call("reset_classifier", int(getattr(self._model, "num_classes", 0)) or 2)
        self._model.eval()
        if hasattr(self._model, "forward_head"):
            self._call("forward_head", self._features)
        else:
            self._model(*self._inputs())

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._model, name)(*args, **kwargs)

    def _inputs(self) -> tuple[Any, ...]:
        return self._given or ()

    def _tell_root(self, names: Sequence[str], out: Any) -> None:
        for name in names:
            value = vars(self._model).get(name)
            if isinstance(value, int) and isinstance(out, Tensor):
                self._tell(Attribute(self._path, name, (), int(value)), out)

    def _tell_part(self, path: str, given: Any, out: Any) -> None:
        """Let a part of the model tell of the channels that it takes and returns; a head of its pre-logits."""
        held, full = vars(self._model.get_submodule(path)), ".".join(filter(None, [self._path, path]))
        for names, tensors in ((_TAKEN, tensors_in(given)), (_RETURNED, tensors_in(out))):
            for name in names:
                if isinstance(held.get(name), int) and tensors:
                    self._tell(Attribute(full, name, (), int(held[name])), tensors[0])

    def _tell_entries(self, places: Sequence[int], outputs: Any, fmt: str | None = None) -> None:
        """Let outputs, in order, be what entries of feature_info tell of."""
        stages = tensors_in(outputs)
        if len(stages) == len(places):
            for place, stage in zip(places, stages, strict=True):
                self._tell_entry(place % len(_entries(self._model)), stage, fmt)

    def _tell_entry(self, place: int, out: Any, fmt: str | None = None) -> None:
        first = out[0] if isinstance(out, list | tuple) and out else out  # as timm's extractors have it
        at = self._entry(place)
        if isinstance(first, Tensor) and at is not None:
            self._tell(at, first, fmt)

    def _entry(self, place: int) -> Attribute | None:
        entries = _entries(self._model)
        if place >= len(entries) or "num_chs" not in entries[place]:
            return None
        return Attribute(self._path, "feature_info", (place, "num_chs"), int(entries[place]["num_chs"]))

    def _tell_lists(self) -> None:
        """Tell the lists of widths: one for each map of features or entry of feature_info; one width is any entry's."""
        maps = [self._channels(out) for out in tensors_in(self._features)]
        stages = [[self._told[at]] for at in map(self._entry, range(len(_entries(self._model)))) if at in self._told]
        for name in _LISTS:
            widths = vars(self._model).get(name)
            if isinstance(widths, int):
                axis = _of_size([axis for stage in reversed(stages) for axis in stage], widths)
                if axis is not None:
                    self._told.setdefault(Attribute(self._path, name, (), int(widths)), axis)
            elif isinstance(widths, list | tuple):
                for source in (maps, stages):
                    pairs = zip(source, widths, strict=False)
                    axes = [axis for several, width in pairs if (axis := _of_size(several, width)) is not None]
                    if len(axes) == len(source) == len(widths):
                        places = enumerate(zip(widths, axes, strict=True))
                        ats = {Attribute(self._path, name, (i,), int(width)): axis for i, (width, axis) in places}
                        self._told = {**ats, **self._told}

    def _tell(self, attribute: Attribute, out: Tensor, fmt: str | None = None) -> None:
        axis = _of_size(self._channels(out, fmt), attribute.dense)
        if axis is not None:
            self._told.setdefault(attribute, axis)

    def _channels(self, out: Tensor, fmt: str | None = None) -> list[Axis]:
        """Return the axes that may be the channels of features, the likeliest first: last of tokens and vectors."""
        axes = self._trace.axes(out)
        last = out.ndim < 4 or (fmt or str(getattr(self._model, "output_fmt", "NCHW"))).endswith("NHWC")
        return ([axes[-1], axes[1]] if last else [axes[1], axes[-1]]) if out.ndim > 1 else []


def _of_size(axes: Sequence[Axis], length: int) -> Axis | None:
    return next((axis for axis in axes if size(axis) == length), None)


def _entries(model: nn.Module) -> list[Any]:
    info = vars(model).get("feature_info")
    info = getattr(info, "info", info)
    return [entry for entry in info if isinstance(entry, dict)] if isinstance(info, (list, tuple)) else []
