"""What every timm model offers beside its forward: features, head, a new classifier, and the widths it tells of itself.

None of it is needed for a model to be cut; where a model has it, the slim model's must agree. Most integers here
(``num_features``, ``feature_info``) are not read by the forward, so no equation of the forward gives them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch import Tensor, nn

from pml_extensions._slimming.algebra.axes import Axis, size
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Size, TracedInt
from pml_extensions._slimming.tracing.module_integers import sizes_of
from pml_extensions._slimming.tracing.trace import Trace


@dataclass
class Contract:
    """Axes of what a timm model hands out: its features, and the outputs of the modules that its feature_info names."""

    trace: Trace
    model: nn.Module
    features: Tensor | None = None
    tells: dict[Attribute, Axis] = field(default_factory=dict)

    def listen(self) -> None:
        """Note what forward_features returns, and the outputs that feature_info tells of."""
        features = getattr(self.model, "forward_features", None)
        if features is not None:
            self.model.__dict__["forward_features"] = self._noting(features)
        modules = dict(self.model.named_modules())
        for place, entry in enumerate(_entries(self.model)):
            module = modules.get(entry.get("module", ""))
            if module is not None and "num_chs" in entry:
                at = Attribute("", "feature_info", (place, "num_chs"), int(entry["num_chs"]))
                module.register_forward_hook(lambda _m, _i, out, at=at: self._tell(at, out))

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            out = function(*args, **kwargs)
            self.features = out if isinstance(out, Tensor) else None
            self._tell_root(("num_features", "embed_dim"), out)
            return out

        return noted

    def head(self) -> None:
        """Run the head without its classifier, for the width that it hands over to that."""
        if not self.can_classify():
            return
        equations = len(self.trace.equations)
        try:
            pooled = self.model.forward_head(self.features, pre_logits=True)  # type: ignore[operator]
            self._tell_root(("head_hidden_size", "num_features"), pooled)
        except Exception:  # noqa: BLE001  # a model that cannot do it when dense need not when slim
            del self.trace.equations[equations:]

    def can_classify(self) -> bool:
        """Tell whether the head can be run by itself: on features that the forward pass is known to have made."""
        return self.features is not None and hasattr(self.model, "forward_head")

    def classify(self) -> Any:
        """Run the head up to its logits."""
        return self.model.forward_head(self.features)  # type: ignore[operator]

    def _tell_root(self, names: tuple[str, ...], out: Any) -> None:
        for name in names:
            value = vars(self.model).get(name)
            if isinstance(value, int):
                self._tell(Attribute("", name, (), int(value)), out)

    def _tell(self, attribute: Attribute, out: Any) -> None:
        axis = self._channels(out, attribute.dense) if isinstance(out, Tensor) else None
        if axis is not None:
            self.tells.setdefault(attribute, axis)

    def _channels(self, out: Tensor, length: int) -> Axis | None:
        """Return the axis of the channels of features: last of tokens and vectors, second of maps unless NHWC."""
        axes = self.trace.axes(out)
        last = out.ndim < 4 or str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        order = [-1, 1] if last else [1, -1]
        return next((axes[d] for d in order if size(axes[d]) == length), None)


def _entries(model: nn.Module) -> list[Any]:
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    return [entry for entry in info if isinstance(entry, dict)] if isinstance(info, (list, tuple)) else []


def new_classifier(model: nn.Module, trace: Trace, forward: Callable[[], Any]) -> None:
    """Give a traced copy a new classifier and run it: what its layers were made with are sizes of their weights."""
    reset = getattr(model, "reset_classifier", None)
    if reset is None:
        return
    before, equations = set(map(id, model.modules())), len(trace.equations)
    try:
        reset(int(getattr(model, "num_classes", 0)) or 2)
        model.eval()
        forward()
    except Exception:  # noqa: BLE001  # a model that cannot do it when dense need not when slim
        del trace.equations[equations:]
        return
    for module in model.modules():
        if id(module) not in before:
            for attribute, name, dimension in sizes_of(module):
                value, tensor = getattr(module, attribute), getattr(module, name)
                if isinstance(value, TracedInt) and trace.seen(tensor):
                    trace.equations.append(Equation(value.expression, "==", Size(trace.axes(tensor)[dimension])))
