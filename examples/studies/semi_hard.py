"""Semi-hard triplets: the published, pytorch-metric-learning's (PML), all and hard ones, on the same batches.

    python examples/studies/semi_hard.py            # go on with the study: rows/semi_hard.csv
    python examples/studies/semi_hard.py --quick    # under a minute

Half of the characters to train on and a quarter to retrieve, as in the study of SVMax. PML's loss differs from the
published one in more than its triplets: plain, not squared distances, and a mean over those that still cost something.
So the published triplets are tried in PML's loss, too. A run takes about 5 s of one core.
"""

import statistics
import time
from collections.abc import Callable

import timm
import torch
from data import Images, zero_shot_glyphs
from measures import batches, embed, retrieval
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from runner import Measures, Setting, Study, main
from svmax import train
from svmax_glyphs import BATCH, PER_CLASS, RATE, STEPS
from torch import nn

from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.regularizers import effective_rank

MARGIN = 0.2
PUBLISHED, MINED = "published", "published, in PML's loss"
HOST, ALL, HARD = "PML's semihard", "all", "hard"
METHODS: dict[str, Callable[[], tuple[nn.Module, nn.Module | None]]] = {
    PUBLISHED: lambda: (SemiHardTripletLoss(margin=MARGIN), None),
    HOST: lambda: (TripletMarginLoss(margin=MARGIN), TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard")),
    MINED: lambda: (TripletMarginLoss(margin=MARGIN), SemiHardMiner()),
    HARD: lambda: (TripletMarginLoss(margin=MARGIN), BatchHardMiner()),
    ALL: lambda: (TripletMarginLoss(margin=MARGIN), None),
}
MEASURES = ("R@1", "MAP@R", "effective rank", "CPU ms of the loss")


def milliseconds(model: nn.Module, batch: Images, loss: nn.Module, miner: nn.Module | None) -> float:
    """Return the processor's milliseconds that mining, loss and its gradient take for one batch."""
    embeddings = model(batch.images).detach().requires_grad_()
    times = []
    for _ in range(10):
        start = time.process_time()
        loss(embeddings, batch.labels, miner(embeddings, batch.labels) if miner else None).backward()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the measures of one training, on new characters."""
    seen, unseen = zero_shot_glyphs(seed)
    if quick:
        unseen = unseen[torch.arange(1000)]
    model = timm.create_model("test_resnet", in_chans=1, num_classes=64).to(memory_format=torch.channels_last)
    loss, miner = METHODS[setting["triplets"]]()
    training = batches(seen, PER_CLASS, BATCH, 2 if quick else STEPS)
    train(model, setting, training, loss, miner)
    spent = milliseconds(model, training[-1], loss, miner)
    embeddings = embed(model, unseen.images)
    found = {"effective rank": effective_rank(embeddings).item(), "CPU ms of the loss": spent}
    return {**retrieval(embeddings, unseen.labels), **found}


STUDIES = (
    Study(
        "semi_hard",
        [{"triplets": method, "learning rate": RATE} for method in METHODS],
        MEASURES,
        run,
    ),
)

if __name__ == "__main__":
    main(*STUDIES)
