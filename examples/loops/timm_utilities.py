"""timm's own training utilities. Lines marked "# <-" are what SVMax, two heads and generations change.

Run from the root: python examples/loops/timm_utilities.py
"""

import timm
from digits import digits, report
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, random_seed
from torch.utils.data import DataLoader

from pml_extensions.evolution import WELS, KnowledgeEvolution
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

EPOCHS, GENERATIONS = 4, 2


def main() -> None:
    """Train, and print the result of the average of the weights."""
    random_seed(0)
    train, test = digits()
    loader = DataLoader(train, 32, shuffle=True)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    model = TwoHead(model, embedding_size=32)  # <-
    metric = SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=0.1)  # <-
    criterion = TwoHeadLoss(metric)  # <- for nn.CrossEntropyLoss()
    ema = ModelEmaV3(model, decay=0.9)

    for _ in KnowledgeEvolution(model, WELS(0.5)).generations(GENERATIONS):  # <-
        ema.set(model)  # <- the average of a generation begins with it
        optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, weight_decay=0.05, layer_decay=0.8)
        schedule, epochs = create_scheduler_v2(optimizer, "cosine", EPOCHS, warmup_epochs=1, warmup_lr=1e-3)
        updates = 0
        for epoch in range(epochs):
            model.train()
            for images, labels in loader:
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
                updates += 1
                ema.update(model, step=updates)
                schedule.step_update(updates)
            schedule.step(epoch + 1)

    report("timm", ema.module, test, GENERATIONS)


if __name__ == "__main__":
    main()
