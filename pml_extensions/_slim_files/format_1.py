"""Files of the first format: architecture, split and weights of a slim model, and no settings."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._slim_files.making import make
from pml_extensions._slimming import analyse, cut, stand_in, with_unread_integers

__all__ = ["load_format_1"]


def load_format_1(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """Make the slim model again: a dense one by name, the same split, then the weights; in eval mode.

    Raises:
        ValueError: if that has other tensors.
    """
    warnings.warn(
        "the file is of format 1, which holds no settings: where the saved model had others than timm's defaults "
        "(act_layer, global_pool, drop_path_rate, ...), this one differs from it; check its answers, and save it again",
        stacklevel=3,
    )
    dense = make(metadata["architecture"], metadata["arguments"])
    with torch.random.fork_rng(devices=[]):
        inputs = tuple(stand_in(shape, torch.float32) for shape in metadata["input_shapes"])
        widths = analyse(dense, inputs, metadata["rate"], metadata["multiple"])
        slim = cut(dense, with_unread_integers(dense, widths))
        if metadata["num_classes"] != metadata["arguments"].get("num_classes"):
            slim.reset_classifier(metadata["num_classes"])
    _check_shapes(slim, state)
    for name, tensor in slim.state_dict(keep_vars=True).items():
        tensor.data = state[name]
    return slim.eval()


def _check_shapes(slim: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in slim.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"making the slim model again gives {len(differing)} other tensors, the first {name!r}: expected "
            f"{expected.get(name)}, got {got.get(name)}; was it saved with another version of timm or pml_extensions? "
            "Load the file's tensors (safetensors.torch.load_file) into a slim model that you make as it was made"
        )
