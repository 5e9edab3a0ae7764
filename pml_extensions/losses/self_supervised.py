"""pytorch-metric-learning's loss between two views of the same samples, with our loss on its list."""

from pytorch_metric_learning import losses

from pml_extensions._constructors import checked_constructor
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

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"symmetric={self.symmetric}"

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the losses that the wrapper takes."""
        return [*losses.SelfSupervisedLoss.supported_losses(), SemiHardTripletLoss.__name__]
