"""Save a slim timm model, and make it again: weights in safetensors, the recipe beside them as JSON; no pickle."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pml_extensions.evolution.slim_recipe import FORMAT

__all__ = ["load_slim", "save_slim"]

_KEY = "pml_extensions_slim"


def save_slim(slim: nn.Module, path: str | os.PathLike[str], *, model_args: Mapping[str, Any] | None = None) -> None:
    """Write a slim timm model to one file, in one step: a crash leaves the old file or none.

    Args:
        slim: what ``KnowledgeEvolution.slim`` or ``KELS.slim`` returned, fine-tuned or not.
        path: the file, by custom ``*.safetensors``.
        model_args: what the dense model was created with beside its name, number of classes and input channels
            (``img_size`` and the like; numbers, strings and lists).

    Raises:
        TypeError: if ``slim`` is no slim model.
        ValueError: if it is not of a timm architecture, or if making it again with ``model_args`` gives another model.
    """
    made = getattr(slim, "slim_recipe", None)
    if made is None:
        raise TypeError(f"slim must come from KnowledgeEvolution.slim() or KELS.slim(), got a {type(slim).__name__}")
    if made["architecture"] is None:
        raise ValueError(
            f"slim must be of a timm architecture to be made again, got a {type(slim).__name__}; "
            "save its state_dict() and load that into KELS(...).slim(model) of a fresh dense model"
        )
    arguments = {**made["arguments"], **(model_args or {})}
    metadata = {**made, "arguments": arguments, "num_classes": getattr(slim, "num_classes", None)}
    state = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in slim.state_dict().items()}
    _check_shapes(_make(metadata), state, "model_args must name what else the dense model was created with")
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    os.close(handle)
    try:
        save_file(state, temporary, metadata={_KEY: json.dumps(metadata)})
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_slim(path: str | os.PathLike[str]) -> Any:
    """Make a saved slim model again: ``timm.create_model``, the same split, then the saved weights; in eval mode.

    Args:
        path: a file that ``save_slim`` wrote.

    Returns:
        The slim model on the CPU, with the saved type of numbers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, not of ``save_slim``, of another format version, or if the installed timm
            has no model of this name or makes another one.
    """
    metadata, state = _read(Path(path))
    slim = _make(metadata)
    _check_shapes(slim, state, "was it saved with another version of timm?")
    floating = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    slim = slim.to(floating)
    slim.load_state_dict(state)
    return slim.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.exists():
        raise FileNotFoundError(f"path must name a file that save_slim wrote, but {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    if text is None:
        raise ValueError(f"{path} was not written by save_slim: it holds no recipe of a slim model")
    metadata = json.loads(text)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} has format {metadata.get('format')}, this version reads format {FORMAT}")
    return metadata, state


def _make(metadata: Mapping[str, Any]) -> Any:
    """Make the slim model of a recipe, without its weights."""
    import timm  # noqa: PLC0415  # only for files

    from pml_extensions.evolution.splits.kels import KELS  # noqa: PLC0415  # kels imports the recipe

    if not timm.is_model(metadata["architecture"]):
        raise ValueError(
            f"timm {timm.__version__} has no architecture {metadata['architecture']!r}; install another one"
        )
    with torch.random.fork_rng(devices=[]):
        dense = timm.create_model(metadata["architecture"], **metadata["arguments"])
        example = tuple(torch.zeros(()).expand(shape) for shape in metadata["input_shapes"])
        slim = KELS(metadata["rate"], metadata["multiple"], example_input=example).slim(dense)
        if metadata["num_classes"] != metadata["arguments"].get("num_classes"):
            slim.reset_classifier(metadata["num_classes"])
    return slim


def _check_shapes(slim: nn.Module, state: Mapping[str, torch.Tensor], cure: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in slim.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"making the slim model again gives {len(differing)} other tensors, the first {name!r}: expected "
            f"{expected.get(name)}, got {got.get(name)}; {cure}"
        )
