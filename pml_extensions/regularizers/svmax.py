"""SVMax: keep a batch of embeddings spread out by raising its mean singular value.

Source: Taha, Hanson, Shrivastava and Davis, "SVMax: A Feature Embedding Regularizer", arXiv:2103.02770, equations 1
and 4. Differences from the published code: the sum of the singular values is divided by d for every batch size (the
code divides by min(b, d) while its bounds divide by d), and the bounds follow the batch's own Frobenius norm, which is
sqrt(b) for unit rows, so that they also hold for rows that are not normalised.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor

from pml_extensions.regularizers._nuclear_norm import nuclear_norm
from pml_extensions.regularizers._processes import (
    SharedNuclearNorm,
    SharedRows,
    enclosing_loss_wrapper,
    is_distributed,
)

FORMS = ("exponential", "linear")


def mean_singular_value(embeddings: Tensor) -> Tensor:
    """Return the mean singular value of a batch: the sum of its singular values, divided by the embedding size.

    The rows are taken as they are, neither normalised nor centred. Differentiable once; singular values that are zero
    up to rounding contribute nothing to the gradient.

    Args:
        embeddings: the batch; half precision is computed in float32.

    Shape:
        embeddings (b, d); the result is a scalar, float32 or float64.

    Returns:
        ``||embeddings||_* / d``; NaN if an embedding is not finite.

    Raises:
        TypeError: ``embeddings`` is not a floating-point tensor.
        ValueError: ``embeddings`` is not a non-empty matrix.

    Examples:
        >>> mean_singular_value(torch.eye(4))
        tensor(1.)
    """
    embeddings = _floating_matrix(embeddings)
    norm, _ = nuclear_norm(embeddings)
    return norm / embeddings.shape[1]


def svmax_bounds(batch_size: int, embedding_size: int) -> tuple[float, float]:
    """Return the least and the greatest mean singular value that a batch of unit-length embeddings can have.

    The least is that of a batch on one line, the greatest that of a batch with equal singular values
    (arXiv:2103.02770, section 3).

    Args:
        batch_size: the number of rows, b.
        embedding_size: the length of a row, d.

    Returns:
        ``(sqrt(b) / d, sqrt(b * min(b, d)) / d)``.

    Raises:
        ValueError: one of the sizes is not positive.

    Examples:
        >>> svmax_bounds(144, 64)
        (0.1875, 1.5)
    """
    for name, size in (("batch_size", batch_size), ("embedding_size", embedding_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    least = math.sqrt(batch_size) / embedding_size
    return least, least * math.sqrt(min(batch_size, embedding_size))


def effective_rank(embeddings: Tensor) -> Tensor:
    """Return how many directions a batch of embeddings uses: the exponential of its spectrum's entropy.

    The singular values, divided by their sum, are read as probabilities (RankMe, Garrido et al., arXiv:2210.02885,
    without its added epsilon; 0 log 0 = 0). Nothing is centred or normalised. The result lies between 1, for a batch
    that collapsed to a point or a line, and min(b, d). It is a diagnostic without a gradient.

    Args:
        embeddings: the batch; half precision is computed in float32.

    Shape:
        embeddings (b, d); the result is a scalar, float32 or float64.

    Raises:
        TypeError: ``embeddings`` is not a floating-point tensor.
        ValueError: ``embeddings`` is not a non-empty matrix.

    Examples:
        >>> effective_rank(torch.ones(8, 3)), effective_rank(torch.eye(4))
        (tensor(1.), tensor(4.))
    """
    return _entropy_rank(nuclear_norm(_floating_matrix(embeddings).detach())[1])


class SVMaxRegularizer(BaseRegularizer):
    """Add to a metric loss a term that falls as the batch of embeddings spreads over more directions.

    With the mean singular value s of the batch, and its bounds L (all embeddings on one line) and U (equal singular
    values), the exponential form is ``exp((U - s) / (U - L))``, between 1 for a spread batch and e for a collapsed one
    (arXiv:2103.02770, equation 4; used there for all retrieval), and the linear form is ``-s`` (equation 1).

    Args:
        form: ``"exponential"`` (default) or ``"linear"``.
        normalize_embeddings: L2-normalise the rows first (default). pytorch-metric-learning hands a regularizer the
            raw embeddings even where the loss's distance normalises them, and a network can raise the singular values
            of raw embeddings by their length alone.
        distributed: regularize the batch of all processes of ``torch.distributed``, of which each one passes its own
            rows, as many as it has. Every process gets the value of the whole batch; the gradient for its rows is
            multiplied by the number of processes, because DistributedDataParallel and FSDP divide by it. Inside the
            host's DistributedLossWrapper, ``efficient`` or not, the term is neither gathered nor multiplied twice.
            Without other processes it changes nothing. By default each process regularizes what it is given.
        **kwargs: those of every regularizer: ``collect_stats``, ``reducer``, ``distance`` (not used). With
            ``collect_stats`` the attributes ``mean_singular_value``, ``spread`` (the fraction of the way from L to U)
            and ``effective_rank`` hold the last batch's values.

    Shape:
        embeddings (b, d), any floating dtype; the result is a scalar, float32 or float64. A row of zeros counts for
        nothing. With b = 1 or d = 1 the exponential form is 1 and has no gradient. A batch that is collapsed exactly
        gets no gradient either: no direction is better than another.

    Raises:
        ValueError: ``form`` is unknown, or embeddings are not a non-empty matrix.
        TypeError: embeddings are not a floating-point tensor.

    Examples:
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> loss = ContrastiveLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=1.0)
    """

    def __init__(
        self,
        form: str = "exponential",
        normalize_embeddings: bool = True,
        *,
        distributed: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
        self.form = form
        self.normalize_embeddings = normalize_embeddings
        self.distributed = distributed
        self.add_to_recordable_attributes(
            list_of_names=["mean_singular_value", "spread", "effective_rank"], is_stat=True
        )

    def compute_loss(self, embeddings: Tensor) -> dict[str, dict[str, Any]]:
        """Return the term in the form that pytorch-metric-learning's reducers take."""
        shared = self.distributed and is_distributed()
        term = self._of_all_processes(embeddings) if shared else self._of_one_process(embeddings)
        return {"loss": {"losses": term, "indices": None, "reduction_type": "already_reduced"}}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _of_all_processes(self, embeddings: Tensor) -> Tensor:
        wrapper = enclosing_loss_wrapper()
        if wrapper is not None and not wrapper.efficient:  # it has gathered the batch
            return self._of_one_process(embeddings)
        embeddings = self._normalized(_floating_matrix(embeddings, may_be_empty=True))
        shared = SharedRows(embeddings)
        norm, frobenius, singular_values = SharedNuclearNorm.apply(embeddings, shared)
        term = self._term(norm, frobenius, singular_values, (shared.total_count, embeddings.shape[1]))
        factor = 1 if wrapper is not None else dist.get_world_size()  # the wrapper multiplies by it, too
        return term + (factor - 1) * (term - term.detach())

    def _of_one_process(self, embeddings: Tensor) -> Tensor:
        embeddings = self._normalized(_floating_matrix(embeddings))
        norm, singular_values = nuclear_norm(embeddings)
        return self._term(norm, torch.linalg.matrix_norm(embeddings), singular_values, embeddings.shape)

    def _normalized(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings) if self.normalize_embeddings else embeddings

    def _term(self, norm: Tensor, frobenius: Tensor, singular_values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the term of a batch of this shape from its norms; record its spectrum on request."""
        s = norm / shape[1]
        spread = _spread(norm, frobenius, shape)
        if self.collect_stats:
            self.mean_singular_value = s.item()
            self.spread = spread.item()
            self.effective_rank = _entropy_rank(singular_values).item()
        return torch.exp(1 - spread) if self.form == "exponential" else -s

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"form={self.form!r}, normalize_embeddings={self.normalize_embeddings}, distributed={self.distributed}"


def _floating_matrix(embeddings: Tensor, may_be_empty: bool = False) -> Tensor:
    """Return ``embeddings`` in float32 or wider, after checking that they are a batch."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"embeddings must be a floating-point tensor, got {got}")
    if embeddings.ndim != 2 or 0 in embeddings.shape[int(may_be_empty) :]:
        raise ValueError(f"embeddings must be a non-empty matrix (b, d), got shape {tuple(embeddings.shape)}")
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def _spread(norm: Tensor, frobenius: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return how far the mean singular value has come from its lower (0) to its upper bound (1)."""
    most = math.sqrt(min(shape))
    if most == 1:
        return 1 + 0 * norm  # one row or one column is spread and collapsed at once
    zero = frobenius == 0
    ratio = torch.where(zero, 1, norm / torch.where(zero, 1, frobenius))
    spread: Tensor = (ratio - 1) / (most - 1)
    return spread


def _entropy_rank(singular_values: Tensor) -> Tensor:
    total = singular_values.sum()
    entropy: Tensor = torch.special.entr(singular_values / torch.where(total == 0, 1, total)).sum()
    return entropy.exp()
