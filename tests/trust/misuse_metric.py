"""The rows of the catalogue about regularizer, losses, miner and two-head models."""

import timm
import torch
from classes import randn
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn

from pml_extensions import losses, miners, models, regularizers
from pml_extensions.regularizers import SVMaxRegularizer

V, T, R = ValueError, TypeError, RuntimeError
NAN, INF = float("nan"), float("inf")


def third_derivative():
    leaf = randn(4, 3).requires_grad_()
    (first,) = torch.autograd.grad(regularizers.mean_singular_value(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf, create_graph=True)
    second.sum().backward()


REGULARIZER = [
    ("unknown setting", lambda _: SVMaxRegularizer(forms="linear"), T, "SVMaxRegularizer 'forms' 'form'"),
    (
        "weight of the loss",
        lambda _: SVMaxRegularizer(embedding_reg_weight=2.0),
        T,
        "SVMaxRegularizer 'embedding_reg_weight' BaseMetricLossFunction",
    ),
    (
        "a class in a loss of the host",
        lambda w: ContrastiveLoss(embedding_regularizer=SVMaxRegularizer)(w.e, w.y),
        T,
        "SVMaxRegularizer batch SVMaxRegularizer()",
    ),
    ("unknown form", lambda _: SVMaxRegularizer(form="quadratic"), V, "form 'exponential' 'linear' 'quadratic'"),
    ("form of another type", lambda _: SVMaxRegularizer(form=None), V, "form None"),
    ("a list", lambda w: w.term([[1.0]]), T, "embeddings tensor list"),
    ("none", lambda w: w.term(None), T, "embeddings tensor NoneType"),
    ("integers", lambda w: w.term(torch.ones(3, 2).long()), T, "embeddings floating-point int64"),
    ("complex", lambda w: w.term(torch.ones(3, 2).cfloat()), T, "embeddings floating-point complex64"),
    ("booleans", lambda w: w.term(torch.ones(3, 2).bool()), T, "embeddings floating-point bool"),
    ("a vector", lambda w: w.term(torch.ones(3)), V, "embeddings (b, d) (3,)"),
    ("three dimensions", lambda w: w.term(torch.ones(3, 2, 2)), V, "embeddings (b, d) (3, 2, 2)"),
    ("no rows", lambda w: w.term(torch.ones(0, 2)), V, "embeddings non-empty (0, 2)"),
    ("no columns", lambda w: w.term(torch.ones(2, 0)), V, "embeddings non-empty (2, 0)"),
    ("mean of a vector", lambda _: regularizers.mean_singular_value(torch.ones(3)), V, "embeddings (b, d) (3,)"),
    ("mean of integers", lambda _: regularizers.mean_singular_value(torch.ones(3, 3).int()), T, "embeddings int32"),
    ("rank of nothing", lambda _: regularizers.effective_rank(torch.ones(0, 3)), V, "embeddings non-empty (0, 3)"),
    ("rank of a list", lambda _: regularizers.effective_rank([1.0]), T, "embeddings list"),
    ("bounds of no rows", lambda _: regularizers.svmax_bounds(0, 3), V, "batch_size at least 1 got 0"),
    ("bounds of no columns", lambda _: regularizers.svmax_bounds(3, -1), V, "embedding_size at least 1 got -1"),
    (
        "third derivative",
        lambda _: third_derivative(),
        R,
        "mean singular value third derivative svdvals",
    ),
]


LOSSES = [
    (
        "loss: unknown setting",
        lambda _: losses.SemiHardTripletLoss(maring=1),
        T,
        "SemiHardTripletLoss 'maring' 'margin'",
    ),
    (
        "loss: setting of a distance",
        lambda _: losses.SemiHardTripletLoss(normalize_embeddings=False),
        T,
        "SemiHardTripletLoss 'normalize_embeddings' BaseDistance distance=",
    ),
    (
        "loss: setting of a reducer",
        lambda _: losses.SemiHardTripletLoss(low=0.1),
        T,
        "SemiHardTripletLoss 'low' ThresholdReducer reducer=",
    ),
    (
        "loss: setting of a miner",
        lambda _: losses.SemiHardTripletLoss(type_of_triplets="semihard"),
        T,
        "SemiHardTripletLoss 'type_of_triplets' TripletMarginMiner",
    ),
    (
        "loss: class of a distance",
        lambda _: losses.SemiHardTripletLoss(distance=CosineSimilarity),
        T,
        "distance class CosineSimilarity(...)",
    ),
    ("loss: a class for a loss", lambda w: losses.SemiHardTripletLoss(w.e, w.y), T, "SemiHardTripletLoss() batch"),
    ("two heads: a margin", lambda _: losses.TwoHeadLoss(margin=1), T, "TwoHeadLoss 'margin' SemiHardTripletLoss"),
    (
        "two heads: a distance",
        lambda _: losses.TwoHeadLoss(distance=None),
        T,
        "TwoHeadLoss 'distance' BaseMetricLossFunction",
    ),
    (
        "two heads: weight of a regularizer",
        lambda _: losses.TwoHeadLoss(embedding_reg_weight=1),
        T,
        "'embedding_reg_weight' BaseMetricLossFunction",
    ),
    ("two heads: a weight", lambda _: losses.TwoHeadLoss(weight=1), T, "TwoHeadLoss 'weight' 'metric_weight'"),
    ("two heads: a class", lambda w: losses.TwoHeadLoss((w.logits, w.e), w.y), T, "TwoHeadLoss() batch"),
    (
        "memory: class of a loss",
        lambda _: losses.CrossBatchMemory(ContrastiveLoss, 4),
        T,
        "loss class ContrastiveLoss(...)",
    ),
    (
        "self-supervised: class of a loss",
        lambda _: losses.SelfSupervisedLoss(losses.SemiHardTripletLoss),
        T,
        "loss class SemiHardTripletLoss(...)",
    ),
    (
        "memory: class of a miner",
        lambda _: losses.CrossBatchMemory(losses.SemiHardTripletLoss(), 4, miner=miners.SemiHardMiner),
        T,
        "miner class SemiHardMiner(...)",
    ),
    (
        "memory: unknown setting",
        lambda _: losses.CrossBatchMemory(losses.SemiHardTripletLoss(), 4, size=8),
        T,
        "CrossBatchMemory 'size' 'memory_size'",
    ),
    (
        "self-supervised: unknown setting",
        lambda _: losses.SelfSupervisedLoss(losses.SemiHardTripletLoss(), margin=1),
        T,
        "SelfSupervisedLoss 'margin' SemiHardTripletLoss",
    ),
    ("miner: a margin", lambda _: miners.SemiHardMiner(margin=0.2), T, "SemiHardMiner 'margin' SemiHardTripletLoss"),
    (
        "miner: setting of the host's",
        lambda _: miners.SemiHardMiner(type_of_triplets="semihard"),
        T,
        "SemiHardMiner 'type_of_triplets' TripletMarginMiner",
    ),
    (
        "miner: a reducer",
        lambda _: miners.SemiHardMiner(reducer=None),
        T,
        "SemiHardMiner 'reducer' losses.TwoHeadLoss",
    ),
    ("miner: a class for a miner", lambda w: miners.SemiHardMiner(w.e, w.y), T, "SemiHardMiner() batch"),
    (
        "loss: embeddings of one dimension",
        lambda w: w.loss(torch.ones(8), w.y),
        V,
        "embeddings (batch, dimension) (8,)",
    ),
    ("loss: embeddings of three", lambda w: w.loss(torch.ones(8, 2, 2), w.y), V, "embeddings (8, 2, 2)"),
    ("loss: a list", lambda w: w.loss([[1.0]], w.y), T, "embeddings tensor list"),
    ("loss: integer embeddings", lambda w: w.loss(w.e.long(), w.y), T, "embeddings floating-point int64"),
    ("loss: labels of two dimensions", lambda w: w.loss(w.e, torch.ones(8, 2).long()), V, "labels (batch,) (8, 2)"),
    ("loss: fewer labels", lambda w: w.loss(w.e, w.y[:5]), V, "labels as many 5 for 8"),
    ("loss: labels of a float type", lambda w: w.loss(w.e, w.y.float()), T, "labels integers float32 long()"),
    ("loss: complex labels", lambda w: w.loss(w.e, w.y.cfloat()), T, "labels integers complex64"),
    ("loss: a list of labels", lambda w: w.loss(w.e, w.y.tolist()), T, "labels tensor list"),
    ("loss: no labels", lambda w: w.loss(w.e), V, "labels needed indices_tuple"),
    ("loss: references without labels", lambda w: w.loss(w.e, w.y, ref_emb=w.e), V, "ref_labels needed"),
    ("loss: fewer labels of references", lambda w: w.loss(w.e, w.y, None, w.e, w.y[:3]), V, "ref_labels 3 for 8"),
    ("loss: float labels of references", lambda w: w.loss(w.e, w.y, None, w.e, w.y.half()), T, "ref_labels float16"),
    ("loss: references of one dimension", lambda w: w.loss(w.e, w.y, None, w.e[0], w.y[:1]), V, "ref_embeddings (5,)"),
    ("loss: references of another width", lambda w: w.loss(w.e, w.y, None, w.e[:, :3], w.y), V, "ref_embeddings 3 5"),
    ("loss: block of nothing", lambda _: losses.SemiHardTripletLoss(block_size=0), V, "block_size at least 1 0"),
    ("loss: negative block", lambda _: losses.SemiHardTripletLoss(block_size=-3), V, "block_size at least 1 -3"),
    ("loss: block of half an anchor", lambda _: losses.SemiHardTripletLoss(block_size=0.5), T, "block_size int float"),
    ("loss: block by name", lambda _: losses.SemiHardTripletLoss(block_size="8"), T, "block_size int str"),
    ("loss: margin by name", lambda _: losses.SemiHardTripletLoss(margin="0.2"), T, "margin number str"),
    ("loss: margin not a number", lambda _: losses.SemiHardTripletLoss(margin=NAN), V, "margin finite nan"),
    ("loss: margin none", lambda _: losses.SemiHardTripletLoss(margin=None), T, "margin number NoneType"),
    ("two heads: one tensor", lambda w: w.both(w.e, w.y), T, "outputs (logits, embeddings) Tensor"),
    ("two heads: a list", lambda w: w.both([w.logits, w.e], w.y), T, "outputs list"),
    ("two heads: three tensors", lambda w: w.both((w.e, w.e, w.e), w.y), T, "outputs (logits, embeddings) tuple"),
    ("two heads: fewer logits", lambda w: w.both((w.logits[:4], w.e), w.y), V, "logits 4 for 8"),
    ("two heads: fewer labels", lambda w: w.both((w.logits, w.e), w.y[:4]), V, "labels 4 for 8"),
    ("two heads: float labels", lambda w: w.both((w.logits, w.e), w.y.double()), T, "labels integers float64"),
    (
        "two heads: labels one-hot",
        lambda w: w.both((w.logits, w.e), torch.eye(8).long()),
        V,
        "labels (8, 8) class numbers",
    ),
    ("two heads: flat embeddings", lambda w: w.both((w.logits, w.e[:, 0]), w.y), V, "embeddings (8,)"),
    (
        "two heads: a loss of torch as metric loss",
        lambda _: losses.TwoHeadLoss(nn.MSELoss()),
        T,
        "metric_loss indices_tuple MSELoss",
    ),
    ("two heads: a function as metric loss", lambda _: losses.TwoHeadLoss(lambda e, y: 0), T, "metric_loss function"),
    ("two heads: a name as metric loss", lambda _: losses.TwoHeadLoss("triplet"), T, "metric_loss str"),
    (
        "two heads: a number as classification loss",
        lambda _: losses.TwoHeadLoss(classification_loss=1),
        T,
        "classification_loss callable int",
    ),
    ("two heads: weight by name", lambda _: losses.TwoHeadLoss(metric_weight="1"), T, "metric_weight number str"),
    ("two heads: weight not a number", lambda _: losses.TwoHeadLoss(metric_weight=NAN), V, "metric_weight finite nan"),
    (
        "memory: a loss without support",
        lambda _: losses.CrossBatchMemory(losses.TwoHeadLoss(), 4),
        Exception,
        "not supported TwoHeadLoss",
    ),
    (
        "self-supervised: a loss without support",
        lambda _: losses.SelfSupervisedLoss(losses.TwoHeadLoss()),
        Exception,
        "not supported TwoHeadLoss",
    ),
    (
        "miner: unknown fallback",
        lambda _: miners.SemiHardMiner(fallback="nearest"),
        V,
        "fallback \"farthest\" None 'nearest'",
    ),
    ("miner: block of nothing", lambda _: miners.SemiHardMiner(block_size=0), V, "block_size at least 1 0"),
    ("miner: block of half an anchor", lambda _: miners.SemiHardMiner(block_size=0.5), T, "block_size int float"),
    ("miner: flat embeddings", lambda w: w.miner(torch.ones(8), w.y), V, "embeddings (8,)"),
    ("miner: a list", lambda w: w.miner([1.0], w.y), T, "embeddings tensor list"),
    ("miner: integer embeddings", lambda w: w.miner(w.e.int(), w.y), T, "embeddings floating-point int32"),
    ("miner: fewer labels", lambda w: w.miner(w.e, w.y[:2]), V, "labels 2 for 8"),
    ("miner: float labels", lambda w: w.miner(w.e, w.y.float()), T, "labels integers float32"),
    ("miner: no labels", lambda w: w.miner(w.e, None), V, "labels needed"),
    ("miner: references without labels", lambda w: w.miner(w.e, w.y, w.e), V, "ref_labels needed"),
    ("miner: fewer labels of references", lambda w: w.miner(w.e, w.y, w.e, w.y[:2]), V, "ref_labels 2 for 8"),
    ("miner: references of another width", lambda w: w.miner(w.e, w.y, w.e[:, :2], w.y), V, "ref_embeddings 2 5"),
]


TWO_HEAD = [
    ("data parallel", lambda w: models.TwoHead(nn.DataParallel(w.two.model)), T, "timm DataParallel model.module"),
    (
        "unknown setting",
        lambda w: models.TwoHead(w.two.model, embed_size=4),
        T,
        "TwoHead 'embed_size' 'embedding_size'",
    ),
    ("a plain network", lambda w: models.TwoHead(w.model), T, "model timm Sequential forward_features create_model"),
    ("a name", lambda _: models.TwoHead("resnet18"), T, "model timm str"),
    ("none", lambda _: models.TwoHead(None), T, "model timm NoneType"),
    (
        "no classifier",
        lambda _: models.TwoHead(timm.create_model("test_resnet", num_classes=0)),
        T,
        "model classifier num_classes=0",
    ),
    ("unknown pooling", lambda w: models.TwoHead(w.two.model, pooling="max"), V, 'pooling "avg" "flatten" \'max\''),
    ("no pooling", lambda w: models.TwoHead(w.two.model, pooling=None), V, "pooling None"),
    ("size zero", lambda w: models.TwoHead(w.two.model, 0), V, "embedding_size at least 1 got 0"),
    ("size negative", lambda w: models.TwoHead(w.two.model, -4), V, "embedding_size -4"),
    ("size a fraction", lambda w: models.TwoHead(w.two.model, 4.5), T, "embedding_size int float"),
    ("size by name", lambda w: models.TwoHead(w.two.model, "4"), T, "embedding_size int str"),
    (
        "input size of two numbers",
        lambda w: models.TwoHead(w.two.model, 4, "flatten", (32, 32)),
        V,
        "input_size (C, H, W) (32, 32)",
    ),
    ("input size a number", lambda w: models.TwoHead(w.two.model, 4, "flatten", 32), T, "input_size (C, H, W) int"),
    ("unknown attribute", lambda w: w.two.no_such_thing, AttributeError, "no_such_thing"),
]
