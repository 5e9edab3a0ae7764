"""Save a slim timm model, and make it again, in one file of safetensors; no pickle.

Beside the weights the header holds, as JSON, the architecture and what it is created with, every module's type and
settings, and where the model's answer to a fixed image lies. What is made again is compared with all of them, when a
model is saved and when it is loaded. A digest of the whole tells a damaged file from one that another version made.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pml_extensions._module_trees import Tree, describe, difference, other_modules, restore, tensors_of, ties
from pml_extensions._slim_files.answers import answers, other_answer, question
from pml_extensions._slim_files.format_1 import load_format_1
from pml_extensions._slim_files.making import make, way_to

__all__ = ["load_slim", "mark", "save_slim"]

_KEY = "pml_extensions_slim"
FORMAT = 2
_CURE = (
    "model_args must name what else the dense model was created with; hooks must be removed first, and methods of its "
    "own cannot be saved"
)
_ANSWER = "pml_extensions_answer_"


def mark(slim: nn.Module, rate: float, multiple: int, inputs: tuple[Tensor, ...]) -> None:
    """Note in a slim model, and in timm models inside it, how it was made."""
    recipe = {"rate": rate, "multiple": multiple, "input_shapes": [list(tensor.shape) for tensor in inputs]}
    for module in {slim, *(module for module in slim.modules() if "pretrained_cfg" in vars(module))}:
        vars(module)["slim_recipe"] = dict(recipe)


@contextmanager
def _by_default() -> Iterator[None]:
    """Make models and let them answer as torch does by default, whatever device, type or mode the caller has chosen."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(mode=False):
            yield
    finally:
        torch.set_default_dtype(dtype)


@_by_default()
def save_slim(slim: nn.Module, path: str | os.PathLike[str], *, model_args: Mapping[str, Any] | None = None) -> None:
    """Write a slim timm model to one file, in one step: a crash leaves the old file or none.

    What is saved comes back: the file is read again before it takes its place, and the model made from it is compared
    with ``slim``: modules, settings, tensors, and the answer to a fixed image.

    Args:
        slim: what ``KnowledgeEvolution.slim`` or ``KELS.slim`` returned, fine-tuned or not, with another classifier or
            input size, or with its branches fused (``timm.utils.reparameterize_model``).
        path: the file, by custom ``*.safetensors``.
        model_args: what the dense model was created with beside its name, where that decides which modules it has
            (``act_layer``, ``norm_layer``, ``drop_path_rate``, ``features_only``, ...; numbers, strings, lists).

    Raises:
        TypeError: if ``slim`` is no slim model, or ``model_args`` holds something else.
        ValueError: if it is not of a timm architecture, or if making it again with ``model_args`` gives another model.
    """
    slim = getattr(slim, "_orig_mod", slim)  # torch.compile's
    architecture = _architecture(slim)
    recipe = vars(slim)["slim_recipe"]
    tree = describe(slim)
    known = {**recipe.get("model_args", {}), **_arguments(slim, recipe["input_shapes"])}
    arguments = _plain({**known, **(model_args or {})})
    steps, fresh = way_to(tree, architecture, arguments, getattr(slim, "num_classes", None))
    shapes, told = question(slim, recipe["input_shapes"])
    metadata = {
        "format": FORMAT,
        "made_with": _versions(),
        "architecture": architecture,
        "arguments": arguments,
        "steps": steps,
        "input_shapes": shapes,
        "modules": _packed(tree),
    }
    state = _worth_saving(slim, fresh) | {f"{_ANSWER}{place}": answer for place, answer in enumerate(told)}
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    os.close(handle)
    try:
        save_file(state, temporary, metadata={_KEY: json.dumps({**metadata, "digest": digest(metadata, state)})})
        again = _restored(*_read(Path(temporary)), _CURE)
        _check_same(slim, again)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@_by_default()
def load_slim(path: str | os.PathLike[str]) -> Any:
    """Make a saved slim model again, from ``timm.create_model``, the saved settings and weights; in eval mode.

    Args:
        path: a file that ``save_slim`` wrote. A file of format 1 (pml_extensions 0.1.0) holds weights and architecture
            alone; a warning says so.

    Returns:
        The slim model on the CPU, with the saved types of numbers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not of ``save_slim``, of an unknown format, or if the installed timm has no model
            of this name or makes another one.
    """
    metadata, state = _read(Path(path))
    if metadata["format"] == 1:
        return load_format_1(metadata, state)
    now = _versions()
    cure = f"it was saved with {metadata['made_with']}, this is {now}: was it saved with another version of timm?"
    return _restored(metadata, state, cure)


