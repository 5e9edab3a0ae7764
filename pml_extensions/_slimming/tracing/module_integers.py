"""The integers that torch.nn's own classes hold beside their weights, which their forward does not always read."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

SizeOf = tuple[str, int]

_TABLE: list[tuple[type[nn.Module], dict[str, SizeOf]]] = [
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.Bilinear, {"out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)}),
    (_ConvTransposeNd, {"in_channels": ("weight", 0)}),
    (_ConvNd, {"out_channels": ("weight", 0)}),
    (_NormBase, {"num_features": ("weight", 0)}),
    (_NormBase, {"num_features": ("running_mean", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.Embedding, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
    (nn.RNNBase, {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}),
    (nn.MultiheadAttention, {"embed_dim": ("out_proj.weight", 0)}),
]


def sizes_of(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Yield (attribute, tensor, dimension): the attribute is the size of that dimension of that tensor."""
    for kind, attributes in _TABLE:
        if isinstance(module, kind) and not (kind is _ConvNd and isinstance(module, _ConvTransposeNd)):
            for attribute, (tensor, dimension) in attributes.items():
                if isinstance(_get(module, tensor), Tensor) and isinstance(getattr(module, attribute, None), int):
                    yield attribute, tensor, dimension


def _get(module: nn.Module, path: str) -> object:
    value: object = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def derived_integers(module: nn.Module) -> dict[str, int]:
    """Return what the integers of a torch.nn module must be, given its tensors and its other integers."""
    values = {attribute: _get(module, tensor).shape[dimension] for attribute, tensor, dimension in sizes_of(module)}  # type: ignore[attr-defined]
    if isinstance(module, _ConvNd) and isinstance(module.weight, Tensor):
        transposed = isinstance(module, _ConvTransposeNd)
        name = "out_channels" if transposed else "in_channels"
        values[name] = module.weight.shape[1] * module.groups
    if isinstance(module, nn.MultiheadAttention):
        values["head_dim"] = module.out_proj.weight.shape[1] // module.num_heads
    return values
