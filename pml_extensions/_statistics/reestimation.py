"""Statistics of norms, estimated anew: what a network needs that channels were taken out of.

A batch norm normalises, in evaluation, by means and variances that it gathered while the dense network was trained. The
reset-hypothesis had a share in them, so they do not fit the slim network.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pml_extensions._settings import check_integer, check_model
from pml_extensions._sharding import is_sharded, reshard
from pml_extensions._statistics import processes
from pml_extensions._statistics.batches import check_data, inputs_of
from pml_extensions._statistics.estimates import Estimate, estimate_of, statistics_of
from pml_extensions._statistics.evaluation import device_of, evaluating, random_state_kept, unwrapped

__all__ = ["reestimate_statistics"]

_FAILED, _OUT_OF_DATA, _GOING_ON = range(3)


def reestimate_statistics(model: nn.Module, data: Iterable[Any], *, batches: int = 50) -> None:
    """Estimate the statistics of a network's batch norms anew, in place: their plain mean over some batches.

    The rule is that of ``torch.optim.swa_utils.update_bn``: each batch norm normalises by the statistics of the batch,
    and ends with the mean of those over all batches. Unlike there, all other modules (dropout, stochastic depth) are in
    evaluation mode, as they are when the statistics are used. Weights, modes, momenta, gradients and the global random
    generators stay as they are. The data move on as in any loop, by at most ``batches`` batches; without any norm that
    gathers statistics they are not touched.

    Instance norms that track statistics, and norms of other libraries that gather them as torch's do (timm's EvoNorm),
    are estimated, too. Constants stay: the statistics of frozen batch norms (timm's ``FrozenBatchNormAct2d``,
    torchvision's ``FrozenBatchNorm2d``; ``timm.layers.unfreeze_batch_norm_2d`` makes ordinary ones of them), and those
    of norms that evaluation does not reach.

    Where processes were started together (``torch.distributed``), each of them must call this with the same network and
    its own part of the data, and all end with the statistics of all data. Synchronised batch norms take the batches of
    all processes together as one, up to the last that each process has.

    Args:
        model: a slim network, or any other whose statistics do not fit.
        data: batches, as a training loop iterates over them: a tensor (N, ...), or a tuple, list or dict with one. They
            are moved to the model's device.
        batches: the most batches to read.

    Raises:
        TypeError: if ``data`` cannot be iterated over, if a batch holds no tensor, or if parts of the model
            are compiled or scripted.
        ValueError: if there is no batch, if the network cannot run one (images of another size or type, one image
            where a norm needs two), or if statistics are not finite.
        RuntimeError: if another process failed.
        Exception: whatever the data raise. After any error the statistics are as before.

    Examples:
        >>> norm = nn.BatchNorm1d(1)
        >>> reestimate_statistics(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [9.0]])])
        >>> norm.running_mean, norm.running_var
        (tensor([4.5000]), tensor([5.]))
    """
    check_model(model)
    check_integer("batches", batches, least=1)
    check_data(data)
    network = unwrapped(model)
    norms = {name: module for name, module in network.named_modules() if statistics_of(module)}
    if norms:
        _check_eager(network)
        device = device_of(network)
        with random_state_kept(device), evaluating(network), ExitStack() as stack:
            stack.callback(reshard, network)
            estimates = [stack.enter_context(estimate_of(name, norm)) for name, norm in norms.items()]
            passes = _run(network, data, batches, device)
            for estimate in estimates:
                estimate.settle()
            _pool(estimates, passes, device)
            _check_finite(estimates)


def _check_eager(network: nn.Module) -> None:
    for name, module in network.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if scripted or hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            raise TypeError(
                f"model must not be {'scripted' if scripted else 'compiled'} in part, but its module {name!r}, a "
                f"{type(module).__name__}, is; estimate first and compile afterwards"
            )


def _run(network: nn.Module, data: Iterable[Any], batches: int, device: torch.device) -> int:
    """Run the network on its batches; return their number.

    Of several processes, each learns after every batch how the others are. Where they meet within a pass (synchronised
    norms, sharded weights), a pass begins only once each has a batch.
    """
    reading, passes = _read(network, data, batches, device), 0
    meet = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    meet = processes.number() > 1 and (meet or any(map(is_sharded, network.parameters())))
    while True:
        progress = _FAILED
        try:
            inputs = next(reading, None)
            if inputs and not meet:
                _forward(network, inputs, passes)
            progress = _GOING_ON if inputs else _OUT_OF_DATA
        finally:
            everyone = processes.gathered(progress, device)
        if _FAILED in everyone:
            raise RuntimeError("another process could not estimate its statistics; its error says why")
        if _GOING_ON not in everyone or (meet and _OUT_OF_DATA in everyone):
            return passes
        if inputs and meet:
            _forward(network, inputs, passes)
        passes += bool(inputs)


def _read(network: nn.Module, data: Iterable[Any], batches: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    for place, batch in enumerate(islice(data, batches)):
        yield tuple(tensor.to(device) for tensor in inputs_of(batch, network, place))


def _forward(network: nn.Module, inputs: tuple[Tensor, ...], place: int) -> None:
    try:
        network(*inputs)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        got = ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in inputs)
        sizes = getattr(network, "slim_recipe", {}).get("input_shapes", ())
        made_for = ", ".join(f"(N, {', '.join(map(str, shape[1:]))})" for shape in sizes)
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.get_default_dtype())
        raise ValueError(
            f"data must yield what the network was trained on, {made_for or 'images'} of {dtype} or the like, and more "
            f"than one image a batch; on batch {place}, {got}, it raised {type(error).__name__}: {error}"
        ) from error


def _pool(estimates: list[Estimate], passes: int, device: torch.device) -> None:
    """Average the statistics of all processes, each batch alike; raise if there was none."""
    if processes.number() > 1:
        sums = [estimate.sums.to(device) for estimate in estimates]
        total = processes.summed(torch.cat([sums[0].new_tensor([passes]), *sums]))
        passes = int(total[0])
        for estimate, values in zip(estimates, torch.split(total[1:], [len(own) for own in sums]), strict=True):
            estimate.sums = values
    if not passes:
        raise ValueError("data must yield at least one batch, got none (an iterator that was used up yields none)")


def _check_finite(estimates: list[Estimate]) -> None:
    for estimate in estimates:
        if not all(bool(tensor.isfinite().all()) for tensor in estimate.moments):
            raise ValueError(
                f"the statistics of norm {estimate.name!r} are not finite: data or weights hold inf or nan, or are too "
                f"large for {estimate.moments[0].dtype}"
            )
