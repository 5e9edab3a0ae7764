"""SVMax: keep a batch of embeddings spread out by raising its mean singular value.

Source: Taha, Hanson, Shrivastava and Davis, "SVMax: A Feature Embedding Regularizer", arXiv:2103.02770, equations 1
and 4. Differences from the published code: the sum of the singular values is divided by d for every batch size (the
code divides by min(b, d) while its bounds divide by d), and the bounds follow the batch's own Frobenius norm, which is
sqrt(b) for unit rows, so that they also hold for rows that are not normalised.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._host import check_parts, enclosing_loss_wrapper, is_distributed, record, reduced
from pml_extensions._settings import check_flag
from pml_extensions._spectrum import entropy_rank, floating_matrix, nuclear_norm, spread_between_bounds
from pml_extensions.regularizers._processes import SharedNuclearNorm, SharedRows

FORMS = ("exponential", "linear")


@checked_constructor
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
            multiplied by the number of processes, because DistributedDataParallel and FSDP divide by it. Inside a
            DistributedLossWrapper, ``efficient`` or not, the term is neither gathered nor multiplied twice.
            Without other processes it changes nothing. By default each process regularizes what it is given.
        **kwargs: those of every regularizer: ``collect_stats``, ``reducer``, ``distance`` (not used). With
            ``collect_stats`` the attributes ``mean_singular_value``, ``spread`` (the fraction of the way from L to U)
            and ``effective_rank`` hold the last batch's values.

    Shape:
        embeddings (b, d), any floating dtype; the result is a scalar, float32 or float64. A row of zeros counts for
        nothing. With b = 1 or d = 1 the exponential form is 1 and has no gradient. A batch that is collapsed exactly
        gets no gradient either: no direction is better than another. Derivatives are those of ``mean_singular_value``,
        also over a batch of batches by ``torch.func.vmap``; with ``distributed`` there is the first, backward.

    Raises:
        ValueError: ``form`` is unknown, or embeddings are not a non-empty matrix.
        TypeError: embeddings are not a floating-point tensor.

    Examples:
        >>> from pytorch_metric_learning.losses import NPairsLoss
        >>> loss = NPairsLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=1.0)
    """

    def __init__(
        self,
        form: str = "exponential",
        normalize_embeddings: bool = True,
        *,
        distributed: bool = False,
        **kwargs: Any,
    ) -> None:
        check_parts(kwargs)
        super().__init__(**kwargs)
        check_flag("normalize_embeddings", normalize_embeddings)
        check_flag("distributed", distributed)
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
        self.form = form
        self.normalize_embeddings = normalize_embeddings
        self.distributed = distributed
        record(self, statistics=["mean_singular_value", "spread", "effective_rank"])

    def compute_loss(self, embeddings: Tensor) -> dict[str, dict[str, Any]]:
        """Return the term in the form that pytorch-metric-learning's reducers take."""
        shared = self.distributed and is_distributed()
        term = self._of_all_processes(embeddings) if shared else self._of_one_process(embeddings)
        return {"loss": reduced(term)}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _of_all_processes(self, embeddings: Tensor) -> Tensor:
        wrapper = enclosing_loss_wrapper()
        if wrapper is not None and not wrapper.efficient:  # it has gathered the batch
            return self._of_one_process(embeddings)
        embeddings = self._normalized(floating_matrix(embeddings, may_be_empty=True))
        shared = SharedRows(embeddings)
        norm, frobenius, singular_values = SharedNuclearNorm.apply(embeddings, shared)
        term = self._term(norm, frobenius, singular_values, (shared.total_count, embeddings.shape[1]))
        factor = 1 if wrapper is not None else dist.get_world_size()  # the wrapper multiplies by it, too
        return term + (factor - 1) * (term - term.detach())

    def _of_one_process(self, embeddings: Tensor) -> Tensor:
        embeddings = self._normalized(floating_matrix(embeddings))
        norm, singular_values = nuclear_norm(embeddings)
        return self._term(norm, torch.linalg.matrix_norm(embeddings), singular_values, embeddings.shape)

    def _normalized(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings) if self.normalize_embeddings else embeddings

    def _term(self, norm: Tensor, frobenius: Tensor, singular_values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the term of a batch of this shape from its norms; record its spectrum on request."""
        s = norm / shape[1]
        spread = spread_between_bounds(norm, frobenius, shape)
        if self.collect_stats:
            self.mean_singular_value = s.item()
            self.spread = spread.item()
            self.effective_rank = entropy_rank(singular_values).item()
        return torch.exp(1 - spread) if self.form == "exponential" else -s

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"form={self.form!r}, normalize_embeddings={self.normalize_embeddings}, distributed={self.distributed}"
