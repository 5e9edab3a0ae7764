"""SVMax: retrieval among 1,474 characters never seen, after training on as many others, without and with the term."""

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np
import timm
import torch
import torch.nn.functional as F
from first_runs.runs import Run
from first_runs.seeding import set_seed
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NPairsLoss
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from studies.glyphs import Glyphs, permutation
from torch import Tensor, nn
from torchvision.utils import make_grid

from pml_extensions.regularizers import SVMaxRegularizer, effective_rank

WITHOUT, WITH = "N-pairs", "N-pairs + SVMax"
LOSSES = {
    WITHOUT: NPairsLoss,
    WITH: lambda: NPairsLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=1.0),
}
SIZE, EMBEDDING_SIZE = 24, 64
BATCH_SIZE, PER_CLASS = 96, 4
STEPS, LEARNING_RATE = 100, 0.1
TITLE = f"SVMax: retrieval of characters never seen, learning rate {LEARNING_RATE}"
QUERIES, NEIGHBOURS = 10, 5
SHOWN = (1, 2, 3, 5, 9, 17, 33, EMBEDDING_SIZE)  # which singular values
FRAME, RIGHT, OTHER = 2, "#2a9d3a", "lightgrey"  # pixels around an image, and their colours


def train(loss: nn.Module, data: Glyphs, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a network trained with a metric loss, and the singular values of every batch's embeddings."""
    set_seed(seed)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=EMBEDDING_SIZE).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    sampler = MPerClassSampler(data.labels, PER_CLASS, BATCH_SIZE, length_before_new_iter=BATCH_SIZE * STEPS)
    spectra = []
    for batch in torch.tensor(list(sampler)).split(BATCH_SIZE):
        embeddings = model(data.images[batch])
        optimizer.zero_grad()
        loss(embeddings, data.labels[batch]).backward()
        optimizer.step()
        spectra.append(torch.linalg.svdvals(F.normalize(embeddings.detach())))
    return model, torch.stack(spectra)


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Return the unit-length embeddings of images."""
    model.eval()
    return F.normalize(torch.cat([model(chunk) for chunk in images.split(256)]))


def retrieval(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Return recall at 1 and MAP@R in percent, each image searched for among all the others."""
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
    )
    accuracy = calculator.get_accuracy(embeddings, labels)
    return {"R@1, %": 100 * accuracy["precision_at_1"], "MAP@R, %": 100 * accuracy["mean_average_precision_at_r"]}


def run(seed: int, folder: Path) -> list[Run]:
    """Train without and with the term, measure on new characters, and draw what came out."""
    seen, unseen = Glyphs.load(SIZE).distinct().halves(seed)
    runs, spectra, embedded = [], {}, {}
    for method, make in LOSSES.items():
        model, spectra[method] = train(make(), seen, seed)
        embedded[method] = embed(model, unseen.images)
        rank = effective_rank(embedded[method]).item()
        runs.append(Run(method, seed, {**retrieval(embedded[method], unseen.labels), "effective rank": rank}))
    save(spectra, folder / f"singular_values_{seed}.csv")
    picture(spectra, embedded, unseen).savefig(folder / f"svmax_{seed}.png", dpi=110)
    return runs


def save(spectra: dict[str, Tensor], path: Path) -> None:
    """Write the singular values of every batch, the largest first."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "iteration", *range(1, EMBEDDING_SIZE + 1)])
        for method, values in spectra.items():
            for iteration, row in enumerate(values.tolist(), start=1):
                writer.writerow([method, iteration, *(f"{value:.4g}" for value in row)])


def picture(spectra: dict[str, Tensor], embedded: dict[str, Tensor], unseen: Glyphs) -> Figure:
    """Draw the singular values of the batches, and the nearest images of some new characters, without and with."""
    figure = Figure(figsize=(9, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2))
    singular_values(above.subplots(1, len(spectra), sharey=True), spectra)
    many = (unseen.labels.bincount() > NEIGHBOURS)[unseen.labels].nonzero()[:, 0]
    queries = many[permutation(len(many), seed=0)[:QUERIES]]
    for axis, (method, embeddings) in zip(below.subplots(1, len(embedded)), embedded.items(), strict=True):
        axis.imshow(nearest(embeddings, unseen, queries).permute(1, 2, 0).numpy())
        axis.set_title(f"new characters, and the nearest images: {method}", fontsize="small")
        axis.axis("off")
    return figure


def singular_values(axes: np.ndarray, spectra: dict[str, Tensor]) -> None:
    """Draw some singular values of every batch, a panel a method."""
    for axis, (method, values) in zip(axes, spectra.items(), strict=True):
        for order, index in enumerate(SHOWN):
            colour = mpl.colormaps["viridis"](order / len(SHOWN))
            axis.semilogy(values[:, index - 1].numpy(), color=colour, label=index)
        axis.set(title=method, xlabel="iteration", ylim=(0.005, 15))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("singular value of a batch")
    axes[-1].legend(title="largest = 1", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def nearest(embeddings: Tensor, unseen: Glyphs, queries: Tensor) -> Tensor:
    """Return a picture, (3, height, width): a row has a query and its nearest images, those of its character framed."""
    similar = (embeddings[queries] @ embeddings.T).scatter(1, queries[:, None], -2)
    shown = torch.cat([queries[:, None], similar.topk(NEIGHBOURS).indices], dim=1)
    right = unseen.labels[shown] == unseen.labels[queries, None]
    colours = torch.tensor([to_rgb(OTHER), to_rgb(RIGHT)])[right.long()]
    colours[:, 0] = 1  # the queries have no frame
    images = (1 - unseen.images[shown.flatten()]) / 2  # ink is black
    height, width = (side + 2 * FRAME for side in images.shape[2:])
    tiles = colours.view(-1, 3, 1, 1).repeat(1, 1, height, width)
    tiles[:, :, FRAME:-FRAME, FRAME:-FRAME] = images
    return make_grid(tiles, nrow=1 + NEIGHBOURS, padding=1, pad_value=1)
