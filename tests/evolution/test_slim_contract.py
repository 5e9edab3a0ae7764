"""What a user of timm or torch does with a model, done with the slim one: methods, compilers, files, other sizes."""

import copy
import pickle

import pytest
import slim_checks
import timm
import timm.layers
import torch
import torchvision
from torch import nn

from pml_extensions.evolution import KELS, KnowledgeEvolution

QUICK = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
MORE = (
    "test_nfnet", "test_mambaout", "edgenext_xx_small", "regnetx_002", "ghostnet_050", "repvit_m1",
    "xcit_nano_12_p8_224", "levit_128s", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "ecaresnet26t",
    "tf_efficientnet_cc_b0_4e", "mobilenetv3_small_050",
)  # fmt: skip
FEW = ("test_resnet", "test_vit")
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


def slim_of(name, rate=0.5, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    return model, KELS(rate).slim(model).eval()


def images(model, batch=2):
    return torch.randn(batch, *model.pretrained_cfg["input_size"])


@pytest.mark.parametrize("name", ALL)
def test_slim_keeps_timms_contract(name):
    model, slim = slim_of(name)
    x = images(model)
    assert type(slim) is type(model)
    features = slim.forward_features(x)
    assert features.ndim == model.forward_features(x).ndim
    channels_last = features.ndim < 4 or str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    assert features.shape[-1 if channels_last else 1] == slim.num_features
    assert slim.forward_head(features, pre_logits=True).shape[-1] == slim.head_hidden_size
    torch.testing.assert_close(slim.forward_head(features), slim(x))
    classifier = slim.get_classifier()
    if isinstance(classifier, nn.Linear):
        assert classifier.in_features == slim.head_hidden_size
    if hasattr(slim, "forward_intermediates"):
        intermediates = slim.forward_intermediates(x, intermediates_only=True)
        channels = [entry["num_chs"] for entry in slim.feature_info]
        assert [t.shape[1] for t in intermediates][-len(channels) :] == channels[-len(intermediates) :]
    _, fresh = slim_of(name)  # what has run may hold what autograd computed, which does not copy
    for again in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):  # noqa: S301
        assert torch.equal(again(x), slim(x))
    slim.reset_classifier(3)
    assert slim(x[:1]).shape == (1, 3)
    slim.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in slim.parameters())


