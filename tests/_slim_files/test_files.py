"""Slim models in files: saved, made again, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils import parametrizations, prune

from pml_extensions._slim_files.answers import question
from pml_extensions._slim_files.files import digest
from pml_extensions.evolution import KELS, load_slim, reestimate_statistics, save_slim
from pml_extensions.models import TwoHead

KEY = "pml_extensions_slim"
PLAIN = (bool, int, float, str, tuple, list, torch.Size, torch.dtype, type(None))


@pytest.fixture
def slim():
    torch.manual_seed(0)
    return KELS(0.3, multiple=2).slim(timm.create_model("test_resnet", num_classes=5, in_chans=1)).eval()


@pytest.fixture
def path(slim, tmp_path):
    save_slim(slim, tmp_path / "slim.safetensors")
    return tmp_path / "slim.safetensors"


def rewritten(path, **changes):
    """Write the file again as with other metadata; a value of None leaves a key out."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[KEY])
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None and key != "digest"}
    state = load_file(path)
    save_file(state, path, metadata={KEY: json.dumps({**metadata, "digest": digest(metadata, state)})})


def with_tensors(path, change):
    """Change the tensors of a file, and nothing else."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata=metadata)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    torch.manual_seed(0)
    slim = KELS(0.5).slim(timm.create_model(name, num_classes=5)).eval()
    save_slim(slim, tmp_path / "a")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = load_slim(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(2, *slim.pretrained_cfg["input_size"])
    assert type(again) is type(slim)
    assert torch.equal(again(x), slim(x))
    assert again.state_dict().keys() == slim.state_dict().keys()


def test_loaded_tensors_begin_where_fresh_ones_do(path):
    """Some kernels add in another order where memory begins elsewhere; answers would differ in the last bit."""
    model = load_slim(path)
    assert not [name for name, tensor in model.state_dict().items() if tensor.data_ptr() % 64]


def test_rate_multiple_input_channels_and_a_new_classifier(slim, path):
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(load_slim(path)(x), slim(x))
    slim.reset_classifier(2)
    save_slim(slim, str(path))
    assert load_slim(path)(x).shape == (2, 2)
    assert list(path.parent.iterdir()) == [path]


def test_statistics_anew_are_saved_and_a_loaded_model_can_estimate_them(path, tmp_path):
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    data = list((torch.randn(12, 1, 64, 64) + 1).split(4))
    slim = KELS(0.3, multiple=2).slim(dense, data).eval()
    save_slim(slim, tmp_path / "anew.safetensors")
    again, published = load_slim(tmp_path / "anew.safetensors"), load_slim(path)
    assert torch.equal(again(data[0]), slim(data[0]))
    assert not torch.equal(published(data[0]), slim(data[0]))
    reestimate_statistics(published, data)
    assert torch.equal(published(data[0]), slim(data[0]))
    assert not any(module.training for module in published.modules())


def test_half_precision_stays(slim, path):
    save_slim(slim.half(), path)
    assert {p.dtype for p in load_slim(path).parameters()} == {torch.float16}


def made(name, **arguments):
    torch.manual_seed(0)
    return KELS(0.5).slim(timm.create_model(name, num_classes=5, **arguments)).eval()


def then(slim, method, *arguments):
    getattr(slim, method)(*arguments)
    return slim


def with_norms_in_single_precision(slim):
    for module in slim.bfloat16().modules():
        if "Norm" in type(module).__name__:
            module.float()
    return slim


def with_settings_of_its_own(slim):
    slim.layer1[0].bn1.eps, slim.layer2[0].bn1.momentum, slim.drop_rate = 1e-2, 0.3, 0.25
    slim.layer2[0].conv2.dilation = slim.layer2[0].conv2.padding = (2, 2)
    slim.layer3[0].bn1.weight.requires_grad_(requires_grad=False)
    slim.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    slim.grad_checkpointing, slim.half_width = True, math.inf
    return slim


def with_another_head(slim):
    slim.reset_classifier(7, reset_other=True)
    return slim


def noted(slim):
    slim.fc.weight.lr_scale = 0.1
    return slim


def after_a_pass_with_gradients(slim):
    slim(torch.randn(1, 3, 224, 224))  # caches tensors of a graph
    return slim


RESTORED = {
    "global_pool": lambda: made("test_resnet", global_pool="max"),
    "both pools": lambda: made("test_byobnet", global_pool="catavgmax"),
    "output_stride": lambda: made("resnet18", output_stride=16),
    "in_chans": lambda: made("test_resnet", in_chans=4),
    "img_size": lambda: made("test_vit", img_size=96),
    "patch_size": lambda: made("test_vit", patch_size=32),
    "drop_rate": lambda: made("test_vit", drop_rate=0.3, attn_drop_rate=0.2),
    "norms in single precision": lambda: with_norms_in_single_precision(made("test_convnext")),
    "double precision": lambda: made("test_resnet").double(),
    "new classifier": lambda: then(made("test_resnet"), "reset_classifier", 7, "max"),
    "new classifier, another head": lambda: then(made("test_convnext"), "reset_classifier", 7, "max"),
    "new classifier in place of the whole head": lambda: with_another_head(made("test_convnext")),
    "no classifier": lambda: then(made("test_resnet"), "reset_classifier", 0, ""),
    "no classifier, tokens": lambda: then(made("test_vit"), "reset_classifier", 0, ""),
    "input size": lambda: then(made("test_vit"), "set_input_size", (96, 64)),
    "input size, windows": lambda: then(made("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1)),
                                        "set_input_size", 192),
    "fused": lambda: reparameterize_model(made("repghostnet_050")),
    "fused, then a new classifier": lambda: then(reparameterize_model(made("repvit_m0_9")), "reset_classifier", 3),
    "checkpointing": lambda: then(made("test_resnet"), "set_grad_checkpointing"),
    "frozen": lambda: made("test_resnet").requires_grad_(requires_grad=False),
    "settings": lambda: with_settings_of_its_own(made("test_resnet")),
    "noted on a parameter": lambda: noted(made("test_resnet")),
    "tokens that no argument names": lambda: made("test_vit", reg_tokens=2),
    "a pass before": lambda: after_a_pass_with_gradients(made("levit_128s")),
    "inside two heads": lambda: KELS(0.5).slim(TwoHead(timm.create_model("test_resnet"), 8).eval()).model,
}  # fmt: skip
LONG = {"fused, then a new classifier", "output_stride"}
MODEL_ARGS = {"input size, windows": {"depths": [1, 1, 1, 1]}}


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # timm's interpolation of tables
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in RESTORED])
def test_what_was_saved_comes_back(name, tmp_path):
    slim = RESTORED[name]()
    modes = [module.training for module in slim.modules()]
    save_slim(slim, tmp_path / "a", model_args=MODEL_ARGS.get(name))
    assert [module.training for module in slim.modules()] == modes
    again = load_slim(tmp_path / "a")
    check_same(slim, again)


def test_what_was_loaded_can_be_saved(tmp_path):
    slim = made("test_resnet", act_layer="silu", global_pool="max")
    save_slim(slim, tmp_path / "a", model_args={"act_layer": "silu"})
    again = load_slim(tmp_path / "a")
    save_slim(again, tmp_path / "b")
    check_same(slim, load_slim(tmp_path / "b"))


def check_same(slim, again):
    ours, theirs = dict(again.named_modules()), dict(slim.named_modules())
    assert {name: type(module) for name, module in ours.items()} == {name: type(m) for name, m in theirs.items()}
    for name, module in theirs.items():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, PLAIN) and k != "training"}
        assert {k: vars(ours[name]).get(k) for k in plain} == plain
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(again, tensors)()), dict(getattr(slim, tensors)())
        assert ours.keys() == theirs.keys()
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert vars(ours[name]) == vars(tensor)
            assert torch.equal(ours[name], tensor)
            assert (ours[name].dtype, ours[name].requires_grad) == (tensor.dtype, tensor.requires_grad)
    images = torch.randn(question(slim, slim.slim_recipe["input_shapes"])[0][0])
    with torch.no_grad():
        assert torch.equal(again.float()(images), slim.float()(images))


REFUSED = {
    "act_layer": ({"act_layer": "silu"}, "is SiLU and would be ReLU; model_args .* act_layer"),
    "drop_path_rate": ({"drop_path_rate": 0.2}, "is DropPath and would be .*; model_args .* drop_path_rate"),
    "norm_layer": ({"norm_layer": "layernorm2d"}, "is LayerNorm2d and would be BatchNorm2d; model_args .* norm_layer"),
    "features_only": (
        {"features_only": True, "out_indices": (1, 2)},
        "is FeatureListNet .*; model_args .* features_only",
    ),
    "output_stride": ({"output_stride": 16}, "is AvgPool2dSame and would be AvgPool2d; model_args .* output_stride"),
    "global_pool": (
        {"global_pool": "avg"},
        "is Identity and would be LayerNorm; model_args .* global_pool or class_token",
    ),
    "layers": ({"layers": [2, 1, 1, 1]}, "layer1.1 is BasicBlock and would be not there; model_args"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_modules_need_the_argument_that_they_come_from(name, tmp_path):
    arguments, message = REFUSED[name]
    torch.manual_seed(0)
    classes = {} if "features" in name else {"num_classes": 5}
    architecture = "test_vit" if name == "global_pool" else "test_resnet"
    slim = KELS(0.5).slim(timm.create_model(architecture, **classes, **arguments)).eval()
    with pytest.raises(ValueError, match=f"other tensors.*{message}"):
        save_slim(slim, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    save_slim(slim, tmp_path / "a", model_args=arguments)
    again, x = load_slim(tmp_path / "a"), torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(again(x), slim(x), rtol=0, atol=0)
    assert [type(module) for module in again.modules()] == [type(module) for module in slim.modules()]
    rates = [getattr(module, "drop_prob", None) for module in slim.modules()]
    assert [getattr(module, "drop_prob", None) for module in again.modules()] == rates


def doubled(module, inputs, output):
    return 2 * output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda slim: slim.layer1.register_forward_hook(doubled), "layer1._forward_hooks is .*doubled.*hooks must be"),
        (lambda slim: slim.fc.weight.register_hook(lambda gradient: 0 * gradient), "fc.weight._backward_hooks is"),
        (lambda slim: prune.l1_unstructured(slim.fc, "weight", 0.5), "fc._forward_pre_hooks is .*L1Unstructured"),
        (lambda slim: nn.utils.spectral_norm(slim.fc), "fc._forward_pre_hooks is .*SpectralNorm"),
        (lambda slim: timm.layers.freeze_batch_norm_2d(slim.layer1), "unfreeze its norms first"),
        (
            lambda slim: setattr(slim, "layer1", torch.compile(slim.layer1)),
            "layer1 is OptimizedModule .*was given to torch.compile",
        ),
        (lambda slim: delattr(slim.layer1[0], "conv2"), "conv2 is not there .*modules were replaced, shared"),
        (lambda slim: setattr(slim.layer1[0], "act2", slim.layer1[0].act1), "act2 is not there and would be ReLU"),
        (
            lambda slim: parametrizations.spectral_norm(slim.fc),
            "fc is ParametrizedLinear .*remove its parametrizations",
        ),
        (lambda slim: setattr(slim.layer1[0], "act_fn", torch.tanh), "act_fn is .*tanh.* and would be not there"),
        (lambda slim: nn.SyncBatchNorm.convert_sync_batchnorm(slim.layer1), "SyncBatchNorm .*norms back first"),
        (
            lambda slim: setattr(slim.layer1[0].conv2, "weight", slim.layer1[0].conv1.weight),
            "what is tied would differ",
        ),
        (lambda slim: setattr(slim, "fc", nn.Linear(3, 5)), "slim must run to be saved"),
    ],
)
def test_changes_that_no_argument_makes_are_refused(change, message, tmp_path):
    slim = made("test_resnet")
    change(slim)
    with pytest.raises(ValueError, match=message):
        save_slim(slim, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_model_args_that_no_file_can_hold(slim, tmp_path):
    with pytest.raises(TypeError, match=r"model_args must hold numbers, strings, None and lists: .*type"):
        save_slim(slim, tmp_path / "a", model_args={"act_layer": nn.SiLU})
    with pytest.raises(TypeError, match="no_such_argument"):
        save_slim(slim, tmp_path / "a", model_args={"no_such_argument": 1})


@pytest.mark.parametrize(
    "two",
    [
        lambda: KELS(0.5).slim(TwoHead(timm.create_model("test_resnet"), 8)),
        lambda: TwoHead(KELS(0.5).slim(timm.create_model("test_resnet")), 8),
    ],
)
def test_of_two_heads_the_classifier_is_saved(two, tmp_path):
    two = two().eval()
    with pytest.raises(ValueError, match=r"got a TwoHead around it: save it by save_slim\(slim.model, path\)"):
        save_slim(two, tmp_path / "a")
    save_slim(two.model, tmp_path / "a")
    again = TwoHead(load_slim(tmp_path / "a"), 8).eval()
    again.embedding.load_state_dict(two.embedding.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(x), two(x), rtol=0, atol=0)


def test_attention_is_computed_as_in_the_saved_model(tmp_path):
    slim = made("test_vit")
    save_slim(slim, tmp_path / "a")
    fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(not fused)
    try:
        again = load_slim(tmp_path / "a")
    finally:
        timm.layers.set_fused_attn(bool(fused))
    assert again.blocks[0].attn.fused_attn == slim.blocks[0].attn.fused_attn


@pytest.mark.parametrize(
    "chosen", [lambda: torch.device("meta"), torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")]
)
def test_what_the_caller_has_chosen_is_none_of_the_files(slim, chosen, tmp_path):
    with chosen():
        save_slim(slim, tmp_path / "a")
        again = load_slim(tmp_path / "a")
    check_same(slim, again)
    assert not any(tensor.is_inference() for tensor in again.state_dict(keep_vars=True).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type_of_numbers(slim, dtype, tmp_path):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        save_slim(slim, tmp_path / "a")
        again = load_slim(tmp_path / "a")
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(before)
    check_same(slim, again)


def as_format_1(slim, path, **changes):
    """Write the file that version 0.1.0 wrote."""
    metadata = {
        "format": 1, "architecture": "test_resnet", "arguments": {"num_classes": 5, "in_chans": 1}, "rate": 0.3,
        "multiple": 2, "input_shapes": [[2, 1, 160, 160]], "num_classes": slim.num_classes, **changes,
    }  # fmt: skip
    state = {name: tensor.contiguous().clone() for name, tensor in slim.state_dict().items()}
    save_file(state, path, metadata={KEY: json.dumps(metadata)})


def test_a_file_of_the_first_format_loads_and_says_what_it_lacks(slim, tmp_path):
    slim.reset_classifier(3)
    as_format_1(slim.half(), tmp_path / "a")
    with pytest.warns(UserWarning, match="of format 1, which holds no settings"):
        again = load_slim(tmp_path / "a")
    x = torch.randn(2, 1, 64, 64)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float16}
    assert torch.equal(again.float()(x), slim.float()(x))


@pytest.mark.filterwarnings("ignore:the file is of format 1")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "no_such_net"}, "has no architecture 'no_such_net'"),
        ({"architecture": "test_byobnet"}, "other tensors.*another version of timm.*load_file"),
        ({"rate": 0.5}, "other tensors"),
    ],
)
def test_a_file_of_the_first_format_that_does_not_fit(slim, tmp_path, changes, match):
    as_format_1(slim, tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=match):
        load_slim(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("layer1.0.bn1.weight"),
        lambda state: state["fc.weight"].mul_(1.0001),
        lambda state: state["layer1.0.bn1.num_batches_tracked"].add_(1),
        lambda state: state.update(extra=torch.zeros(1)),
        lambda state: state.update({"fc.bias": state["fc.bias"].double()}),
    ],
)
def test_a_file_with_other_tensors(path, change):
    with_tensors(path, change)
    with pytest.raises(ValueError, match="is damaged: it does not hold what save_slim wrote"):
        load_slim(path)


def test_a_file_in_which_a_bit_has_turned(path):
    content = path.read_bytes()
    for place in torch.randint(0, len(content), (50,), generator=torch.Generator().manual_seed(0)).tolist():
        turned = bytearray(content)
        turned[place] ^= 1 << place % 8
        path.write_bytes(turned)
        with pytest.raises(ValueError, match=r"damaged|complete|not written by save_slim"):
            load_slim(path)


@pytest.mark.parametrize("recipe", ["", "{", "[]", "null", "3", '"text"', '[["format", 2]]', '{"format": [2]}'])
def test_a_recipe_that_is_none(path, recipe):
    save_file(load_file(path), path, metadata={KEY: recipe})
    with pytest.raises(ValueError, match=r"damaged|has format"):
        load_slim(path)


def test_another_timm_that_answers_otherwise(path, monkeypatch):
    monkeypatch.setattr(timm.models.ResNet, "forward_head", lambda self, x, pre_logits=False: x.mean((2, 3)))
    with pytest.raises(ValueError, match=r"numbers of output 0, got .*saved with timm .*another version of timm"):
        load_slim(path)


def test_nothing_is_unpickled(path):
    assert b"pickle" not in path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()[KEY])["architecture"] == "test_resnet"


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_truncated_file(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="no complete safetensors"):
        load_slim(path)


def test_foreign_files(path, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a")
    with pytest.raises(ValueError, match="not written by save_slim"):
        load_slim(tmp_path / "a")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b")
    with pytest.raises(ValueError, match="no complete safetensors"):
        load_slim(tmp_path / "b")
    for none in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="save_slim"):
            load_slim(none)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 99}, "has format 99, this version reads format 1 and 2"),
        ({"format": None}, "has format None"),
        ({"architecture": "no_such_net"}, "has no architecture 'no_such_net'"),
        ({"architecture": "test_efficientnet"}, "other tensors.*another version of timm"),
        ({"arguments": {"num_classes": 5, "layers": [2, 1, 1, 1]}}, "other tensors"),
        ({"steps": [["reset_classifier", 3, "max"]]}, "other tensors"),
        ({"arguments": {"no_such_argument": 5}}, "fails: TypeError: .*no_such_argument.*another version of timm"),
        ({"steps": [["reset_classifier", 3, "no pool"]]}, "fails: AssertionError: .*another version of timm"),
    ],
)
def test_a_file_that_does_not_fit(path, changes, match):
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=match):
        load_slim(path)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="must come from"):
        save_slim(timm.create_model("test_resnet"), tmp_path / "a")
    slim = KELS(0.5, example_input=torch.zeros(2, 3)).slim(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"timm architecture.*state_dict\(\).*fresh dense model"):
        save_slim(slim, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_module_that_is_not_timms_is_made_again_by_its_state_dict():
    slim, again = (
        KELS(0.5, example_input=torch.zeros(2, 3)).slim(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
        for _ in range(2)
    )
    again.load_state_dict(slim.state_dict())
    images = torch.randn(5, 3)
    torch.testing.assert_close(again(images), slim(images), rtol=0, atol=0)


def test_a_write_that_fails_leaves_the_old_file(slim, path, monkeypatch):
    before = path.read_bytes()

    def broken(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_slim(slim, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
