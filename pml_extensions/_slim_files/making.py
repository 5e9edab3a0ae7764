"""How a timm model is made that has the modules of a slim one: its name, arguments, and what was called on it since."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from pml_extensions._module_trees import Tree, describe, other_modules

__all__ = ["Steps", "make", "way_to"]

Steps: TypeAlias = Sequence[Sequence[Any]]

_CURES = {  # by what the differing modules are called
    "Parametrized": "remove its parametrizations first (torch.nn.utils.parametrize.remove_parametrizations)",
    "SyncBatchNorm": "convert its synchronised norms back first",
    "is FrozenBatchNorm": "unfreeze its norms first (timm.layers.unfreeze_batch_norm_2d), and freeze them once loaded",
    "is OptimizedModule": "save it with the module that was given to torch.compile in its place",
    "quant": "save it before it is quantised, and quantise what is loaded",
    r"^the model is \w*Feature": "{} here probably features_only=True",
    "downsample.* is .*Pool": "{} here probably output_stride",
    "Norm.* would be (Identity|not)|(Identity|there) and .*Norm": "{} here probably global_pool or class_token",
    "DropPath|DropBlock": "{} here probably drop_path_rate",
    "Dropout": "{} here probably drop_rate",
    "Pool": "{} here probably global_pool",
    "Norm": "{} here probably norm_layer",
    r"[A-Z]\w*LU\b|[sS]wish|Mish|[sS]igmoid|Tanh": "{} here probably act_layer",
    "": "{} such as act_layer, norm_layer, drop_path_rate or a depth; of a model in which modules were replaced, "
    "shared or removed since, save the state_dict() instead",
}
_PASSING = "model_args must name what else the dense model was created with,"


def make(architecture: str, arguments: Mapping[str, Any], steps: Steps = ()) -> Any:
    """Return a fresh timm model after ``steps``: names of what was called on it, with the arguments.

    Raises:
        ValueError: if the installed timm has no model of this name.
    """
    import timm  # noqa: PLC0415  # only for files
    from timm import utils  # noqa: PLC0415

    if not timm.is_model(architecture):
        raise ValueError(f"timm {timm.__version__} has no architecture {architecture!r}; install another one")
    host: Any = utils
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(architecture, **arguments)
        for name, *settings in steps:
            if name == "reparameterize_model":
                model = host.reparameterize_model(model)
            else:
                model.reset_classifier(*settings)
    return model


def way_to(tree: Tree, architecture: str, arguments: Mapping[str, Any], classes: int | None) -> tuple[Steps, Any]:
    """Return the steps after which a fresh model has the modules of ``tree``, and that model.

    Raises:
        ValueError: if there are none among a new classifier and the fusing of branches.
    """
    first = ""
    for steps in _ways(tree, classes):
        try:
            model = make(architecture, arguments, steps)
        except Exception:
            if not steps:
                raise
            continue  # not every model can be fused, or pool in every way
        problem = other_modules(describe(model), tree)
        if problem is None:
            return steps, model
        first = first or problem
    cure = next(cure for pattern, cure in _CURES.items() if re.search(pattern, first)).format(_PASSING)
    raise ValueError(f"making the slim model again gives other modules, and so other tensors: {first}; {cure}")


def _ways(tree: Tree, classes: int | None) -> Iterator[Steps]:
    """Yield what may have been called on a model, the simplest first."""
    settings = [module["settings"] for module in tree.values()]
    pools = dict.fromkeys(s[name] for s in settings for name in ("global_pool", "pool_type") if name in s)
    fuse = ["reparameterize_model"]
    resets = (
        [] if classes is None else [["reset_classifier", classes, pool] for pool in [*pools, ""] if pool is not None]
    )
    yield []
    yield from ([reset] for reset in resets)
    yield from ([[*reset, True]] for reset in resets)  # timm's reset_other
    yield [fuse]
    yield from (pair for reset in resets for pair in ([reset, fuse], [fuse, reset]))
