"""Small networks and plain float64 transcriptions, shared by the tests of attention maps."""

import torch
from torch import nn


class Pooled(nn.Module):
    """Convolutions, global pooling, a linear layer: affine after the last feature map."""

    def __init__(self, outputs=5, channels=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, outputs)

    def forward(self, x, extra=None, scale=1.0):
        x = self.act(self.conv1(x))
        x = self.act(self.conv2(x)) + x * 0.5
        if extra is not None:
            x = x + extra
        return self.fc(x.mean((2, 3))) * scale


def pooled(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Pooled(**kwargs).eval()


def images(count=3, size=12, seed=0, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def published_descent(tail, activation, loss, steps=1000, rate=0.5):
    """The optimiser of the paper's code for one example, written out: SGD from f = 1 on f / ||f||."""
    raw = torch.ones(activation.shape[-2:], dtype=activation.dtype, requires_grad=True)
    last = float("inf")
    for step in range(steps):
        value = loss(tail(activation * (raw / raw.norm())))
        (gradient,) = torch.autograd.grad(value, raw)
        with torch.no_grad():
            raw -= (1e-5 + (rate - 1e-5) * (1 - step / steps)) * gradient
        if step % 50 == 0:
            if abs(value.item() - last) < 1e-6:
                break
            last = value.item()
    return (raw / raw.norm()).detach(), loss(tail(activation * (raw / raw.norm()))).item()
