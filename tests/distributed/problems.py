"""The problems that the processes solve together and a single process solves alone, and what the two share."""

from itertools import product

import timm
import torch
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn
from torch.distributed import fsdp
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from pml_extensions.evolution import KaimingUniform, LayerDefault, ShrinkPerturb
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

FSDP2 = hasattr(fsdp, "fully_shard")  # public since torch 2.6
RULES = {"uniform": KaimingUniform(), "default": LayerDefault(), "shrink": ShrinkPerturb(0.5, 0.1)}
SETTINGS = {
    "exponential": {},
    "linear": {"form": "linear"},
    "raw": {"normalize_embeddings": False},
    "raw linear": {"form": "linear", "normalize_embeddings": False},
}


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def batches(dtype):
    """Batches of embeddings by name, larger and smaller than their width, ordinary and degenerate."""
    line = randn(1, 12, seed=1, dtype=torch.float64)
    wide = randn(30, 12, seed=2, dtype=torch.float64)
    made = {
        "tall": wide,
        "wide": randn(7, 24, seed=3, dtype=torch.float64),
        "square": randn(12, 12, seed=4, dtype=torch.float64),
        "nearly collapsed": line + 1e-4 * wide,
        "nearly collapsed, wide": randn(1, 24, seed=5, dtype=torch.float64) + 1e-3 * randn(7, 24, seed=6),
        "of few directions": wide[:, :3] @ randn(3, 12, seed=7, dtype=torch.float64),
        "with duplicates and a zero": torch.cat([wide[:9], wide[:9], torch.zeros(1, 12)]),
        "huge": 1e25 * wide,
        "tiny": 1e-25 * wide,
    }
    return {name: batch.to(dtype) for name, batch in made.items()}


def shares(count, world):
    """How a batch is dealt out: evenly as far as it goes, with a short last one, and with a process left empty."""
    even = [count // world + (rank < count % world) for rank in range(world)]
    last = max(1, count // world // 3)
    rest = count - last
    short = [rest // (world - 1) + (rank < rest % (world - 1)) for rank in range(world - 1)] + [last]
    empty = [0, *[count // (world - 1) + (rank < count % (world - 1)) for rank in range(world - 1)]]
    return {"even": even, "short": short, "empty": empty}


def cases(world):
    """Every batch in both precisions, dealt out evenly; every form with every way to deal out, on two batches."""
    for dtype in (torch.float64, torch.float32):
        made = batches(dtype)
        names = [(name, "even", "exponential") for name in made]
        if dtype == torch.float64:
            names += product(("tall", "wide"), ("even", "short", "empty"), SETTINGS)
        for name, share, form in dict.fromkeys(names):
            yield (name, dtype, share, form), made[name], shares(len(made[name]), world)[share], SETTINGS[form]


def own(tensor, counts, rank):
    first = sum(counts[:rank])
    return tensor[first : first + counts[rank]]


def embedder(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)


def steps(last=9):
    """Twenty batches of training data with labels; every fifth, the last one of an epoch, is short."""
    for step in range(20):
        count = 16 if step % 5 < 4 else last
        yield randn(count, 6, seed=100 + step, dtype=torch.float64), torch.arange(count) % 4


def silent_loss(**settings):
    """A metric loss that is zero, with the term beside it."""
    return ContrastiveLoss(
        pos_margin=100,
        neg_margin=0,
        embedding_regularizer=SVMaxRegularizer(**settings),
        embedding_reg_weight=0.7,
    )


def metric_loss(**settings):
    """An ordinary metric loss with the term beside it."""
    return ContrastiveLoss(embedding_regularizer=SVMaxRegularizer(**settings), embedding_reg_weight=0.7)


def mlp():
    """Widths that neither two nor four processes can share evenly, one smaller than their number."""
    torch.manual_seed(5)
    first, second = nn.Sequential(nn.Linear(7, 9), nn.ReLU()), nn.Sequential(nn.Linear(9, 3), nn.ReLU())
    return nn.Sequential(first, second, nn.Linear(3, 5, bias=False))


def normed_mlp():
    """Weights that are computed from what is stored, one with a state of its own."""
    model = mlp()
    weight_norm(model[0][0])
    spectral_norm(model[1][0])
    return model.eval()


def classifier():
    """A timm classifier without statistics over the batch."""
    torch.manual_seed(6)
    return timm.create_model("test_vit", img_size=32, num_classes=4)


def two_head():
    return TwoHead(classifier(), 8)


def pictures():
    """Batches of images with labels."""
    for step in range(3):
        yield randn(8, 3, 32, 32, seed=step), torch.arange(8) // 2


class WithNorms(nn.Module):
    """Norms with statistics over the batch, and an auxiliary one that evaluation does not reach."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3), norm(4))
        self.auxiliary = norm(4)

    def forward(self, x):
        x = self.body(x)
        return self.auxiliary(x) if self.training else x


def shared_batches(world, counts):
    """A list of batches for each process, of unlike sizes and offsets."""
    return [
        [3 * randn(4 + rank, 3, 8, 8, seed=10 * rank + step) + rank + step for step in range(counts[rank])]
        for rank in range(world)
    ]
