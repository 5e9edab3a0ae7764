"""How a slim model was made, carried along with it so that it can be made again: names and numbers alone."""

from typing import Any

from torch import Tensor, nn

FORMAT = 1


def recipe(model: nn.Module, rate: float, multiple: int, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the architecture of a dense model as timm knows it (None if it is not timm's), and the split."""
    configuration: Any = getattr(model, "pretrained_cfg", None) or {}
    return {
        "format": FORMAT,
        "architecture": configuration.get("architecture"),
        "arguments": {"num_classes": getattr(model, "num_classes", None), "in_chans": inputs[0].shape[1]}
        if inputs and inputs[0].ndim == 4
        else {},
        "rate": rate,
        "multiple": multiple,
        "input_shapes": [list(tensor.shape) for tensor in inputs],
    }
