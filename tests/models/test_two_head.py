import copy
import pickle
import re

import pytest
import timm
import torch
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
}
FIXED_BATCH = [name for name in MODELS if name != "levit_128s"]


def classifier(name, **kwargs):
    size, settings = MODELS[name]
    return timm.create_model(name, **{**settings, **kwargs}), size


def small(**kwargs):
    return timm.create_model("test_resnet", num_classes=5, **kwargs)


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


def test_weight_decay_groups_know_the_parameters_by_their_names_here():
    two = TwoHead(classifier("vit_tiny_patch16_224")[0], 8)
    groups = param_groups_weight_decay(two, 0.1, no_weight_decay_list=two.no_weight_decay())
    spared = {id(parameter) for parameter in groups[0]["params"]}
    assert id(two.model.pos_embed) in spared
    assert id(two.model.cls_token) in spared
    assert id(two.embedding.weight) not in spared
    assert TwoHead(small(), 8).no_weight_decay() == set()


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_layer_decay_groups_are_those_of_the_model(name):
    model, _ = classifier(name)
    two = TwoHead(model, 8)

    def scales(of):
        return {
            id(p): group["lr_scale"] for group in param_groups_layer_decay(of, layer_decay=0.5) for p in group["params"]
        }

    ours, theirs = scales(two), scales(model)
    assert {key: ours[key] for key in theirs} == theirs
    assert ours[id(two.embedding.weight)] == 1


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
    ],
)
def test_bad_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        TwoHead(*arguments)
