"""The host's memory of past batches, with our loss on its list."""

from typing import Any

from pytorch_metric_learning import losses

from pml_extensions.losses.semi_hard_triplet import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner

__all__ = ["CrossBatchMemory"]


class CrossBatchMemory(losses.CrossBatchMemory):
    """The host's CrossBatchMemory, which also takes a SemiHardTripletLoss.

    The host names the losses that its wrapper takes in ``supported_losses``; this class adds one name. Without a miner
    the host would hand all pairs to the loss; here a SemiHardTripletLoss gets a SemiHardMiner of the same distance.

    Args:
        loss: a loss that the host supports, or a SemiHardTripletLoss.
        embedding_size: the embeddings' dimension.
        memory_size: how many past embeddings are kept.
        miner: as in the host; by default a SemiHardMiner for a SemiHardTripletLoss, none for any other loss.
        **kwargs: as in the host.

    Raises:
        Exception: for a loss that is not supported, as in the host.

    Examples:
        >>> import torch
        >>> memory = CrossBatchMemory(SemiHardTripletLoss(), embedding_size=4)
        >>> loss = memory(torch.randn(8, 4), torch.arange(8) // 2)
    """

    def __init__(
        self, loss: Any, embedding_size: int, memory_size: int = 1024, miner: Any = None, **kwargs: Any
    ) -> None:
        if miner is None and isinstance(loss, SemiHardTripletLoss):
            miner = SemiHardMiner(distance=loss.distance, block_size=loss.block_size)
        super().__init__(loss, embedding_size, memory_size, miner, **kwargs)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"embedding_size={self.embedding_size}, memory_size={self.memory_size}"

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the losses that the memory takes."""
        return [*losses.CrossBatchMemory.supported_losses(), SemiHardTripletLoss.__name__]
