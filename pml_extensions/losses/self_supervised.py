"""pytorch-metric-learning's loss between two views of the same samples, with our loss on its list."""

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._semi_hard import check_device, check_embeddings
from pml_extensions.losses.semi_hard_triplet import SemiHardTripletLoss

__all__ = ["SelfSupervisedLoss"]


@checked_constructor
class SelfSupervisedLoss(losses.SelfSupervisedLoss):
    """pytorch-metric-learning's SelfSupervisedLoss, which also takes a SemiHardTripletLoss.

    The library names the losses that its wrapper takes in ``supported_losses``; this class adds one name.

    Args:
        *args: as in the library's own: ``loss``, ``symmetric``.
        **kwargs: the same by name.

    Raises:
        Exception: for a loss that is not supported, as in the library's own.

    Examples:
        >>> import torch
        >>> loss = SelfSupervisedLoss(SemiHardTripletLoss())(torch.randn(8, 4), torch.randn(8, 4))
    """

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Any:
        """Return the loss of embeddings and of other views of the same samples, row by row."""
        check_embeddings(embeddings)
        check_embeddings(ref_emb, "ref_")
        if embeddings.shape[:1] != ref_emb.shape[:1] or (self.symmetric and embeddings.shape != ref_emb.shape):
            raise ValueError(
                "ref_emb must be the embeddings of other views of the same samples, of shape "
                f"{tuple(embeddings.shape)}, got {tuple(ref_emb.shape)}"
            )
        if self.symmetric:
            check_device("ref_embeddings", ref_emb, "embeddings", embeddings)
        return super().forward(embeddings, ref_emb)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"symmetric={self.symmetric}"

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the losses that the wrapper takes."""
        return [*losses.SelfSupervisedLoss.supported_losses(), SemiHardTripletLoss.__name__]
