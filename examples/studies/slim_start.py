"""Which channels of a pretrained network should its slim network start from: leading, evenly spaced or random ones?

    python examples/studies/slim_start.py            # go on with the study: rows/slim_start*.csv
    python examples/studies/slim_start.py --quick    # two minutes

The slim network of KELS holds the leading half of every width. Here the channels of a pretrained network are put into
another order first, which changes nothing that it computes, so that others lead. Then the slim network gets a new
classifier, and all of it is fine-tuned: fifty characters in three typefaces each, to be recognised in the others.
There are two pretrained networks: one with ImageNet weights, the same for every seed; and a small one that has learnt
other characters, another one for every seed. `slim_start_rate` chooses a learning rate for each start, by a seed that
the study itself has not got. A run takes 5 to 20 s.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache

import timm
import torch
import torch.nn.functional as F
from data import GLYPH_SIZE, Images, common_glyphs
from imagenet import lite0
from knowledge_evolution import Recipe, Task, logits, train
from measures import accuracy
from runner import Measures, Setting, Study, main
from torch import Tensor, nn

from pml_extensions.evolution import KELS

LEADING, EVEN, RANDOM, UNTRAINED = "leading", "evenly spaced", "random", "none, untrained"
CHANNELS = (LEADING, EVEN, RANDOM, UNTRAINED)
IMAGENET, OTHERS = "tf_efficientnet_lite0", "test_resnet"
PIXELS = {IMAGENET: 32, OTHERS: GLYPH_SIZE}
INPUTS = {IMAGENET: 3, OTHERS: 1}  # channels of an image
CLASSES, FACES, BATCH = 50, 3, 32
EPOCHS = {IMAGENET: 16, OTHERS: 40}
BEFORE, EPOCHS_BEFORE = 300, 4  # characters that the small network has learnt, and for how long
RATES = {IMAGENET: (0.02, 0.05), OTHERS: (0.05, 0.15)}  # to choose from
CHOSEN = {
    IMAGENET: {**dict.fromkeys(CHANNELS, (0.05,)), UNTRAINED: (0.02,)},
    OTHERS: dict.fromkeys(CHANNELS, (0.15,)),
}
APART = (100,)  # the seed for the choice

Order = Callable[[int, int], Tensor]


def even(dense: int, slim: int) -> Tensor:
    """Return the channels of a width, so many evenly spaced ones first (Xu et al., arXiv:2311.18823)."""
    first = torch.arange(slim) * dense // slim
    return torch.cat([first, torch.arange(dense)[~torch.isin(torch.arange(dense), first)]])


def shuffled(seed: int) -> Order:
    """Return what puts the channels of a width into an order drawn by the seed."""
    return lambda dense, _: torch.randperm(dense, generator=torch.Generator().manual_seed(seed))


def reordered(model: nn.Module, split: KELS, order: Order) -> nn.Module:
    """Return a copy with the channels of every width that a split cuts in another order.

    The order depends on the dense and the slim size alone, so that all tensors with a width agree; where no width is a
    concatenation, the copy computes what the model does.
    """
    copy, slim = deepcopy(model), split.slim(model).state_dict()
    for name, tensor in copy.state_dict().items():
        for dimension, (dense, size) in enumerate(zip(tensor.shape, slim[name].shape, strict=True)):
            if size < dense:
                tensor.copy_(tensor.index_select(dimension, order(dense, size)))
    return copy


def untrained(network: str, classes: int = 10) -> nn.Module:
    """Return a network as timm draws it."""
    return timm.create_model(network, in_chans=INPUTS[network], num_classes=classes)


@lru_cache(maxsize=1)
def pretrained(network: str, seed: int, epochs: int) -> nn.Module:
    """Return the network with ImageNet weights, or the one that has learnt other characters."""
    if network == IMAGENET:
        return lite0()
    torch.manual_seed(seed)
    model, known = untrained(network, BEFORE), common_glyphs(seed, CLASSES, BEFORE)
    task = Task(Images(known.images, known.labels), BEFORE, nn.CrossEntropyLoss(), lambda _: 0.0, epochs)
    train(model, task, epochs)
    return model


def start(network: str, channels: str, seed: int, epochs: int) -> nn.Module:
    """Return the slim network that starts from some channels, with a new classifier."""
    split = KELS(0.5, example_input=torch.zeros(2, INPUTS[network], PIXELS[network], PIXELS[network]))
    dense = untrained(network) if channels == UNTRAINED else pretrained(network, seed, epochs)
    if channels in {EVEN, RANDOM}:
        dense = reordered(dense, split, even if channels == EVEN else shuffled(seed))
    slim = split.slim(dense)
    torch.manual_seed(seed)  # the same classifier and batches, whatever was drawn before
    slim.reset_classifier(CLASSES)
    return slim.to(memory_format=torch.channels_last)


def images_for(network: str, grey: Images) -> Images:
    """Return grey images in a network's size and with its channels."""
    images = F.interpolate(grey.images, size=PIXELS[network], mode="bilinear").expand(-1, INPUTS[network], -1, -1)
    return Images(images.contiguous(memory_format=torch.channels_last), grey.labels)


def run(setting: Setting, seed: int, quick: bool) -> Measures:
    """Return the accuracy of one fine-tuned slim network; the seed draws the characters and their typefaces."""
    network = setting["network"]
    before, epochs = (1, 1) if quick else (EPOCHS_BEFORE, EPOCHS[network])
    slim = start(network, setting["channels"], seed, before)
    drawn = common_glyphs(seed, 0, CLASSES)
    parts = Images(drawn.images, drawn.labels).divide(FACES, seed)
    training, test = (images_for(network, part) for part in parts)
    score = lambda model: accuracy(logits(model, test), test.labels)  # noqa: E731
    recipe = Recipe(BATCH, setting["learning rate"])
    task = Task(training, CLASSES, nn.CrossEntropyLoss(), score, epochs, recipe=recipe)
    train(slim, task, epochs)
    return {"accuracy": task.score(slim)}


def settings(network: str, rates: Mapping[str, Sequence[float]]) -> list[Setting]:
    """Return every start of a network at its learning rates."""
    return [{"network": network, "channels": c, "learning rate": rate} for c in CHANNELS for rate in rates[c]]


MEASURES = ("accuracy",)
EVERY = [s for network, rates in RATES.items() for s in settings(network, dict.fromkeys(CHANNELS, rates))]
STUDIES = (
    Study("slim_start_rate", EVERY, MEASURES, run, seeds=APART),
    Study("slim_start", settings(OTHERS, CHOSEN[OTHERS]), MEASURES, run, seeds=range(7)),
    Study("slim_start_imagenet", settings(IMAGENET, CHOSEN[IMAGENET]), MEASURES, run, seeds=range(3)),
)

if __name__ == "__main__":
    main(*STUDIES)
