"""The rows of the catalogue about regularizer, losses, miner and two-head models."""

import timm
import torch
from classes import randn
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss
from timm.utils import ModelEmaV3
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


PARTS = [
    (
        "loss: distance by name",
        lambda _: losses.SemiHardTripletLoss(distance="cosine"),
        T,
        "distance CosineSimilarity() 'cosine'",
    ),
    (
        "loss: a function for a distance",
        lambda _: losses.SemiHardTripletLoss(distance=torch.cdist),
        T,
        "distance cdist",
    ),
    (
        "loss: distance of torch",
        lambda _: losses.SemiHardTripletLoss(distance=nn.PairwiseDistance()),
        T,
        "distance CosineSimilarity() PairwiseDistance",
    ),
    ("miner: distance by name", lambda _: miners.SemiHardMiner(distance="l2"), T, "distance 'l2'"),
    ("loss: reducer by name", lambda _: losses.SemiHardTripletLoss(reducer="mean"), T, "reducer MeanReducer() 'mean'"),
    ("loss: a function for a reducer", lambda _: losses.SemiHardTripletLoss(reducer=torch.mean), T, "reducer mean"),
    (
        "loss: reducer of one number",
        lambda _: losses.SemiHardTripletLoss(reducer=lambda x: x),
        T,
        "reducer MeanReducer()",
    ),
    ("two heads: reducer by name", lambda _: losses.TwoHeadLoss(reducer="sum"), T, "reducer MeanReducer() 'sum'"),
    (
        "loss: regularizer by name",
        lambda _: losses.SemiHardTripletLoss(embedding_regularizer="svmax"),
        T,
        "embedding_regularizer SVMaxRegularizer() 'svmax'",
    ),
    (
        "loss: regularizer of two batches",
        lambda _: losses.SemiHardTripletLoss(embedding_regularizer=nn.MSELoss()),
        T,
        "embedding_regularizer SVMaxRegularizer() MSELoss",
    ),
    (
        "loss: weight of a regularizer by name",
        lambda _: losses.SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight="1"),
        T,
        "embedding_reg_weight number str",
    ),
    (
        "loss: no weight of a regularizer",
        lambda _: losses.SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=None),
        T,
        "embedding_reg_weight number NoneType",
    ),
    ("loss: margins", lambda _: losses.SemiHardTripletLoss(margin=torch.ones(2)), T, "margin one number (2,)"),
    ("loss: yes", lambda _: losses.SemiHardTripletLoss(smooth_loss="yes"), T, "smooth_loss True False 'yes'"),
    (
        "loss: flags",
        lambda _: losses.SemiHardTripletLoss(smooth_loss=torch.ones(2)),
        T,
        "smooth_loss True False tensor",
    ),
    (
        "regularizer: no",
        lambda _: SVMaxRegularizer(normalize_embeddings="no"),
        T,
        "normalize_embeddings True False 'no'",
    ),
    ("regularizer: distributed", lambda _: SVMaxRegularizer(distributed="no"), T, "distributed True False 'no'"),
    ("regularizer: statistics", lambda _: SVMaxRegularizer(collect_stats="no"), T, "collect_stats True False 'no'"),
    ("miner: statistics", lambda _: miners.SemiHardMiner(collect_stats=2), T, "collect_stats True False 2"),
    ("miner: a list of fallbacks", lambda _: miners.SemiHardMiner(fallback=["x"]), V, "fallback \"farthest\" ['x']"),
    ("two heads: ignored by name", lambda _: losses.TwoHeadLoss(ignore_label="x"), T, "ignore_label int 'x'"),
    ("two heads: half a class ignored", lambda _: losses.TwoHeadLoss(ignore_label=0.5), T, "ignore_label int 0.5"),
    ("two heads: classes ignored", lambda _: losses.TwoHeadLoss(ignore_label=[1, 2]), T, "ignore_label int [1, 2]"),
    ("memory: no size", lambda w: losses.CrossBatchMemory(w.loss, 5, 0), V, "memory_size at least 1 0"),
    ("memory: size of a fraction", lambda w: losses.CrossBatchMemory(w.loss, 5, 4.5), T, "memory_size int float"),
    ("memory: width by name", lambda w: losses.CrossBatchMemory(w.loss, "5", 4), T, "embedding_size int str"),
    (
        "memory: miner by name",
        lambda w: losses.CrossBatchMemory(w.loss, 5, 4, "hard"),
        T,
        "miner SemiHardMiner() 'hard'",
    ),
]


