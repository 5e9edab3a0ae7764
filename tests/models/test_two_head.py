import copy
import pickle
import re
import sys
import warnings

import pytest
import timm
import torch
from timm.models import group_modules
from timm.optim import create_optimizer_v2
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead, TwoHeadOutput

try:
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay
except ImportError:  # timm 1.0.11
    from timm.optim.optim_factory import param_groups_layer_decay, param_groups_weight_decay

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 2}
MODELS = {
    "test_resnet": (64, {}),
    "test_byobnet": (64, {}),
    "test_efficientnet": (64, {}),
    "test_convnext": (64, {}),
    "mobilenetv3_small_050": (64, {}),  # a hidden layer behind the pooling
    "efficientvit_b0": (64, {}),  # batch norm in the head
    "swin_tiny_patch4_window7_224": (64, SMALL_SWIN),  # channels last
    "test_mambaout": (64, {}),
    "vit_tiny_patch16_224": (32, SMALL_VIT),  # class token
    "vit_small_patch16_dinov3": (32, {**SMALL_VIT, "num_classes": 10}),  # registers
    "deit_tiny_distilled_patch16_224": (32, SMALL_VIT),  # two classifiers, two tokens
    "levit_128s": (224, {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2), "depth": (1, 1, 1)}),
    "crossvit_tiny_240": (
        240,
        {"embed_dim": (16, 24), "num_heads": (2, 2), "depth": ((1, 1, 0), (1, 1, 0), (1, 1, 0))},
    ),
    "hrnet_w18_small": (64, {}),
    "mobilenetv4_conv_small": (64, {}),  # batch norm in the head, under another name
}
FIXED_BATCH = [name for name in MODELS if name != "levit_128s"]


def classifier(name, **kwargs):
    size, settings = MODELS[name]
    return timm.create_model(name, **{**settings, **kwargs}), size


def small(**kwargs):
    return timm.create_model("test_resnet", **{"num_classes": 5, **kwargs})


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("pooling", ["avg", "flatten"])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_architecture(name, pooling):
    model, size = classifier(name)
    images = torch.randn(2, 3, size, size)
    expected = model.eval()(images)
    keys = list(model.state_dict())
    two = TwoHead(model, 16, pooling=pooling, input_size=(3, size, size)).eval()
    logits, embeddings = two(images)
    assert torch.equal(logits, expected)
    assert embeddings.shape == (2, 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert not torch.allclose(embeddings[0], embeddings[1])
    assert list(model.state_dict()) == keys
    assert type(two.model) is type(model)


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", FIXED_BATCH)
def test_statistics_see_each_batch_once_and_both_heads_train_the_trunk(name):
    model, size = classifier(name)
    images = torch.randn(4, 3, size, size)
    alone, two = copy.deepcopy(model).train(), TwoHead(model, 16).train()
    torch.manual_seed(1)
    alone(images)
    torch.manual_seed(1)
    outputs = two(images)
    for (key, ours), theirs in zip(model.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=key)
    for output in outputs:
        trunk = [
            parameter
            for key, parameter in model.named_parameters()
            if "stem" in key or "patch_embed" in key or "conv" in key
        ]
        output.square().sum().backward(retain_graph=True)
        (output * torch.randn_like(output)).sum().backward(retain_graph=True)
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in trunk)
        model.zero_grad()


def test_embedding_reads_what_the_classifier_reads():
    model = small().eval()
    two, images = TwoHead(model, 8).eval(), torch.randn(2, 3, 64, 64)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(two(images).embeddings, nn.functional.normalize(two.embedding(pooled), dim=1))


def test_flatten_is_the_papers_head():
    two = TwoHead(small(), pooling="flatten", input_size=(3, 64, 64))
    features = two.model.forward_features(torch.randn(1, 3, 64, 64))
    assert two.embedding.in_features == features[0].numel()
    assert two.embedding.out_features == 256


