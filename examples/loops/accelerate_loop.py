"""A plain loop with accelerate. Lines marked "# <-" are what SVMax, two heads and generations change.

Run from the root: python examples/loops/accelerate_loop.py, or accelerate launch examples/loops/accelerate_loop.py
"""

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import digits, report
from torch.utils.data import DataLoader

from pml_extensions.evolution import WELS, KnowledgeEvolution
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

EPOCHS, GENERATIONS = 4, 2


def main() -> None:
    """Train, and print the result."""
    set_seed(0)
    accelerator = Accelerator()
    train, test = digits()
    loader = DataLoader(train, 32, shuffle=True)
    steps = EPOCHS * len(loader)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    model = TwoHead(model, embedding_size=32)  # <-
    metric = SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=0.1)  # <-
    criterion = TwoHeadLoss(metric)  # <- for nn.CrossEntropyLoss()
    evolution = KnowledgeEvolution(model, WELS(0.5))  # <-
    accelerator.register_for_checkpointing(evolution)  # <- save_state() and load_state() hold the generation

    for _ in evolution.generations(GENERATIONS):  # <-
        accelerator.free_memory()  # <- of the optimiser and the schedule of the last generation
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        for _ in range(EPOCHS):
            model.train()
            for images, labels in loader:
                optimizer.zero_grad()
                accelerator.backward(criterion(model(images), labels))
                optimizer.step()
                schedule.step()

    if accelerator.is_main_process:
        report("accelerate", accelerator.unwrap_model(model), test, GENERATIONS)


if __name__ == "__main__":
    main()
