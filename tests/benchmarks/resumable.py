"""Lines of a coverage: examined one by one in processes with limits, kept in a file, and gone on with at any time."""

import json
import os
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "rows"
PROCESSOR_SECONDS = 1200


@dataclass(frozen=True)
class Lines:
    """A file of JSON lines; of lines with the same key the last counts."""

    path: Path
    key: Callable[[dict[str, Any]], Hashable] = itemgetter("name")

    def read(self) -> dict[Hashable, dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return {self.key(row): row for row in map(json.loads, text.splitlines())}

    def append(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            print(json.dumps(row), file=file)


def limited(examine: Callable[[], dict[str, Any]], gibibytes: float) -> dict[str, Any]:
    """Return what ``examine`` returns in a forked process with limited memory and time, or its error as a line."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gibibytes * 2**30),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
        warnings.simplefilter("ignore")
        try:
            row = examine()
        except BaseException as error:  # noqa: BLE001  # a line of the table
            last = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            row = {"error": f"{type(error).__name__}: {str(error)[:300]} ({place})"}
        with os.fdopen(write, "w") as pipe:
            json.dump(row, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "killed: memory or time"}


def go_on(lines: Lines, todo: Iterable[tuple[dict[str, Any], Callable[[], dict[str, Any]]]], limits: Any) -> bool:
    """Examine what is left, each as (what its line begins with, what finds the rest); tell whether all was done.

    ``limits`` has ``gibibytes``, for each, and ``seconds``, after which none is begun.
    """
    stop = time.monotonic() + limits.seconds
    for head, examine in todo:
        if time.monotonic() > stop:
            return False
        row = head | limited(examine, limits.gibibytes)
        lines.append(row)
        print(" ".join(f"{name}={value}" for name, value in row.items() if value not in ({}, [])), flush=True)
    return True


def add_limits(parser: Any) -> None:
    """Add the options that ``go_on`` takes."""
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after this time")
    parser.add_argument("--gibibytes", type=float, default=18, help="memory of each process")