def _architecture(slim: Any) -> str:
    """Return the name by which timm knows a slim model; raise if there is none."""
    modules = dict(slim.named_modules()) if isinstance(slim, nn.Module) else {}
    slims = [name for name, module in modules.items() if "slim_recipe" in vars(module)]
    if not slims:
        raise TypeError(f"slim must come from KnowledgeEvolution.slim() or KELS.slim(), got a {type(slim).__name__}")
    named = {name: (vars(modules[name]).get("pretrained_cfg") or {}).get("architecture") for name in slims}
    if named.get(""):
        return str(named[""])
    inside = next((name for name in slims if named[name]), None)
    if inside is not None:
        raise ValueError(
            f"slim must be the timm model itself, got a {type(slim).__name__} around it: save it by "
            f"save_slim(slim.{inside}, path), and what is beside it by its state_dict()"
        )
    raise ValueError(
        f"slim must be of a timm architecture to be made again, got a {type(slim).__name__}; "
        "save its state_dict() and load that into KELS(...).slim(model) of a fresh dense model"
    )


def _arguments(slim: nn.Module, shapes: Any) -> dict[str, Any]:
    """Return what a slim model tells of the arguments that the dense one was created with."""
    classes = getattr(slim, "num_classes", None)
    channels = {"in_chans": shapes[0][1]} if shapes and len(shapes[0]) == 4 else {}
    return channels if classes is None else {"num_classes": classes, **channels}


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise TypeError(f"model_args must hold numbers, strings, None and lists: {error}") from error
    return plain


def _versions() -> str:
    import timm  # noqa: PLC0415  # only for files

    return f"timm {timm.__version__}, torch {torch.__version__}"


def _worth_saving(slim: nn.Module, fresh: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict, and of the others those that a fresh model has not got already."""
    made, state = tensors_of(fresh), slim.state_dict()
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors_of(slim).items()
        if name in state or name not in made or not _same(tensor, made[name])
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"path must name a file that save_slim wrote, but {path} is no file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            # copied, for in the file they need not be aligned, and kernels then round otherwise
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    if text is None:
        raise ValueError(f"{path} was not written by save_slim: it holds no recipe of a slim model")
    try:
        metadata = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its recipe of a slim model cannot be read: {error}") from error
    if metadata.get("format") not in (1, FORMAT):
        raise ValueError(f"{path} has format {metadata.get('format')}, this version reads format 1 and {FORMAT}")
    if metadata["format"] == FORMAT and metadata.pop("digest", None) != digest(metadata, state):
        raise ValueError(f"{path} is damaged: it does not hold what save_slim wrote; save the model again")
    return metadata, state


def digest(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return a hash of all that a file holds."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _restored(metadata: Mapping[str, Any], state: dict[str, Tensor], cure: str) -> Any:
    """Return the model that a file holds; raise, with a cure, if it is another than was saved."""
    told = [state.pop(f"{_ANSWER}{place}") for place in range(sum(name.startswith(_ANSWER) for name in state))]
    tree = _unpacked(metadata["modules"])
    try:
        model = make(metadata["architecture"], metadata["arguments"], metadata["steps"])
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"making the slim model again fails: {type(error).__name__}: {error}; {cure}") from error
    problem = other_modules(describe(model), tree)
    if problem is not None:
        raise ValueError(f"making the slim model again gives other modules, and so other tensors: {problem}; {cure}")
    restore(model, tree, state)
    problem = difference(describe(model), tree) or _other_answer(model, metadata["input_shapes"], told)
    if problem is not None:
        raise ValueError(f"making the slim model again gives another one: {problem}; {cure}")
    model.slim_recipe["model_args"] = metadata["arguments"]
    return model.eval()


def _other_answer(model: nn.Module, shapes: Any, told: list[Tensor]) -> str | None:
    try:
        return other_answer(answers(model, shapes), told)
    except Exception as error:  # noqa: BLE001  # whatever a model raises that does not fit together
        return f"it fails on inputs of shapes {shapes}: {error}"


def _check_same(slim: nn.Module, again: nn.Module) -> None:
    """Raise unless two models hold the same tensors, tied alike."""
    ours, theirs = tensors_of(again), tensors_of(slim)
    other = next((name for name, tensor in theirs.items() if name not in ours or not _same(ours[name], tensor)), None)
    if other is None and ties(again) != ties(slim):
        other = "what is tied"
    if other is None and list(again.state_dict()) != list(slim.state_dict()):
        other = "which tensors the state_dict() has, or their order,"
    if other is not None:
        raise ValueError(f"slim cannot be made again from a file: {other} would differ; save its state_dict() instead")


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same numbers of the same type; NaN equals NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(torch.isclose(one.cpu(), other.cpu(), rtol=0, atol=0, equal_nan=True).all())


def _packed(tree: Tree) -> dict[str, Any]:
    """Return a tree with each kind of module once, and for each name the place of its kind."""
    kinds = list(dict.fromkeys(json.dumps(module) for module in tree.values()))
    places = {kind: place for place, kind in enumerate(kinds)}
    return {
        "kinds": [json.loads(kind) for kind in kinds],
        "of": {name: places[json.dumps(module)] for name, module in tree.items()},
    }


def _unpacked(modules: Mapping[str, Any]) -> Tree:
    return {name: modules["kinds"][place] for name, place in modules["of"].items()}
