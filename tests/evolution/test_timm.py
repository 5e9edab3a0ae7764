"""A variety of timm's architectures: what is split, and that nothing else is written."""

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import WELS, KnowledgeEvolution

TABLES = "table, token or scale: not multiplied with features"
PLACES = "table of positions: the axis that it adds to a product is padded or gathered"
MODELS = {  # the parameters with two or more axes that are no weights, by the last part of the name
    "resnet18": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "efficientnet_cc_b0_4e": {},  # mixed experts: the weights are matrices without a layer
    "eca_nfnet_l0": {"gain": TABLES},  # scaled weight standardisation
    "resnetv2_50x1_bit": {},  # weight standardisation
    "convnext_atto": {},
    "lambda_resnet26t": {},  # a 3-d convolution over positions
    "botnet26t_256": {"height_rel": PLACES, "width_rel": PLACES},
    "sequencer2d_s": {},  # LSTMs
    "swiftformer_xs": {"gamma": TABLES},  # a matrix of one column without a layer
    "levit_128s": {"attention_biases": TABLES},
    "mvitv2_tiny": {"rel_pos_h": TABLES, "rel_pos_w": TABLES},
    "swin_tiny_patch4_window7_224": {"relative_position_bias_table": TABLES},
    "vit_tiny_patch16_224": {"cls_token": TABLES, "pos_embed": TABLES},
    "test_vit3": {"pos_embed": TABLES, "reg_token": TABLES, "latent": TABLES},
    "xcit_nano_12_p16_224": {"cls_token": TABLES, "temperature": TABLES},
    "test_vit4": {"pos_embed": TABLES, "reg_token": TABLES},
}


def zeros(name):
    """Return a model whose parameters are all zero, without the time that drawing them would take."""
    with torch.device("meta"):
        model = timm.create_model(name)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.zero_()
    return model


@pytest.mark.requires("timm>=1.0.22")  # the first whose models are all made without data
@pytest.mark.parametrize("name", MODELS)
def test_splits_and_resets(name):
    model = zeros(name)
    ke = KnowledgeEvolution(model, WELS(0.5))
    ke.reset()
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if key in ke.masks:
            assert not tensor[ke.masks[key]].any()
            assert tensor.count_nonzero() >= 0.999 * (~ke.masks[key]).sum()
        else:
            assert not tensor.any()
    others = {row.name: row.reason for row in ke.summary().rows if len(row.shape) > 1 and row.reason}
    assert {key.rpartition(".")[2]: reason for key, reason in others.items()} == MODELS[name]


def test_every_layer_with_a_weight_is_split():
    model = zeros("levit_128s")
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert list(KnowledgeEvolution(model, WELS(0.5)).masks) == [f"{layer}.weight" for layer in layers]
