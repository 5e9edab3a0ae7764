"""Put two heads on one small model of every module of timm and check what comes out; print the table of the docs.

    python tests/benchmarks/two_head_coverage.py > docs/two_head_coverage.md
    python tests/benchmarks/two_head_coverage.py resnet18 vit_base_patch16_224   # only these

For each: the logits are those of the classifier alone, to the bit, in evaluation; the embeddings have unit length; the
gradient of either head reaches the first layer; and a training pass updates every running statistic as the classifier
alone would. A failure is printed in the table in place of the shapes.
"""

import copy
import sys
import warnings

import timm
import torch
from timm.models import list_modules, model_entrypoint

from pml_extensions.models import TwoHead

NAMES = [
    "beit_base_patch16_224",
    "halonet_h1",
    "test_byobnet",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "test_convnext",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "test_efficientnet",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hieradet_small",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "test_mambaout",
    "test_coatnet",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "test_nfnet",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "test_resnet",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "test_vit",
    "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]
SETTINGS = {  # three that take minutes at the size of their configuration
    "deepseek_vit_412m": {"img_size": 112},
    "gemma4_vit_167m": {"img_size": 192},
    "qwen3_vit_88m": {"img_size": 192},
}


def module_of(name):
    return model_entrypoint(name).__module__.rpartition(".")[2]


def build(name):
    settings = SETTINGS.get(name, {})
    model = timm.create_model(name, num_classes=10, **settings)
    channels, height, width = model.pretrained_cfg["input_size"]
    size = settings.get("img_size")
    return model, (channels, size or height, size or width)


def shape(features):
    if isinstance(features, list | tuple):
        return ", ".join(map(shape, features))
    return " x ".join(map(str, features.shape[1:]))


def check_values(model, two, images):
    expected, outputs = model.eval()(images), two.eval()(images)
    assert torch.equal(outputs.logits, expected), "logits differ from the classifier's"
    assert (outputs.embeddings.norm(dim=1) - 1).abs().max() < 1e-5, "embeddings are not of unit length"


def check_training(model, two, images):
    classifier = model.get_classifier()
    for part in classifier if isinstance(classifier, tuple) else (classifier,):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.02)  # some start at zero, and let no gradient through
    alone = copy.deepcopy(model).train()
    with torch.random.fork_rng():
        alone.forward_head(alone.forward_features(images))
    outputs = two.train()(images)
    changed = [k for (k, b), other in zip(model.named_buffers(), alone.buffers(), strict=True) if not same(b, other)]
    assert not changed, f"statistics differ: {changed[0]}"
    first = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
    for output in outputs:
        (output * torch.randn_like(output)).sum().backward(retain_graph=True)
        assert first.grad.any(), "no gradient reaches the trunk"
        model.zero_grad()


def same(one, other):
    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5, equal_nan=True)


def row(name):
    model, size = build(name)
    images = torch.randn(2, *size)
    two = TwoHead(model, 16)
    with torch.no_grad():
        check_values(model, two, images)
        map_shape = shape(model.forward_features(images))
    check_training(model, two, images)
    return f"| {module_of(name)} | {name} | {map_shape} | {two.embedding.in_features} |"


def main(names):
    warnings.simplefilter("ignore")
    missing = set(list_modules()) - {module_of(name) for name in NAMES}
    print("# Two heads on every module of timm\n")
    print(f"`python tests/benchmarks/two_head_coverage.py`; timm {timm.__version__}, torch {torch.__version__}.")
    print(f"Modules of timm without a model here: {', '.join(sorted(missing)) or 'none'}.\n")
    print("| module | model | last feature map | embedding reads |")
    print("|---|---|---|---|")
    failures = 0
    for name in names:
        torch.manual_seed(0)
        try:
            print(row(name), flush=True)
        except Exception as error:  # noqa: BLE001  # the table says what went wrong, and the run goes on
            failures += 1
            print(f"| {module_of(name)} | {name} | {type(error).__name__}: {str(error)[:150]} | |", flush=True)
    print(f"\n{len(names) - failures} of {len(names)} pass.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)
