"""Two heads on a model that is copied to, or sharded over, several processes."""

import pytest
import torch
from problems import pictures, two_head

from pml_extensions.losses import TwoHeadLoss


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_training_is_that_of_one_process(found, way):
    model, loss = two_head(), TwoHeadLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in pictures():
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    for rank in found["two_head_training"]:
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(rank[way][name.removeprefix("module.")], weight, rtol=1e-4, atol=1e-5)
