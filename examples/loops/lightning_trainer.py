"""Lightning. Lines marked "# <-" are what SVMax, two heads and generations change.

Run from the root: python examples/loops/lightning_trainer.py
"""

import lightning.pytorch as pl
import timm
import torch
from digits import digits, report
from torch.utils.data import DataLoader

from pml_extensions.evolution import WELS
from pml_extensions.evolution.lightning import KnowledgeEvolutionCallback
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

EPOCHS, GENERATIONS = 4, 2


class Retrieval(pl.LightningModule):
    """An image classifier that embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TwoHead(timm.create_model("test_resnet", in_chans=1, num_classes=10), embedding_size=32)  # <-
        metric = SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=0.1)  # <-
        self.criterion = TwoHeadLoss(metric)  # <- for nn.CrossEntropyLoss()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002 (the host's)
        """Return the loss of a batch."""
        return self.criterion(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> tuple[list, list]:
        """Return an optimiser and a schedule; the callback asks for new ones in each generation."""
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]  # <- of one generation


def main() -> None:
    """Train, and print the result."""
    pl.seed_everything(0, verbose=False)
    train, test = digits()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    evolution = KnowledgeEvolutionCallback(WELS(0.5), epochs=EPOCHS, module="model")  # <-
    trainer = pl.Trainer(max_epochs=EPOCHS * GENERATIONS, callbacks=[evolution], accelerator="auto", **quiet)  # <-
    module = Retrieval()
    trainer.fit(module, DataLoader(train, 32, shuffle=True))
    report("Lightning", module.model, test, GENERATIONS)


if __name__ == "__main__":
    main()
