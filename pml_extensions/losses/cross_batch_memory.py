"""pytorch-metric-learning's memory of past batches, with our loss on its list."""

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from pml_extensions._constructors import checked_constructor
from pml_extensions._host import check_indices, check_parts
from pml_extensions._semi_hard import check_embeddings, check_labels
from pml_extensions._settings import check_integer
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
        check_parts(kwargs)
        check_integer("embedding_size", embedding_size, least=1)
        check_integer("memory_size", memory_size, least=1)
        if miner is not None and not callable(miner):
            raise TypeError(f"miner must be a miner, such as SemiHardMiner(), got {miner!r}")
        super().__init__(loss, embedding_size, memory_size, miner, **kwargs)
        self.miner: Any
        self.has_been_filled: bool
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
        self._check(embeddings, labels, indices_tuple, enqueue_mask)
        self._follow_loss()
        if not len(embeddings):  # of nothing, no row is compared with itself, which the library looks for otherwise
            indices_tuple, enqueue_mask = None, torch.zeros(0, dtype=torch.bool, device=embeddings.device)
        rows = len(embeddings) if enqueue_mask is None else int((~enqueue_mask).sum())
        return call_with_rows(self.loss, rows, super().forward, embeddings, labels, indices_tuple, enqueue_mask)

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Store a batch; after one of no rows the memory is as before (the library's own then takes it for full)."""
        filled = self.has_been_filled
        super().add_to_memory(embeddings, labels, batch_size)
        if not batch_size:
            self.has_been_filled = filled

    def _check(self, embeddings: Any, labels: Any, indices_tuple: Any, enqueue_mask: Any) -> None:
        """Raise before something is stored that does not fit."""
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"labels must be a tensor of class numbers, got {type(labels).__name__}: the memory stores them with "
                "the embeddings, to compare later batches with; give each sample without a class a number of its own"
            )
        check_embeddings(embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings must have shape (batch, {self.embedding_size}), for embedding_size={self.embedding_size}, "
                f"got {tuple(embeddings.shape)}"
            )
        if isinstance(self.loss, SemiHardTripletLoss) or labels.shape != embeddings.shape[:1]:
            check_labels(embeddings, labels)
        if indices_tuple is not None:
            check_indices(indices_tuple, embeddings, self.embedding_memory)
        if enqueue_mask is None:
            if len(embeddings) > self.memory_size:
                raise ValueError(
                    f"embeddings must be at most memory_size={self.memory_size}, got {len(embeddings)}; give it a "
                    "larger memory_size, or pass an enqueue_mask"
                )
        elif not isinstance(enqueue_mask, Tensor) or enqueue_mask.dtype != torch.bool:
            got = enqueue_mask.dtype if isinstance(enqueue_mask, Tensor) else type(enqueue_mask).__name__
            raise TypeError(f"enqueue_mask must be a tensor of booleans, got {got}; use mask.bool()")
        elif enqueue_mask.shape != embeddings.shape[:1]:
            raise ValueError(
                f"enqueue_mask must have shape ({len(embeddings)},), one for each embedding, got "
                f"{tuple(enqueue_mask.shape)}"
            )

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
