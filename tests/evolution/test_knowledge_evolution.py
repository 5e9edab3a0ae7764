import torch
from torch import nn

from pml_extensions.evolution import WELS, KnowledgeEvolution


def test_reset_keeps_the_fit_hypothesis_bit_for_bit():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ke = KnowledgeEvolution(model, WELS(0.5))
    ke.reset()
    for name, tensor in model.state_dict().items():
        kept = ke.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[kept], before[name][kept])
        assert not (tensor[~kept] == before[name][~kept]).any()
