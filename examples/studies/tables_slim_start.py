"""The tables of the study on the start of a slim network."""

from collections.abc import Callable
from pathlib import Path

from results import Column, Results, Row, table
from slim_start import CHANNELS, IMAGENET, LEADING, OTHERS, RATES

NETWORKS = {OTHERS: "pretrained on other characters", IMAGENET: "ImageNet weights"}


def by_channels(results: Results) -> str:
    """Return the accuracy of every start, compared with the leading channels."""
    control = {"channels": LEADING}
    rows = [Row(c, {"channels": c}, None if c == LEADING else control) for c in CHANNELS]
    columns = [Column(label, "accuracy", {"network": network}) for network, label in NETWORKS.items()]
    return table(results, "channels", rows, columns)


def by_rate(results: Results) -> str:
    """Return the accuracy by learning rate, of the seed that is there for the choice."""
    rows = [Row(channels, {"channels": channels}) for channels in CHANNELS]
    columns = [
        Column(f"{label}, rate {rate:g}", "accuracy", {"network": network, "learning rate": rate})
        for network, label in NETWORKS.items()
        for rate in RATES[network]
    ]
    return table(results, "channels", rows, columns)


def tables(folder: Path) -> dict[str, Callable[[], str]]:
    """Return what the page's placeholders stand for."""
    results = Results.load(folder, "slim_start", "slim_start_imagenet")
    return {
        "slim_start": lambda: by_channels(results),
        "slim_start rates": lambda: by_rate(Results.load(folder, "slim_start_rate")),
        "slim_start runs": lambda: results.provenance,
    }