def test_flatten_takes_the_pretrained_input_size_by_default_and_leaves_the_model_alone():
    model = small().train()
    model.layer1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    two = TwoHead(model, 8, pooling="flatten")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    two(torch.randn(2, *model.pretrained_cfg["input_size"]))


def test_nothing_changes_when_the_dry_run_fails():
    model = small().train()
    with pytest.raises(RuntimeError):
        TwoHead(model, 8, pooling="flatten", input_size=(7, 64, 64))
    assert all(module.training for module in model.modules())


def test_channels_of_the_users_own():
    two = TwoHead(timm.create_model("test_resnet", in_chans=1), 8)
    assert two(torch.randn(2, 1, 32, 32)).embeddings.shape == (2, 8)


def test_methods_of_the_model_are_reached():
    two = TwoHead(small(), 8)
    assert two.get_classifier() is two.model.get_classifier()
    two.reset_classifier(7)
    assert two.num_classes == 7
    assert two(torch.randn(2, 3, 32, 32)).logits.shape == (2, 7)
    two.set_grad_checkpointing()
    assert two.model.grad_checkpointing
    two.train()(torch.randn(2, 3, 32, 32)).embeddings.sum().backward()
    assert two.pretrained_cfg is two.model.pretrained_cfg
    with pytest.raises(AttributeError, match="nonsense"):
        two.nonsense  # noqa: B018


def test_attributes_of_the_model_are_set_there():
    two = TwoHead(small(), 8)
    two.grad_checkpointing, two.drop_rate, two.tag = True, 0.5, "mine"
    assert two.model.grad_checkpointing
    assert two.model.drop_rate == 0.5
    assert not {"grad_checkpointing", "drop_rate"} & vars(two).keys()
    assert not hasattr(two.model, "tag")
    two.fc = nn.Linear(96, 7)
    assert two(torch.randn(2, 3, 32, 32)).logits.shape == (2, 7)
    assert set(dict(two.named_children())) == {"model", "embedding"}
    two.embedding = nn.Linear(96, 4)
    assert two(torch.randn(2, 3, 32, 32)).embeddings.shape == (2, 4)
    del two.grad_checkpointing, two.tag
    assert not hasattr(two.model, "grad_checkpointing")
    two.eval()
    assert not two.model.training
    with pytest.raises(AttributeError, match="nonsense"):
        del two.nonsense


class Head(nn.Module):
    """A model whose head notes something in training, wherever that stands and whatever it is called."""

    num_classes, width = 3, 6

    def __init__(self, noting, behind=None):
        super().__init__()
        self.trunk, self.anything, self.behind = nn.Conv2d(3, 6, 3), noting, behind or nn.Identity()
        self.last = nn.Linear(6, 3)

    def forward_features(self, x):
        return self.trunk(x)

    def forward_head(self, x, pre_logits=False):
        x = self.anything(x).mean((2, 3))
        return x if pre_logits else self.last(self.behind(x))

    def get_classifier(self):
        return self.last

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class Noting(nn.Module):
    """A norm of the user's own, which notes its mean by writing it, or by a tensor in its place."""

    def __init__(self, anew):
        super().__init__()
        self.anew = anew
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training and self.anew:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        elif self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.mean


@pytest.mark.parametrize(
    "noting",
    [
        lambda: nn.BatchNorm2d(6),
        lambda: nn.Sequential(nn.Dropout(), nn.BatchNorm2d(6)),
        lambda: nn.InstanceNorm2d(6, track_running_stats=True),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 1)),
        lambda: Noting(anew=False),
        lambda: Noting(anew=True),
    ],
)
def test_what_a_head_notes_in_training_is_noted_once(noting):
    model = Head(noting())
    two, alone = TwoHead(model, 4, input_size=(3, 8, 8)).train(), copy.deepcopy(model).train()
    images = torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    expected = alone(images)
    torch.manual_seed(1)
    torch.testing.assert_close(two(images).logits, expected)
    for (name, ours), theirs in zip(model.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_norm_over_processes_in_a_head():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Head(nn.BatchNorm2d(6)))
    assert TwoHead(model, 4, input_size=(3, 8, 8))._once


