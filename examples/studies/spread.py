"""Terms that keep embeddings apart, in the slot of pytorch-metric-learning's embedding regularizers.

Each is a small function written from its published formula, on embeddings (b, d) as the network gives them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import VICRegLoss
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor

from pml_extensions.regularizers import SVMaxRegularizer

SLICES = 256  # random directions a batch, for the terms that look along them
KNOTS, REACH = 17, 5.0  # of the integral over the characteristic function, as published


def koleo(embeddings: Tensor) -> Tensor:
    """Return -1/b sum_i log min_{j != i} ||x_i - x_j|| of unit vectors (Sablayrolles et al., arXiv:1806.03198)."""
    unit = F.normalize(embeddings)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-math.inf).argmax(1)
    return -F.pairwise_distance(unit, unit[nearest], eps=1e-8).log().mean()


def orthogonality(embeddings: Tensor) -> Tensor:
    """Return m1^2 + max(0, m2 - 1/d), moments of the inner products of unit vectors (Zhang et al., arXiv:1708.06320).

    The paper takes pairs of different classes; here all pairs of a batch count, for a regularizer sees no labels.
    """
    unit = F.normalize(embeddings)
    b, d = unit.shape
    inner = (unit @ unit.T)[~torch.eye(b, dtype=torch.bool)]
    return inner.mean().square() + F.relu(inner.square().mean() - 1 / d)


def directions(d: int) -> Tensor:
    """Return random unit vectors as columns."""
    return F.normalize(torch.randn(d, SLICES), dim=0)


def sigreg(embeddings: Tensor) -> Tensor:
    """Return the mean Epps-Pulley statistic along random directions (Balestriero and LeCun, arXiv:2511.08544).

    It is b times the integral of |phi(t) - exp(-t^2/2)|^2 exp(-t^2/2) over t, with phi the characteristic function of
    the embeddings along a direction: their distance from an isotropic Gaussian.
    """
    t = torch.linspace(-REACH, REACH, KNOTS)
    gaussian = torch.exp(-t.square() / 2)
    angles = (embeddings @ directions(embeddings.shape[1]))[..., None] * t
    apart = (angles.cos().mean(0) - gaussian).square() + angles.sin().mean(0).square()
    return len(embeddings) * torch.trapezoid(apart * gaussian, t).mean()


def visreg(embeddings: Tensor) -> Tensor:
    """Return centre + scale + shape (Wu, Balestriero and Levine, arXiv:2606.02572, equations 1, 2, 5 and 6).

    Centre and scale draw each dimension's mean to 0 and deviation to 1; the shape is the squared Wasserstein distance
    along random directions of the standardised embeddings from a Gaussian, whose gradient passes over the deviation.
    """
    mean, deviation = embeddings.mean(0), embeddings.std(0, unbiased=False)
    standard = (embeddings - mean) / (deviation.detach() + 1e-4)
    b = len(embeddings)
    quantiles = torch.special.ndtri(torch.arange(1, b + 1) / (b + 1))
    along = (standard @ directions(embeddings.shape[1])).sort(0).values
    shape = (along - quantiles[:, None]).square().mean()
    return mean.square().mean() + (1 - deviation).square().mean() + shape


def variance_covariance(embeddings: Tensor) -> Tensor:
    """Return v + c / 25, the variance and covariance terms of VICReg (Bardes et al., arXiv:2105.04906, eq. 1 and 4).

    They are pytorch-metric-learning's, whose variance is half of one batch's and whose covariance is of two batches.
    """
    vicreg = VICRegLoss()
    variance, _ = vicreg.variance_loss(embeddings, embeddings)
    covariance = vicreg.covariance_loss(embeddings, embeddings) / 2
    return 2 * variance.mean() + covariance * vicreg.covariance_v / vicreg.variance_mu


class Spread(BaseRegularizer):
    """One of these terms as an embedding regularizer."""

    def __init__(self, term: Callable[[Tensor], Tensor]):
        super().__init__()
        self.term = term

    def compute_loss(self, embeddings: Tensor) -> dict[str, dict[str, object]]:
        """Return the term in the form that pytorch-metric-learning's reducers take."""
        return {"loss": {"losses": self.term(embeddings), "indices": None, "reduction_type": "already_reduced"}}


NONE, SVMAX = "none", "SVMax, exponential"
REGULARIZERS: dict[str, Callable[[], BaseRegularizer | None]] = {
    NONE: lambda: None,
    SVMAX: SVMaxRegularizer,
    "SVMax, linear": lambda: SVMaxRegularizer("linear"),
    "VICReg's terms": lambda: Spread(variance_covariance),
    "KoLeo": lambda: Spread(koleo),
    "orthogonality": lambda: Spread(orthogonality),
    "SIGReg": lambda: Spread(sigreg),
    "VISReg": lambda: Spread(visreg),
}