BATCHES = [
    ("two heads: no labels", lambda w: w.both((w.logits, w.e), None), T, "labels integers None"),
    ("two heads: no logits", lambda w: w.both((None, w.e), w.y), T, "logits floating-point NoneType"),
    (
        "two heads: integer logits",
        lambda w: w.both((w.logits.long(), w.e), w.y),
        T,
        "logits floating-point int64 (8, 3)",
    ),
    ("two heads: a list of logits", lambda w: w.both((w.logits.tolist(), w.e), w.y), T, "logits floating-point list"),
    ("two heads: soft labels", lambda w: w.both((w.logits, w.e), torch.ones(8, 3)), V, "labels (8, 3) argmax(1)"),
    (
        "two heads: logits elsewhere",
        lambda w: w.both((w.logits.to("meta"), w.e), w.y),
        V,
        "logits device cpu meta .to(",
    ),
    (
        "two heads: unknown class",
        lambda w: w.both((w.logits, w.e), w.y + 2),
        IndexError,
        "classification_loss CrossEntropyLoss (8, 3) from 2 to out of bounds",
    ),
    (
        "two heads: a loss of one-hot labels",
        lambda w: losses.TwoHeadLoss(classification_loss=nn.BCEWithLogitsLoss())((w.logits, w.e), w.y),
        V,
        "classification_loss BCEWithLogitsLoss (8, 3) class numbers one-hot by hand",
    ),
    ("loss: no columns", lambda w: w.loss(w.e[:, :0], w.y), V, "embeddings (batch, dimension) (8, 0)"),
    ("loss: sparse embeddings", lambda w: w.loss(w.e.to_sparse(), w.y), T, "embeddings dense sparse_coo to_dense()"),
    ("loss: sparse labels", lambda w: w.loss(w.e, w.y.to_sparse()), T, "labels dense sparse_coo to_dense()"),
    (
        "loss: references elsewhere",
        lambda w: w.loss(w.e, w.y, None, w.e.to("meta"), w.y),
        V,
        "ref_embeddings device cpu meta ref_embeddings.to(",
    ),
    ("loss: a miner for indices", lambda w: w.loss(w.e, w.y, w.miner), T, "indices_tuple three tensors SemiHardMiner"),
    ("loss: labels for indices", lambda w: w.loss(w.e, w.y, w.y), T, "indices_tuple three tensors Tensor"),
    ("loss: no indices", lambda w: w.loss(w.e, w.y, ()), T, "indices_tuple three tensors 0 entries"),
    ("loss: lists of indices", lambda w: w.loss(w.e, w.y, ([0], [1], [2])), T, "indices_tuple tensors list, list"),
    (
        "loss: fractions for indices",
        lambda w: w.loss(w.e, w.y, (w.y.float(),) * 3),
        T,
        "indices_tuple integers float32",
    ),
    ("loss: masks for indices", lambda w: w.loss(w.e, w.y, (w.y > 0,) * 3), T, "indices_tuple integers bool"),
    ("loss: indices of two dimensions", lambda w: w.loss(w.e, w.y, (w.y[None],) * 3), T, "indices_tuple (t,) (1, 8)"),
    (
        "loss: indices of other lengths",
        lambda w: w.loss(w.e, w.y, (w.y[:2], w.y, w.y)),
        V,
        "indices_tuple length [2, 8, 8]",
    ),
    (
        "loss: pairs of other lengths",
        lambda w: w.loss(w.e, w.y, (w.y[:2], w.y, w.y, w.y)),
        V,
        "indices_tuple length [2, 8, 8, 8]",
    ),
    ("loss: indices of no row", lambda w: w.loss(w.e, w.y, (w.y + 8,) * 3), V, "indices_tuple 0 to 7 8"),
    ("loss: indices from the end", lambda w: w.loss(w.e, w.y, (w.y - 9,) * 3), V, "indices_tuple 0 to 7 -9"),
    (
        "loss: indices of no reference",
        lambda w: w.loss(w.e, w.y, (w.y, w.y + 5, w.y), w.e[:4], w.y[:4]),
        V,
        "indices_tuple 0 to 3 ref_emb",
    ),
    ("memory: another width", lambda w: memory(w)(w.e[:, :3], w.y), V, "embeddings (batch, 5) embedding_size=5 (8, 3)"),
    ("memory: a batch that is too large", lambda w: memory(w, 4)(w.e, w.y), V, "embeddings memory_size=4 8 larger"),
    ("memory: a list", lambda w: memory(w)(w.e.tolist(), w.y), T, "embeddings floating-point list"),
    ("memory: float labels", lambda w: memory(w)(w.e, w.y.float()), T, "labels integers float32 long()"),
    ("memory: fewer labels", lambda w: memory(w)(w.e, w.y[:3]), V, "labels as many 3 for 8"),
    ("memory: labels one-hot", lambda w: memory(w)(w.e, torch.eye(8).long()), V, "labels (batch,) (8, 8)"),
    ("memory: a mask for indices", lambda w: memory(w)(w.e, w.y, w.y > 0), T, "indices_tuple three tensors Tensor"),
    ("memory: mask of integers", lambda w: memory(w)(w.e, w.y, None, w.y), T, "enqueue_mask booleans int64 .bool()"),
    ("memory: a list for a mask", lambda w: memory(w)(w.e, w.y, None, [True] * 8), T, "enqueue_mask booleans list"),
    ("memory: a short mask", lambda w: memory(w)(w.e, w.y, None, w.y[:4] > 0), V, "enqueue_mask (8,) (4,)"),
    ("self-supervised: labels", lambda w: views(w)(w.e, w.y), T, "ref_embeddings floating-point int64"),
    ("self-supervised: fewer views", lambda w: views(w)(w.e, w.e[:4]), V, "ref_emb views (8, 5) (4, 5)"),
    ("self-supervised: none", lambda w: views(w)(w.e, None), T, "ref_embeddings floating-point NoneType"),
    ("self-supervised: elsewhere", lambda w: views(w)(w.e, w.e.to("meta")), V, "ref_embeddings device cpu meta"),
]