@pytest.mark.parametrize("behind", [nn.Dropout(0.0), nn.ReLU(), nn.BatchNorm1d(6)])
def test_head_that_cannot_be_gone_once_is_refused(behind):
    assert not TwoHead(Head(nn.ReLU(), behind), 4, input_size=(3, 8, 8))._once
    with pytest.raises(ValueError, match=r"that of Head updates statistics .* not get_classifier\(\) of them"):
        TwoHead(Head(nn.BatchNorm2d(6), behind), 4, input_size=(3, 8, 8))


def test_distilled_training_is_refused_early_and_late():
    model, size = classifier("deit_tiny_distilled_patch16_224")
    two, images = TwoHead(model, 8).train(), torch.randn(2, 3, size, size)
    with pytest.raises(TypeError, match=r"returns a tuple; .*set_distilled_training\(False\)"):
        two.set_distilled_training(True)
    assert not model.distilled_training
    two.set_distilled_training(False)
    assert two(images).logits.shape == (2, 1000)
    two.distilled_training = True
    with pytest.raises(TypeError, match="returns a tuple"):
        two(images)
    with pytest.raises(TypeError, match="returns a tuple"):
        TwoHead(model, 8)
    assert not hasattr(TwoHead(small(), 8), "set_distilled_training")


NOT_POOLING = [
    "vit_tiny_patch16_224", "test_convnext", "swin_tiny_patch4_window7_224", "test_resnet",
    pytest.param("levit_128s", marks=pytest.mark.requires("timm>1.0.27")),  # before, it does not run without pooling
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_POOLING)
def test_model_that_does_not_pool_is_refused(name):
    model, _ = classifier(name, global_pool="")
    with pytest.raises(ValueError, match=r"model must pool its features, .*reset_classifier\(num_classes, \"avg\"\)"):
        TwoHead(model, 8)


def test_new_classifier_that_does_not_fit_is_refused_and_the_model_is_as_before():
    two, images = TwoHead(timm.create_model("test_byobnet", num_classes=5), 8).eval(), torch.randn(2, 3, 64, 64)
    before, modules = two(images), list(two.modules())
    for arguments, error, message in [
        ((7, ""), ValueError, "must pool its features"),
        ((0,), TypeError, "num_classes=0"),
        ((7, "catavgmax"), ValueError, r"gives the embedding 512 features to read, but it was made for 256"),
    ]:
        with pytest.raises(error, match=message):
            two.reset_classifier(*arguments)
        assert all(one is other for one, other in zip(two.modules(), modules, strict=True))
        assert torch.equal(two(images).logits, before.logits)
    two.reset_classifier(7, "max")
    assert two(images).logits.shape == (2, 7)
    assert torch.equal(two.embedding.weight, modules[-1].weight)


def test_new_input_size():
    model, _ = classifier("vit_tiny_patch16_224")
    two = TwoHead(model, 8)
    two.set_input_size((48, 48))
    assert two(torch.randn(2, 3, 48, 48)).embeddings.shape == (2, 8)
    flat = TwoHead(model, 8, pooling="flatten")
    with pytest.raises(
        ValueError, match=r"set_input_size gives the embedding .*call set_input_size of the model alone"
    ):
        flat.set_input_size((32, 32))
    assert flat(torch.randn(2, 3, 48, 48)).embeddings.shape == (2, 8)


def test_another_model_is_looked_at_before_it_takes_the_place():
    two = TwoHead(Head(nn.ReLU()), 4, input_size=(3, 8, 8))
    two.model = Head(nn.BatchNorm2d(6))
    assert two._once
    with pytest.raises(TypeError, match="model must be a timm classifier, got Linear"):
        two.model = nn.Linear(6, 3)
    with pytest.raises(ValueError, match=r"ResNet as model gives the embedding 96 .* for 6; make a new TwoHead"):
        two.model = small()
    assert type(two.model) is Head


