"""Hugging Face's Trainer with a timm model. Lines marked "# <-" are what SVMax, two heads and generations change.

Run from the root: python examples/loops/huggingface_trainer.py
"""

import tempfile

import timm
import torch
from digits import digits, report
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from pml_extensions.evolution import WELS, KnowledgeEvolution
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

GENERATIONS = 2
METRIC = SemiHardTripletLoss(embedding_regularizer=SVMaxRegularizer(), embedding_reg_weight=0.1)  # <-
CRITERION = TwoHeadLoss(METRIC)  # <- for nn.CrossEntropyLoss()


class ImageTrainer(Trainer):
    """A trainer of a model that takes images rather than a dict."""

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: object):
        """Return the loss, and the outputs if the host asks for them."""
        outputs = model(inputs["pixel_values"])
        loss = CRITERION(outputs, inputs["labels"])
        return (loss, {"logits": outputs.logits, "embeddings": outputs.embeddings}) if return_outputs else loss  # <-


def collate(rows: list) -> dict[str, torch.Tensor]:
    """Return a batch as the trainer expects it."""
    return {"pixel_values": torch.stack([image for image, _ in rows]), "labels": torch.stack([y for _, y in rows])}


def main(folder: str) -> None:
    """Train, and print the result."""
    set_seed(0)
    train, test = digits()
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    model = TwoHead(model, embedding_size=32)  # <-
    settings = {"num_train_epochs": 4, "per_device_train_batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 10}
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(folder, lr_scheduler_type="cosine", remove_unused_columns=False, **settings, **quiet)
    for _ in KnowledgeEvolution(model, WELS(0.5)).generations(GENERATIONS):  # <- a trainer each: optimiser and schedule
        ImageTrainer(model, arguments, data_collator=collate, train_dataset=train).train()
    report("Hugging Face", model, test, GENERATIONS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