def memory(w, size=16):
    return losses.CrossBatchMemory(w.loss, 5, size)


def views(w):
    return losses.SelfSupervisedLoss(w.loss)


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
    (
        "input size of fractions",
        lambda w: models.TwoHead(w.two.model, 4, "avg", (3, 32.0, 32)),
        T,
        "input_size int float",
    ),
    (
        "input size by name",
        lambda w: models.TwoHead(w.two.model, 4, "avg", ("3", "32", "32")),
        T,
        "input_size int str",
    ),
    (
        "input size of nothing",
        lambda w: models.TwoHead(w.two.model, 4, "avg", (3, 0, 32)),
        V,
        "input_size at least 1 got 0",
    ),
    ("a list of poolings", lambda w: models.TwoHead(w.two.model, pooling=["avg"]), V, "pooling \"flatten\" ['avg']"),
    (
        "a compiled model",
        lambda _: models.TwoHead(torch.compile(timm.create_model("test_resnet"))),
        T,
        "timm OptimizedModule model._orig_mod TwoHead",
    ),
    ("an average of weights", lambda w: models.TwoHead(ModelEmaV3(w.two.model)), T, "timm ModelEmaV3 model.module"),
    (
        "features alone",
        lambda _: models.TwoHead(timm.create_model("test_resnet", features_only=True)),
        T,
        "timm classifier FeatureListNet features_only=False",
    ),
    ("class of a model", lambda _: models.TwoHead(timm.models.ResNet), T, "timm classifier class ResNet create_model"),
    ("unknown attribute", lambda w: w.two.no_such_thing, AttributeError, "no_such_thing"),
]