@pytest.mark.parametrize(
    "change",
    [
        lambda two: setattr(two, "pooling", "flatten"),
        lambda two: setattr(two, "embedding", nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 8))),
        lambda two: setattr(two, "embedding", nn.Linear(7, 8)),
    ],
)
def test_features_that_the_embedding_does_not_read(change):
    two, images = TwoHead(small(), 8), torch.randn(2, 3, 64, 64)
    two(images)
    change(two)
    with pytest.raises(RuntimeError, match=r"embedding fails on features of shape \(2, \d+\), .* new TwoHead"):
        two(images)


def test_images_of_another_size_for_the_flattened_map():
    two = TwoHead(small(), 8, "flatten", (3, 32, 32))
    with pytest.raises(RuntimeError, match=r"fails on features of shape \(2, 384\), .*: pass images of the size"):
        two(torch.randn(2, 3, 64, 64))


def test_intermediate_layers_are_pruned_where_the_embedding_still_fits():
    two = TwoHead(classifier("vit_tiny_patch16_224")[0], 8)
    two.prune_intermediate_layers([0], prune_head=False)
    assert len(two.blocks) == 1
    assert two(torch.randn(2, 3, 32, 32)).embeddings.shape == (2, 8)
    with pytest.raises(TypeError, match="num_classes=0"):
        two.prune_intermediate_layers([0], prune_head=True)
    assert two(torch.randn(2, 3, 32, 32)).logits.shape == (2, 1000)


class Slow(nn.Module):
    """An embedding whose first layer is not the first that it uses."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(8, 4), nn.Linear(96, 8)

    def forward(self, x):
        return self.last(self.first(x))


@pytest.mark.parametrize(
    "embedding",
    [
        lambda: nn.Sequential(nn.LayerNorm(96), nn.ReLU(), nn.Linear(96, 4)),
        lambda: nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 4)),
        lambda: nn.Sequential(nn.Unflatten(1, (12, 8)), nn.Conv1d(12, 1, 1), nn.Flatten(), nn.Linear(8, 4)),
        Slow,
        lambda: nn.LazyLinear(4),
    ],
)
def test_an_embedding_of_ones_own(embedding):
    two = TwoHead(small(), 8)
    two.embedding = embedding()
    two(torch.randn(2, 3, 32, 32))
    two.reset_classifier(7)
    assert [part.shape for part in two(torch.randn(2, 3, 32, 32))] == [(2, 7), (2, 4)]
    if hasattr(two.embedding, "in_features"):
        with pytest.raises(ValueError, match="192 features to read, but it was made for 96"):
            two.reset_classifier(7, "catavgmax")
    two.load_state_dict(small(num_classes=7).state_dict())
    create_optimizer_v2(two, "sgd", lr=0.1, layer_decay=0.7)


def test_weight_decay_groups_know_the_parameters_by_their_names_here():
    two = TwoHead(classifier("vit_tiny_patch16_224")[0], 8)
    groups = param_groups_weight_decay(two, 0.1, no_weight_decay_list=two.no_weight_decay())
    spared = {id(parameter) for parameter in groups[0]["params"]}
    assert id(two.model.pos_embed) in spared
    assert id(two.model.cls_token) in spared
    assert id(two.embedding.weight) not in spared
    assert TwoHead(small(), 8).no_weight_decay() == set()


GROUPED = [
    "test_resnet", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
    "poolformer_s12", "caformer_s18", "convformer_s18", "pit_ti_224",  # no group matcher
    "cait_xxs24_224", "inception_v4",  # a matcher that is a function
    "iformer_t", "selecsls42",  # one that names the head
    "qwen3_vit_88m",  # a module that holds parameters of its own and is in no group
]  # fmt: skip


def check_layer_groups(name):
    """Compare what timm's optimizers make of a two-head model with what they make of the model."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=10)
    except RuntimeError:  # one that looks at values when it is made
        model = timm.create_model(name, num_classes=10)
    two = TwoHead(model, 8)

    def settings(of):
        groups = param_groups_layer_decay(of, layer_decay=0.5, no_weight_decay_list=no_weight_decay(of))
        return {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}

    ours, theirs = settings(two), settings(model)
    assert {key: ours[key] for key in theirs} == theirs
    assert ours[id(two.embedding.weight)] == (1, 0.05)
    assert ours[id(two.embedding.bias)] == (1, 0)
    if hasattr(model, "group_matcher"):
        for coarse in (False,) if name.startswith("rdnet") else (False, True):  # these have no coarse groups
            ours = group_modules(two, two.group_matcher(coarse), reverse=True)
            theirs = group_modules(model, model.group_matcher(coarse), reverse=True)
            assert {key: ours[f"model.{key}"] for key in theirs} == theirs
            assert ours["embedding"] == max(theirs.values())
    create_optimizer_v2(two, "sgd", lr=0.1, layer_decay=0.7, weight_decay=0.1)


