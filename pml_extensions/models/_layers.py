"""The layers of a timm model, in groups that layer-wise learning rates go by."""

from typing import Any

__all__ = ["layers_of"]


def layers_of(model: Any, coarse: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """Return the numbers of the layer groups of a timm model's parameters, and of its modules that hold some, by name.

    They are those that ``timm.optim.param_groups_layer_decay`` finds for the model itself: by its ``group_matcher``,
    or, where it has none, in the order of its parameters.
    """
    from timm.models import group_modules, group_parameters  # noqa: PLC0415 (importing this package takes no timm)

    if not hasattr(model, "group_matcher"):
        return _in_order(model), {}
    matcher = model.group_matcher(coarse=coarse)
    return group_parameters(model, matcher, reverse=True), group_modules(model, matcher, reverse=True)


def _in_order(model: Any) -> dict[str, int]:
    from timm import optim  # noqa: PLC0415

    host: Any = optim
    if hasattr(host, "auto_group_layers"):
        found = host.auto_group_layers(model)
    else:
        found = host.optim_factory._layer_map(model)  # noqa: SLF001 (its name in timm 1.0.11)
    return dict(found)
