"""The smallest model of each of timm's modules, as `tests/benchmarks/slim_coverage.py list` finds them."""

SMALLEST = (
    "test_convnext", "test_efficientnet", "test_vit", "test_nfnet", "test_mambaout", "test_byobnet", "test_resnet",
    "starnet_s050", "test_coatnet", "test_vit_relpos", "dla46x_c", "mobilevit_xxs", "edgenext_xx_small",
    "mobilenetv3_small_050", "ese_vovnet19b_slim_dw", "repghostnet_050", "efficientvit_m0", "ghostnet_050",
    "regnetx_002", "cspnext_tiny", "iformer_t", "xcit_nano_12_p8_224", "cs3darknet_focus_s", "efficientvit_b0",
    "swiftformer_xs", "efficientformerv2_s0", "pvt_v2_b0", "fasternet_t0", "fastvit_t8", "lcnetv2_small",
    "inception_next_atto", "rexnet_100", "pit_ti_224", "hardcorenas_b", "repvit_m1", "vit_tiny_patch16_dinov3_qkvb",
    "coat_tiny", "convit_tiny", "deit_tiny_patch16_224", "gmlp_ti16_224", "hgnetv2_b0", "shvit_s1",
    "vit_tiny_r_s16_p8_224", "cpubone_nano", "efficientvim_m1", "crossvit_tiny_240", "levit_128s", "densenet121",
    "halonet_h1", "dpn48b", "visformer_tiny", "resnest14d", "csatv2", "resnetv2_18", "legacy_seresnet18",
    "poolformerv2_s12", "cait_xxs24_224", "skresnet18", "gcvit_xxtiny", "tiny_vit_5m_224", "efficientformer_l1",
    "hrnet_w18_small", "lowformer_b0", "nest_tiny", "convmixer_768_32", "vitamin_small_224", "legacy_xception",
    "tnt_s_legacy_patch16_224", "inception_v3", "rdnet_tiny", "twins_svt_small", "mvitv2_tiny", "res2next50",
    "volo_d1_224", "sam2_hiera_tiny", "xception41p", "sequencer2d_s", "hiera_tiny_224",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "davit_tiny",
    "focalnet_tiny_srf", "selecsls42", "tresnet_m", "nextvit_small", "inception_v4", "inception_resnet_v2",
    "mobilenetv5_base", "pnasnet5large", "samvit_base_patch16_224", "naflexvit_base_patch16_parfac_gap",
    "beit_base_patch16_224", "qwen3_vit_88m", "nasnetalarge", "vgg11", "gemma4_vit_167m", "deepseek_vit_412m",
)  # fmt: skip