def no_weight_decay(model):
    return model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", GROUPED)
def test_layer_groups_are_those_of_the_model(name):
    check_layer_groups(name)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_layer_groups_of_every_module(module):
    check_layer_groups(timm.list_models(module=module)[0])


def test_checkpoint_of_the_classifier_fits_and_comes_back_without_the_wrapper(tmp_path):
    model = small()
    two = TwoHead(small(), 8)
    two.model.load_state_dict(model.state_dict())
    torch.save(two.model.state_dict(), tmp_path / "model.pt")
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert set(two.state_dict()) == {f"model.{key}" for key in model.state_dict()} | {
        "embedding.weight",
        "embedding.bias",
    }


def test_state_dict_of_the_classifier_alone_loads_and_the_embedding_stays():
    model, other, two = small(), small(), TwoHead(small(), 8)
    embedding = two.embedding.weight.detach().clone()
    state = model.state_dict()
    assert two.load_state_dict(state) == ([], [])
    assert all(torch.equal(value, state[key]) for key, value in two.model.state_dict().items())
    assert torch.equal(two.embedding.weight, embedding)
    assert not any(key.startswith("model.") for key in state)
    inside = nn.ModuleDict({"a": two})
    inside.load_state_dict({f"a.{key}": value for key, value in other.state_dict().items()})
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in two.model.state_dict().items())
    TwoHead(model, 8).load_state_dict(two.state_dict())  # and from the two-head model's to the classifier's
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    without = {key: value for key, value in model.state_dict().items() if key != "fc.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*model\.fc\.bias"):
        two.load_state_dict(without)
    assert two.load_state_dict(without, strict=False) == (["model.fc.bias"], [])
    assert two.load_state_dict({**without, "head.bias": torch.zeros(1)}, strict=False)[1] == ["model.head.bias"]
    assert torch.equal(two.model.fc.weight, model.fc.weight)
    assert two.load_state_dict({"embedding.bias": torch.ones(8)}, strict=False)[1] == []
    assert two.load_state_dict({"nothing": torch.ones(8)}, strict=False)[1] == ["nothing"]


