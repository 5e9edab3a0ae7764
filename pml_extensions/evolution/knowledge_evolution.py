"""Knowledge Evolution: train a network in generations, and reset a part of its weights between them.

Source: Taha, Shrivastava and Davis, arXiv:2103.05152 (CVPR 2021), and the published code. Here the model and its
training loop stay the user's own; only the weights change, between generations.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pml_extensions._constructors import checked_constructor
from pml_extensions._parametrized import refresh_hooked
from pml_extensions._settings import check_integer, check_model, check_object
from pml_extensions._sharding import reshard
from pml_extensions.evolution.bits import write
from pml_extensions.evolution.checkpoint import Progress, pack, unpack
from pml_extensions.evolution.checks import check_masks
from pml_extensions.evolution.draws import draw, generator_for
from pml_extensions.evolution.resetting import KaimingNormal, KaimingUniform, ResettingRule
from pml_extensions.evolution.splits.protocols import Slimming, Split
from pml_extensions.evolution.summary import Summary, summarize

__all__ = ["Generation", "KnowledgeEvolution", "Split"]


@checked_constructor
@dataclass(frozen=True)
class Generation:
    """One generation of training; ``index`` counts from 0."""

    index: int


@checked_constructor
class KnowledgeEvolution:
    """Split a model's weights once into a fit- and a reset-hypothesis, and reset the latter between generations.

    A generation trains the whole network, in whatever way. The next one starts from W <- M * W + (1 - M) * W_random,
    where the mask M is 1 on the fit-hypothesis. Between the resets nothing is hooked, wrapped or copied: a training
    step costs what it did.

    Args:
        model: the network, on any device. Its parameters are written in place, so optimisers, compiled models and
            views keep them.
        split: called once with the model; returns for each parameter to split (by its name in
            ``model.named_parameters()``) a bool mask of its shape, True = fit-hypothesis. ``KELS``,
            ``WELS``, ``LaterLayers``, ``LastLayer``, ``Magnitude``, or any function of that form (``Split``).
        rule: draws W_random; see ``pml_extensions.evolution.resetting``.
        seed: of the draws. They depend on it, on the generation and on the parameter alone, not on the device, the
            rank or what training did to the global generators.
        reset_frozen: also reset parameters that do not require gradients when a generation starts.

    Attributes:
        masks: name -> bool mask on the CPU (one byte a weight), fixed over the generations.
        generation: index of the current generation.

    Raises:
        TypeError: if ``model`` is no module, ``split`` or ``rule`` no callable, ``seed`` no integer, or the split
            returns something else than bool masks by name.
        ValueError: if the model is on the meta device, quantised or not yet initialised, or if the split finds no
            parameter, names an unknown one, or returns a mask of another shape.

    Examples:
        >>> from pml_extensions.evolution import WELS
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> for generation in KnowledgeEvolution(model, WELS(0.5)).generations(3):
        ...     print(f"train generation {generation.index} here")
        train generation 0 here
        train generation 1 here
        train generation 2 here
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        *,
        rule: ResettingRule = KaimingUniform(),  # noqa: B008 (immutable)
        seed: int = 0,
        reset_frozen: bool = False,
    ) -> None:
        check_model(model)
        check_object("split", split, "WELS(0.5)")
        check_object("rule", rule, "KaimingUniform()")
        check_integer("seed", seed)
        self.model = model
        self.split = split
        self.rule = rule
        self.seed = seed
        self.reset_frozen = reset_frozen
        self.generation = 0
        self._trained = False  # the current generation, to its end
        self.masks: dict[str, Tensor] = check_masks(model, split(model))
        if all(bool(mask.all()) for mask in self.masks.values()):
            warnings.warn(f"{split} keeps every weight: a reset will change nothing", stacklevel=3)

    def __repr__(self) -> str:
        return (
            f"KnowledgeEvolution({type(self.model).__name__}, {self.split}, rule={self.rule}, seed={self.seed}, "
            f"reset_frozen={self.reset_frozen}, generation={self.generation})"
        )

    def reset(self) -> Generation:
        """Start the next generation: W <- M * W + (1 - M) * W_random, in place; returns the new generation.

        If the rule raises, nothing was written and the generation is the old one.
        """
        self._redraw(self.rule, self.generation + 1, self.masks)
        self.generation += 1
        self._trained = False
        return Generation(self.generation)

    def start(self, rule: ResettingRule = KaimingNormal()) -> Generation:  # noqa: B008 (immutable)
        """Draw all split weights, of both hypotheses, and begin at generation 0: the published start from scratch."""
        check_object("rule", rule, "KaimingNormal()")
        self._redraw(rule, "start", {name: torch.zeros((), dtype=torch.bool) for name in self.masks})
        self.generation = 0
        self._trained = False
        return Generation(self.generation)

    def generations(
        self, n: int, *, optimizer: Optimizer | None = None, progress: bool = False
    ) -> Iterator[Generation]:
        """Yield the generations up to the n-th, each after a reset; the current one as it is, unless it is trained.

        A generation counts as trained when the loop asks for the next one, so a loop that was left, or resumed from a
        state that was saved within it, goes on in the same generation. The state remembers it.

        Args:
            n: number of all generations, those already trained included.
            optimizer: its state (momentum and the like) is cleared at each reset. The published code makes a new
                optimiser and schedule for each generation instead.
            progress: show a progress bar over the generations (tqdm).

        Raises:
            TypeError: if ``n`` is no integer, or ``optimizer`` no optimiser.
            ValueError: if no generation is left up to the n-th, or the optimiser is that of another model.
        """
        check_integer("n", n)
        least = self.generation + 1 + self._trained
        if n < least:
            state = "trained" if self._trained else "current"
            raise ValueError(
                f"n counts all generations and must be at least {least}: the {state} one has index {self.generation}; "
                f"got {n}"
            )
        if optimizer is not None:
            _check_optimizer(optimizer, self.model)
        generations = self._generations(n, optimizer)
        if not progress:
            return generations
        from tqdm.auto import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415 (on request)

        return iter(tqdm(generations, desc="generation", total=n, initial=least - 1))

    def _generations(self, n: int, optimizer: Optimizer | None) -> Iterator[Generation]:
        while not self._trained or self.generation + 1 < n:
            if self._trained:
                self.reset()
                _clear_state(optimizer)
            yield Generation(self.generation)
            self._trained = True

    def _redraw(self, rule: ResettingRule, key: int | str, masks: Mapping[str, Tensor]) -> None:
        """Draw new values for all weights first, then write those where the mask is False."""
        reshard(self.model)
        generators = {
            name: generator_for(self.seed, key, place)
            for place, (name, parameter) in enumerate(self.model.named_parameters())
            if name in masks and (parameter.requires_grad or self.reset_frozen)
        }
        if not generators:
            warnings.warn(
                "nothing was reset: no parameter that is split requires gradients; with reset_frozen=True they are "
                "reset all the same",
                stacklevel=3,
            )
        changes = draw(self.model, rule, generators, masks)
        write([tensor for tensor, _ in changes], [flips for _, flips in changes])
        refresh_hooked(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside the model's own state, is needed to go on: plain numbers, strings and one bit a weight.

        Save it with the state of the model and the optimiser; ``torch.load`` reads it with ``weights_only=True``.
        """
        return pack(self.model, self.split, self.masks, Progress(self.seed, self.generation, self._trained))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: masks, seed and generation are taken from it; the model's weights are not touched.

        Raises:
            TypeError: if ``state`` is no dict.
            ValueError: if the state is of another architecture, another split or another version of the format, or
                if something in it is missing or broken; nothing is taken from it then.
        """
        self.masks, progress = unpack(self.model, self.split, state, self.masks)
        self.seed, self.generation, self._trained = progress

    def slim(self, data: Iterable[Any] | None = None, *, batches: int = 50) -> Any:
        """Return the fit-hypothesis alone: a new, narrower model of the same class, ready for use if ``data`` is given.

        The dense model is not touched, and shares no tensor with it. In a network whose norms run over channels (layer,
        group and RMS norm) the slim network is the narrower network, not the dense one without its reset-hypothesis:
        its statistics are those of the kept channels.

        Args:
            data: training batches, as a training loop iterates over them (tensors, or tuples, lists or dicts with one),
                from which the statistics of batch norms are estimated anew, without training; see
                ``reestimate_statistics``. A network without such norms does not touch them. Without ``data`` the slim
                network has the statistics of the dense one, as published: it computes what the dense one computes
                without its reset-hypothesis, and is a start for more training rather than a network to use.
            batches: the most batches to read.

        Raises:
            TypeError: if the split has no slim network (only that of ``KELS`` has), or ``data`` are no batches.
            TracingError: if no consistent slim network can be made; nothing is returned then.
            ValueError: if there is no batch, if the network cannot run one, or if statistics are not finite.

        Examples:
            >>> from pml_extensions.evolution import KELS
            >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
            >>> ke = KnowledgeEvolution(model, KELS(0.5, example_input=torch.zeros(2, 3)))
            >>> slim = ke.slim([torch.randn(16, 3)])  # after the generations; your training loader
            >>> slim[0]
            Linear(in_features=3, out_features=4, bias=True)
        """
        if not isinstance(self.split, Slimming):
            raise TypeError(f"{self.split} has no slim network: its fit-hypothesis is no narrower network; use KELS")
        return self.split.slim(self.model) if data is None else self.split.slim(self.model, data, batches=batches)

    def summary(self, *, latency: bool | Tensor | tuple[Tensor, ...] = False) -> Summary:
        """Return a table of all parameters: how many lie in each hypothesis, and why a parameter is not split.

        With ``KELS`` its ``slim`` compares operations and parameters of the dense and the slim network, and lists
        every hidden width that stayed whole, with the reason and the line of the model's code.

        Args:
            latency: an input of the model (a tensor, or a tuple of them) to measure an eager forward pass with, of the
                dense network and of the slim one in turn; True for the split's ``example_input``. Takes 23 passes of
                each, in evaluation mode.

        Raises:
            TypeError: if ``latency`` is something else, or the split has no slim network.
        """
        return summarize(self.model, self.split, self.masks, latency)


def _check_optimizer(optimizer: Any, model: nn.Module) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"optimizer must hold parameters of the model that evolves, got a {type(optimizer).__name__} of others; "
            "make it from model.parameters()"
        )


def _clear_state(optimizer: Optimizer | None) -> None:
    """Forget momentum and the like, also in an optimiser that another one wraps (Lookahead)."""
    if optimizer is not None:
        optimizer.state.clear()
        for inner in vars(optimizer).values():
            if isinstance(inner, Optimizer):
                _clear_state(inner)
