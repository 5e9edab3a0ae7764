"""pytorch-metric-learning's memory of past batches, with our loss on its list."""

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions.losses._empty_batches import call_with_rows
from pml_extensions.losses.semi_hard_triplet import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner

__all__ = ["CrossBatchMemory"]


@checked_constructor
class CrossBatchMemory(losses.CrossBatchMemory):
    """pytorch-metric-learning's CrossBatchMemory, which also takes a SemiHardTripletLoss.

    The library names the losses that its wrapper takes in ``supported_losses``; this class adds one name. Without a
    miner it would hand all pairs to the loss; here a SemiHardTripletLoss gets a SemiHardMiner, of the distance that the
    loss has when the memory is called.

    Args:
        loss: a loss that the library's own supports, or a SemiHardTripletLoss.
        embedding_size: the embeddings' dimension.
        memory_size: how many past embeddings are kept.
        miner: as in the library's own; by default a SemiHardMiner for a SemiHardTripletLoss, none for any other loss.
        **kwargs: as in the library's own: ``collect_stats``.

    Raises:
        Exception: for a loss that is not supported, as in the library's own.
        TypeError: it is called without labels: the memory stores them, and compares later batches with them.

    Examples:
        >>> import torch
        >>> memory = CrossBatchMemory(SemiHardTripletLoss(), embedding_size=4)
        >>> loss = memory(torch.randn(8, 4), torch.arange(8) // 2)
    """

    def __init__(
        self, loss: Any, embedding_size: int, memory_size: int = 1024, miner: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(loss, embedding_size, memory_size, miner, **kwargs)
        self.miner: Any
        self._followed: tuple[Any, Any] = None, None  # the default miner, and the loss's distance when it was last seen
        self._follow_loss()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Any:
        """Store the batch and return the loss of its embeddings against all that are stored."""
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"labels must be a tensor of class numbers, got {type(labels).__name__}: the memory stores them with "
                "the embeddings, to compare later batches with; give each sample without a class a number of its own"
            )
        self._follow_loss()
        rows = len(embeddings) if enqueue_mask is None else int((~enqueue_mask).sum())
        return call_with_rows(self.loss, rows, super().forward, embeddings, labels, indices_tuple, enqueue_mask)

    def _follow_loss(self) -> None:
        """Let the default miner, if there is no other, go with the loss and with the distance that it has now."""
        default, distance = self._followed
        if self.miner is not None and self.miner is not default:
            return
        if not isinstance(self.loss, SemiHardTripletLoss):
            self.miner = None
        elif self.miner is None:
            self.miner = SemiHardMiner(distance=self.loss.distance, block_size=self.loss.block_size)
        elif self.loss.distance is not distance:
            self.miner.distance = self.loss.distance
        self._followed = self.miner, getattr(self.loss, "distance", None)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"embedding_size={self.embedding_size}, memory_size={self.memory_size}"

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the losses that the memory takes."""
        return [*losses.CrossBatchMemory.supported_losses(), SemiHardTripletLoss.__name__]