def test_pickles_and_copies():
    two, images = TwoHead(small(), 8).eval(), torch.randn(2, 3, 32, 32)
    for other in (copy.deepcopy(two), pickle.loads(pickle.dumps(two))):  # noqa: S301
        assert torch.equal(other(images).embeddings, two(images).embeddings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_moved_to_another_precision(dtype):
    two = TwoHead(small().to(dtype), 8)
    logits, embeddings = two(torch.randn(2, 3, 32, 32).to(dtype))
    assert logits.dtype == dtype
    assert embeddings.dtype == torch.promote_types(dtype, torch.float32)


def test_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, embeddings = TwoHead(small(), 8)(torch.randn(2, 3, 32, 32))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_compiles_and_exports_in_one_graph(name):
    model, size = classifier(name)
    two, images = TwoHead(model, 8).eval(), torch.randn(2, 3, size, size)
    expected = two(images)
    for found in (
        torch.compile(two, backend="aot_eager", fullgraph=True)(images),
        torch.export.export(two, (images,)).module()(images),
    ):
        assert isinstance(found, TwoHeadOutput)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_exported_program_is_saved_and_loaded(tmp_path):
    two, images = TwoHead(small(), 8).eval(), torch.randn(2, 3, 32, 32)
    torch.export.save(torch.export.export(two, (images,)), tmp_path / "two.pt2")
    found = torch.export.load(tmp_path / "two.pt2").module()(images)
    assert found._fields == TwoHeadOutput._fields
    torch.testing.assert_close(tuple(found), tuple(two(images)), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_script_is_refused_and_trace_works():
    two, images = TwoHead(small(), 8).eval(), torch.randn(2, 3, 32, 32)
    with pytest.raises(TypeError, match=r"torch\.jit\.script.*torch\.jit\.trace.* work"):
        torch.jit.script(two)
    for found, expected in zip(torch.jit.trace(two, images)(images), two(images), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.requires("torch>=2.5")  # 2.4 ignores most of what is passed beside dynamo
def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    two, images = TwoHead(small(), 8).eval(), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(two, (images,), tmp_path / "two.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx")
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for found, expected in zip(outputs, two(images), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected.detach(), rtol=1e-3, atol=1e-4)


def test_symbolic_trace():
    two, images = TwoHead(small(), 8).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tuple(torch.fx.symbolic_trace(two)(images)), tuple(two(images)))


def test_distributed_data_parallel(tmp_path):
    init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        two = DistributedDataParallel(TwoHead(small(), 8))
        outputs = two(torch.randn(4, 3, 32, 32))
        assert isinstance(outputs, TwoHeadOutput)
        TwoHeadLoss()(outputs, torch.tensor([0, 0, 1, 1])).backward()
        assert all(parameter.grad is not None for parameter in two.parameters())
    finally:
        destroy_process_group()


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_replicas_of_data_parallel(name, monkeypatch):
    """As ``nn.DataParallel`` makes them in every forward pass, here without GPUs."""
    from torch.nn.parallel import replicate

    module = sys.modules[replicate.__module__]
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t * 1 for t in tensors] for _ in devices],
    )
    model, size = classifier(name)
    two, images = TwoHead(model, 8).eval(), torch.randn(2, 3, size, size)
    for one in replicate(two, [0, 1]):
        assert one.model is not two.model
        torch.testing.assert_close(tuple(one(images)), tuple(two(images)))


def test_trains():
    two, labels = TwoHead(small(), 8).train(), torch.arange(16) % 4
    images = torch.randn(4, 3, 32, 32)[labels] + 0.1 * torch.randn(16, 3, 32, 32)
    optimizer, loss = torch.optim.AdamW(two.parameters(), 1e-2), TwoHeadLoss()
    first = None
    for _ in range(15):
        value = loss(two(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        first = first or value.item()
    assert value.item() < first / 3


class NoMap(nn.Linear):
    """A model without a feature map."""


class NoPreLogits(nn.Linear):
    """A model whose head cannot stop before its classifier."""

    def forward_features(self, x):
        return x

    def forward_head(self, x):
        return self(x)

    def get_classifier(self):
        return self


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((NoMap(2, 2),), TypeError, "got NoMap without forward_features, forward_head, get_classifier"),
        ((NoPreLogits(2, 2),), TypeError, "NoPreLogits.forward_head"),
        ((timm.create_model("test_resnet", num_classes=0),), TypeError, "got ResNet with num_classes=0"),
        ((small(), 8, "max"), ValueError, re.escape('pooling must be "avg" or "flatten", got \'max\'')),
        ((small(), 0), ValueError, "embedding_size must be at least 1, got 0"),
        ((Head(nn.ReLU()),), ValueError, "input_size must be given, .*Head has no pretrained"),
        ((Head(nn.ReLU()), 8, "avg", (1, 8, 8)), RuntimeError, r"Head fails on an image of input_size \(1, 8, 8\)"),
    ],
)
def test_bad_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        TwoHead(*arguments)
