"""pytorch-metric-learning's trainer with a classifier beside the embedder, rather than on top of it.

Source: Taha, Chen, Misu, Shrivastava and Davis, WACV 2020, arXiv:1901.08616, figure 2.
"""

from typing import Any

from pml_extensions._constructors import checked_constructor
from pml_extensions._host import TrainWithClassifier

__all__ = ["TrainTwoHead"]


@checked_constructor
class TrainTwoHead(TrainWithClassifier):
    """Train an embedder and a classifier that both read the trunk's output.

    It takes what pytorch-metric-learning's TrainWithClassifier takes, the same dictionaries with the same keys, and
    trains with the same losses; there the classifier reads the embedding, here it reads what the embedder reads.
    Testers, hooks and logging presets see no difference. The classifier's input is as wide as the trunk's output.

    Args:
        *args: as there: ``models`` ("trunk", "embedder", "classifier"), ``optimizers``, ``batch_size``,
            ``loss_funcs`` ("metric_loss", "classifier_loss"), ``dataset``, ...
        **kwargs: the same by name.

    Examples:
        >>> from torch.nn import Linear
        >>> models = {"trunk": Linear(4, 8), "embedder": Linear(8, 2), "classifier": Linear(8, 5)}
        >>> trainer = TrainTwoHead(models, {}, 8, {}, dataset=[])
    """

    def calculate_loss(self, curr_batch: tuple[Any, Any]) -> None:
        """Compute both losses from one pass through the trunk."""
        data, labels = curr_batch
        features = self.get_trunk_output(data)
        embeddings = self.get_final_embeddings(features)
        logits = self._logits(features)
        indices_tuple = self.maybe_mine_embeddings(embeddings, labels)
        self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, indices_tuple)
        self.losses["classifier_loss"] = self.maybe_get_classifier_loss(logits, labels)

    def _logits(self, features: Any) -> Any:
        try:
            return self.maybe_get_logits(features)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # memory that ran out, and the like
                raise
            raise RuntimeError(
                f"the classifier fails on the trunk's output, of shape {tuple(getattr(features, 'shape', ()))}: here "
                f"it reads what the embedder reads, not the embedding, so make it as wide as that: {error}"
            ) from error
