"""What a model answers to a fixed image: a few numbers that tell whether another model is the same."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pml_extensions._declared_input import stand_in_inputs
from pml_extensions._slimming import TracingError, copy_with, outputs_in, tensors_in, undisturbed

__all__ = ["answers", "other_answer", "question"]

Shapes = Sequence[Sequence[int]]

_MOST = 1000  # numbers of an output
_TOLERANCE = 1e-3  # of the largest number; other processors sum in another order


def question(model: nn.Module, recorded: Shapes) -> tuple[Shapes, list[Tensor]]:
    """Return the shapes of inputs that a model takes, those recorded or those that it declares, with its answers."""
    declared = _declared(model)
    problems = []
    for shapes in filter(None, (recorded, declared)):
        found = _tried(model, shapes)
        if isinstance(found, list):
            return shapes, found
        problems.append(found)
    raise ValueError(
        "slim must run to be saved, for its answer to a fixed input goes into the file, but on inputs of shapes "
        f"{recorded} it fails: {problems[0] if problems else 'none are known'}"
    )


def _tried(model: nn.Module, shapes: Shapes) -> list[Tensor] | Exception:
    try:
        return answers(model, shapes)
    except Exception as error:  # noqa: BLE001  # made for another size by now
        return error


def answers(model: nn.Module, shapes: Shapes) -> list[Tensor]:
    """Return some numbers of each output, and of the features of a timm model, for fixed inputs.

    They are computed in single precision, in evaluation, on the CPU, in a copy.
    """
    single = copy_with(model, _single).eval()
    inputs = [_pattern([1, *shape[1:]] if len(shape) == 4 else shape) for shape in shapes]  # one image will do
    with undisturbed():
        features = single.forward_features(*inputs) if hasattr(single, "forward_features") else ()
        outputs = tensors_in((outputs_in(single(*inputs)), features))
    return [_some(output.detach()) for output in outputs]


def other_answer(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """Return in words the first answer that is not the expected one, or None."""
    if len(found) != len(expected):
        return f"{len(expected)} outputs, got {len(found)}"
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        scale = float(theirs.nan_to_num().abs().max()) if theirs.numel() else 0.0
        if ours.shape != theirs.shape:
            return f"{theirs.numel()} numbers of output {place}, got {ours.numel()}"
        if not torch.allclose(ours, theirs, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
            worst = int((ours - theirs).abs().nan_to_num(torch.inf).argmax())
            return f"{theirs[worst]:.6g} in output {place}, got {ours[worst]:.6g}"
    return None


def _single(_name: str, tensor: Tensor) -> Tensor:
    here = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    return nn.Parameter(here, requires_grad=False) if isinstance(tensor, nn.Parameter) else here.clone()


def _declared(model: nn.Module) -> Shapes:
    try:
        return [list(tensor.shape) for tensor in stand_in_inputs(model, None)]
    except TracingError:
        return []


def _pattern(shape: Sequence[int]) -> Tensor:
    """Return an input that depends on no generator: waves over its places, other ones in each sample and channel."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((0.7391 * places).sin() + (0.0173 * places).cos()).float().reshape(tuple(shape))


def _some(output: Tensor) -> Tensor:
    numbers = output.flatten().to(torch.float32)
    return numbers[torch.linspace(0, max(len(numbers) - 1, 0), min(len(numbers), _MOST)).long()].contiguous()