def test_slim_fine_tunes():
    _, slim = slim_of("test_resnet", num_classes=4)
    slim.train()
    x, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(slim.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(slim(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout"])
@pytest.mark.parametrize("batch", [1, 3])
def test_slim_is_exact_at_other_batch_and_input_sizes(name, batch):
    model = timm.create_model(name).eval()
    split = KELS(0.5, example_input=torch.zeros(2, 3, 64, 64))
    dense = slim_checks.randomised(model)
    widths, calls = slim_checks.analyse_recording(split, dense)
    slim = slim_checks.cut(dense, widths)
    x = torch.randn(batch, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        out = slim(x)
        with slim_checks.KeptChannels(widths, calls):
            expected = slim_checks.without_dropped_entries(dense, widths)(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_slim_is_exact_with_fused_and_unfused_attention(fused):
    model = timm.create_model("test_vit").eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    split = KELS(0.5)
    assert split.slim(model).blocks[0].attn.fused_attn is fused
    assert slim_checks.exactness(model, split)[1] < 1e-9


@pytest.mark.parametrize("name", ["test_resnet", pytest.param("test_vit", marks=pytest.mark.slow)])
def test_slim_compiles(name):
    model, slim = slim_of(name)
    x = images(model)
    compiled = torch.compile(slim, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), slim(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_slim_compiles_to_code(name):
    model, slim = slim_of(name)
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(slim)(x), slim(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in (*QUICK, *MORE)]
)
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # timm's caches of attention biases
def test_slim_exports(name):
    model, slim = slim_of(name)
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(slim, (x,)).module()(x), slim(x))


@pytest.mark.requires("torch>=2.5")  # 2.4 ignores most of what is passed beside dynamo
@pytest.mark.parametrize("name", ["test_resnet", *(pytest.param(n, marks=pytest.mark.slow) for n in QUICK[1:])])
def test_slim_goes_to_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, slim = slim_of(name)
    x = images(model)
    torch.onnx.export(slim, (x,), tmp_path / "slim.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), slim(x), rtol=1e-3, atol=1e-4)


@pytest.mark.requires("torch>=2.5")
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_statistics_anew_are_exported(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = images(model, 4)
    published, slim = KELS(0.5).slim(model), KELS(0.5).slim(model, [x + 1, (x - 1, 0)])
    torch.onnx.export(slim, (x,), tmp_path / "slim.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(slim, (x,)).module()(x), slim(x))
        torch.testing.assert_close(torch.from_numpy(out), slim(x), rtol=1e-3, atol=1e-4)
        assert (published(x) - slim(x)).abs().max() > 0.01 * slim(x).abs().max()


TORCHVISION = {
    "resnet18": {}, "mobilenet_v3_small": {}, "shufflenet_v2_x0_5": {}, "squeezenet1_1": {},
    "vit_b_16": {"image_size": 64}, "densenet121": {}, "swin_t": {}, "convnext_tiny": {}, "regnet_y_400mf": {},
    "efficientnet_b0": {}, "mnasnet0_5": {}, "googlenet": {"init_weights": False},
}  # fmt: skip
LINE = "torchvision/models/shufflenetv2.py:94"
IN_THE_DEFAULT_RUN = {"resnet18", "mobilenet_v3_small"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in IN_THE_DEFAULT_RUN else [pytest.mark.slow]) for n in TORCHVISION]
)
def test_torchvision(name):
    model = torchvision.models.get_model(name, weights=None, **TORCHVISION[name]).eval()
    split = KELS(0.5, example_input=torch.zeros(2, 3, 64, 64))
    whole = split.widths(model).whole
    if name == "shufflenet_v2_x0_5":  # halves of halves of shuffled channels: 3 channels in two groups have no halves
        assert {str(w.reason) for w in whole} & {f"a slice cuts through a product ({LINE})"}
    else:
        assert whole == []
    if name != "swin_t":  # its code takes the scale of attention from the width that it finds
        assert slim_checks.exactness(model, split)[1] < 1e-9
    slim = split.slim(model)
    assert type(slim) is type(model)
    assert slim(torch.randn(3, 3, 64, 64)).shape == (3, 1000)
    slim.train()(torch.randn(3, 3, 64, 64))
    assert sum(p.numel() for p in slim.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())


class WithAuxiliaryHead(nn.Module):
    """A head that the network has in train mode alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 20, 3)
        self.norm, self.auxiliary, self.head = nn.BatchNorm2d(12), nn.Linear(12, 2), nn.Linear(20, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        out = self.head(self.body(x).mean((2, 3)))
        return (out, self.auxiliary(x.mean((2, 3)))) if self.training else out


def test_what_only_training_uses_is_cut_too():
    model = WithAuxiliaryHead()
    before = copy.deepcopy(model.state_dict())
    slim = KELS(0.5, example_input=torch.zeros(2, 3, 8, 8)).slim(model)
    assert (slim.auxiliary.in_features, slim.head.in_features) == (6, 10)
    assert [out.shape for out in slim(torch.randn(2, 3, 8, 8))] == [(2, 2), (2, 2)]
    assert slim.eval()(torch.randn(2, 3, 8, 8)).shape == (2, 2)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


class TrainsOnTargets(nn.Sequential):
    """Its training forward takes more than the example gives."""

    def __init__(self):
        super().__init__(nn.Linear(3, 8), nn.Linear(8, 2))
        self.unused = nn.Parameter(torch.zeros(8))

    def forward(self, x, targets=None):
        return (super().forward(x) - targets).square().mean() if self.training else super().forward(x)


def test_a_model_that_trains_on_targets():
    slim = KELS(0.5, example_input=torch.zeros(2, 3)).slim(TrainsOnTargets())
    assert slim[0].out_features == 4
    assert slim(torch.randn(5, 3), torch.randn(5, 2)).shape == ()


class Encoder(nn.Module):
    """Text: an embedding, torch's own transformer layer, a mean over tokens."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(1))


def test_a_module_of_torchs_own_layers_with_tokens_for_input():
    model = Encoder().train()
    tokens = torch.randint(20, (2, 7))
    split = KELS(0.5, example_input=tokens)
    slim = split.slim(model)
    assert split.widths(model).whole == []
    assert (slim.embedding.embedding_dim, slim.layer.self_attn.head_dim, slim.layer.linear1.out_features) == (8, 2, 16)
    assert slim.training
    for training in (True, False):
        assert slim.train(training)(torch.randint(20, (5, 3))).shape == (5, 3)


def test_operations_of_the_summary_are_those_of_one_input():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    summary = KnowledgeEvolution(model, KELS(0.5, example_input=torch.zeros(4, 3))).summary().slim
    assert summary.dense_operations == 2 * (3 * 8 + 8 * 2)
    assert summary.slim_operations == 2 * (3 * 4 + 4 * 2)
    assert summary.dense_parameters == 3 * 8 + 8 + 8 * 2 + 2
    assert summary.slim_parameters == 3 * 4 + 4 + 4 * 2 + 2
    assert summary.whole == ()


class HeadlessEncoder(nn.Sequential):
    """A model with timm's methods that has no head, as timm's own encoders for language models."""

    num_features = 8

    def forward_features(self, x):
        return super().forward(x)

    def forward_head(self, x, pre_logits=False):
        raise NotImplementedError("no use for classification")

    def forward(self, x):
        return self.forward_features(x)


@pytest.mark.parametrize("head", [HeadlessEncoder.forward_head, lambda self, x: x], ids=["refuses", "takes less"])
def test_a_head_that_cannot_run_up_to_its_logits_is_no_hindrance(monkeypatch, head):
    monkeypatch.setattr(HeadlessEncoder, "forward_head", head)
    slim = KELS(0.5, example_input=torch.zeros(2, 3)).slim(HeadlessEncoder(nn.Linear(3, 16), nn.Linear(16, 8)))
    assert [layer.out_features for layer in slim] == [8, 8]


class NewClassifierOfFixedWidth(nn.Sequential):
    """A model whose classifier, made anew, has a hidden layer of a width that stands in the code."""

    num_classes = 2

    def __init__(self):
        super().__init__(nn.Linear(3, 16), nn.Linear(16, 2))

    def reset_classifier(self, num_classes):
        self[1] = nn.Sequential(nn.Linear(self[0].out_features, 6), nn.LayerNorm(6), nn.Linear(6, num_classes))


def test_what_stays_whole_is_of_the_model_not_of_a_classifier_yet_to_come():
    split = KELS(0.5, example_input=torch.zeros(2, 3))
    assert split.widths(NewClassifierOfFixedWidth()).whole == []
    slim = split.slim(NewClassifierOfFixedWidth())
    slim.reset_classifier(4)
    assert slim(torch.zeros(2, 3)).shape == (2, 4)
