"""The papers' networks with ImageNet weights, and what they expect of an image."""

from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision import transforms
from torchvision.models import GoogLeNet_Weights
from torchvision.models import googlenet as torchvision_googlenet

GOOGLENET = "googlenet"  # timm has none; torchvision's has batch norms


def pretrained(name: str, weights: Path | None, num_classes: int | None = None) -> nn.Module:
    """Return a network with ImageNet weights, from a file or as its library gets them.

    Args:
        name: "googlenet" for torchvision's, or a name in timm.
        weights: a file with a state dict of it, as ``torch.save`` or safetensors write it.
        num_classes: of a new last layer; None keeps that of ImageNet.

    Raises:
        RuntimeError: if the weights cannot be had, or are another network's.
    """
    try:
        if name == GOOGLENET:
            return googlenet(weights, num_classes)
        file = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
        classes = {} if num_classes is None else {"num_classes": num_classes}
        return timm.create_model(name, pretrained=True, **file, **classes)
    except (OSError, RuntimeError, KeyError, UnpicklingError) as error:
        where = f"in {weights}" if weights else "over the network; with --weights FILE they are read from a file"
        raise RuntimeError(f"no weights of {name} could be had {where}: {error}") from error


def googlenet(weights: Path | None, num_classes: int | None) -> nn.Module:
    """Return torchvision's GoogLeNet without its two heads for training."""
    if weights:
        model = torchvision_googlenet(transform_input=True, aux_logits=False, init_weights=False)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith("aux")})
    else:
        model = torchvision_googlenet(weights=GoogLeNet_Weights.IMAGENET1K_V1)
    if num_classes is not None:
        model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model


def to_input(model: nn.Module) -> transforms.Compose:
    """Return the transform from an image to what the network expects."""
    config = getattr(model, "pretrained_cfg", {})
    mean, std = config.get("mean", IMAGENET_DEFAULT_MEAN), config.get("std", IMAGENET_DEFAULT_STD)
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
