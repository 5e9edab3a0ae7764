"""Small networks for sequences, spectrograms, volumes, point clouds and several inputs, each with an input."""

import torch
from torch import nn


def pooled(conv, pool, channels, outputs=5):
    return nn.Sequential(conv, nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(channels, outputs))


def audio():
    """As M5: long waves, wide strides."""
    return pooled(nn.Conv1d(1, 64, 80, stride=16), nn.AdaptiveAvgPool1d, 64), randn(2, 1, 16000)


def ecg():
    """Twelve leads, two convolutions, a maximum and batch statistics."""
    return nn.Sequential(
        nn.Conv1d(12, 16, 7, stride=2), nn.BatchNorm1d(16), nn.ELU(), nn.MaxPool1d(2), nn.Conv1d(16, 16, 5), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 5),
    ), randn(2, 12, 100)  # fmt: skip


def spectrogram():
    """One picture of 64 bands and 128 moments, pooled along one of them."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)), nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(),
        nn.Linear(64, 5),
    ), randn(2, 1, 64, 128)  # fmt: skip


def square():
    """As many channels as rows and columns."""
    return pooled(nn.Conv2d(3, 32, 3, padding=1), nn.AdaptiveAvgPool2d, 32), randn(2, 3, 32, 32)


def volume():
    """Video or a scan."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.GroupNorm(2, 8),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5),
    ), randn(2, 1, 8, 16, 14)  # fmt: skip


class PointNet(nn.Module):
    """Points as a sequence, turned by a matrix that is learned from them."""

    def __init__(self):
        super().__init__()
        self.lift, self.turn, self.features = nn.Conv1d(3, 16, 1), nn.Linear(16, 9), nn.Conv1d(3, 256, 1)
        self.act, self.pool, self.head = nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Linear(256, 4)

    def forward(self, x):
        turn = self.turn(self.lift(x).relu().amax(2)).view(-1, 3, 3)
        x = torch.bmm(x.transpose(1, 2), turn).transpose(1, 2)
        return self.head(self.pool(self.act(self.features(x))).flatten(1))


class Neighbours(nn.Module):
    """Points and what differs among their nearest, as in DGCNN."""

    def __init__(self):
        super().__init__()
        self.edges, self.features, self.head = nn.Conv2d(6, 16, 1), nn.Conv1d(16, 32, 1), nn.Linear(32, 4)

    def forward(self, x):
        batch, channels, points = x.shape
        nearest = torch.cdist(x.mT, x.mT).topk(5, largest=False).indices
        nearest = (nearest + points * torch.arange(batch)[:, None, None]).flatten()
        around = x.mT.reshape(-1, channels)[nearest].view(batch, points, 5, channels)
        itself = x.mT[:, :, None].expand_as(around)
        edges = self.edges(torch.cat([around - itself, itself], 3).permute(0, 3, 1, 2))
        return self.head(self.features(edges.amax(3)).relu().mean(2))


class PointTransformer(nn.Module):
    """Points (B, N, 3) through linear layers and attention."""

    def __init__(self):
        super().__init__()
        self.lift, self.norm = nn.Linear(3, 16), nn.LayerNorm(16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm(self.lift(x))
        return self.head((x + self.attention(x, x, x)[0]).amax(1))


class Words(nn.Module):
    """A sequence transformer, with or without a class token."""

    def __init__(self, class_token=False, length=16):
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 32), nn.Parameter(0.1 * torch.randn(1, length, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.token = nn.Parameter(torch.randn(1, 1, 32)) if class_token else None
        self.head = nn.Linear(32, 3)

    def forward(self, words):
        x = self.embed(words) + self.place
        if self.token is None:
            return self.head(self.encoder(x).mean(1))
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.recurrent, self.norm = kind(9, 16, 2, batch_first=True, bidirectional=True), nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.norm(self.recurrent(x)[0]).mean(1))


class Spectral(nn.Module):
    """Mixes places by a Fourier transform, as FNet."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(50, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, words):
        x = self.embed(words)
        return self.head(self.norm(x + torch.fft.fft2(x).real).mean(1))


class TwoInputs(nn.Module):
    """An image and a sequence, each with layers of its own."""

    def __init__(self):
        super().__init__()
        self.image, self.act, self.sequence = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv1d(2, 49, 5, stride=2)
        self.head = nn.Linear(57, 3)

    def forward(self, image, sequence):
        image = self.act(self.image(image)).mean((2, 3))
        return self.head(torch.cat([image, self.sequence(sequence).relu().mean(2)], 1))


class Mixer(nn.Module):
    """Patches of an image, mixed along places and along channels."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm1, self.norm2 = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16), nn.LayerNorm(16)
        self.places, self.channels, self.head = nn.Linear(24, 24), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.places(self.norm1(x).transpose(1, 2)).relu().transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x)).relu()).mean(1))


class Reshaped(nn.Module):
    """Patches cut out by a reshape, two class tokens, no convolution."""

    def __init__(self):
        super().__init__()
        self.patches, self.tokens = nn.Linear(48, 16), nn.Parameter(torch.randn(1, 2, 16))
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        x = self.patches(x.reshape(batch, -1, 16 * channels))
        x = self.norm(torch.cat([self.tokens.expand(batch, -1, -1), x], 1))
        return self.head((x + self.attention(x, x, x)[0])[:, :2].mean(1))


class Windows(nn.Module):
    """Attention inside of windows that are cut out and put together again, channels last."""

    def __init__(self):
        super().__init__()
        self.patches, self.inside, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 8), nn.Linear(8, 3)
        self.together = nn.Identity()

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        x = torch.roll(x, (1, 1), (1, 2)).view(batch, height // 4, 4, width // 4, 4, channels)
        x = self.inside(x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels))
        x = (x @ x.mT).softmax(-1) @ x
        x = x.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        return self.head(self.together(x.reshape(batch, height, width, channels)).mean((1, 2)))


class Frames(nn.Module):
    """Each frame of a video through a network for images, then a mean over time."""

    def __init__(self):
        super().__init__()
        self.image, self.features, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        frames = self.image(x.flatten(0, 1)).mean((2, 3)).view(*x.shape[:2], -1)
        return self.head(self.features(frames).relu().mean(1))


class OddPooling(nn.Module):
    """Pools, pads and resamples in every way."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.LPPool2d(2, (3, 1)), nn.AdaptiveMaxPool2d((3, None)), nn.Upsample(scale_factor=2),
            nn.PixelShuffle(2), nn.ZeroPad2d((1, 2, 0, 0)), nn.PReLU(), nn.Hardswish(), nn.GLU(1),
        )  # fmt: skip
        self.unfold = nn.Unfold(2, stride=2)

    def forward(self, x):
        return self.unfold(self.features(x)).mean(2)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def words(*shape):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))
