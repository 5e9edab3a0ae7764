"""Training that can be killed at any step, in one process or in several, and what it will cost.

A step depends on the seed and its number alone: its batch, the augmentation of each image, and what the network draws.
So a run that was killed ends as one that was not, whatever number of processes load the images, and a checkpoint needs
neither the generators' states nor the sampler's place.
"""

import io
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from readers import Images, load_image
from rows import check_same, replace_file
from session import Machine, Session, agree
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

Batches = Callable[[int], list[int]]  # the images of a step, those of all processes
Draws = Iterable[list[tuple[int, int]]]  # batches of (image, seed of its augmentation)
DRY_STEPS, WARM_UP = 10, 2

# What a step depends on -----------------------------------------------------------------------------------------------


def seed_of(*parts: int | str) -> int:
    """Return a number that depends on all the parts."""
    numbers = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of Python, numpy and torch."""
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (pytorch-metric-learning draws from it)
    torch.manual_seed(seed)


def p_by_k(labels: Sequence[int], batch_size: int, per_class: int, seed: int) -> Batches:
    """Return batches of P classes x K images by the host's sampler, which is seeded anew every hundred batches."""
    classes, turn = len(set(labels)), 100
    if not classes:
        raise ValueError("there are no images to train on")
    if batch_size % per_class or batch_size > classes * per_class:
        raise ValueError(
            f"--batch-size must be a multiple of {per_class} images a class, and at most {per_class} of each of the "
            f"{classes} classes, got {batch_size}"
        )

    @lru_cache(maxsize=2)
    def drawn(number: int) -> list[int]:
        seed_everything(seed, "batches", number)
        sampler = MPerClassSampler(labels, per_class, batch_size, length_before_new_iter=turn * batch_size)
        return [int(place) for place in sampler]

    return lambda step: drawn(step // turn)[step % turn * batch_size :][:batch_size]


def shuffled(count: int, batch_size: int, seed: int) -> Batches:
    """Return batches of epochs, each in a new order; what does not fill a batch is left out."""
    steps = steps_an_epoch(count, batch_size)

    @lru_cache(maxsize=2)
    def drawn(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(seed, "batches", epoch))
        return torch.randperm(count, generator=generator).tolist()

    return lambda step: drawn(step // steps)[step % steps * batch_size :][:batch_size]


def steps_an_epoch(count: int, batch_size: int) -> int:
    """Return the number of full batches."""
    if count < batch_size:
        raise ValueError(f"--batch-size must be at most the {count} training images, got {batch_size}")
    return count // batch_size


class Drawn(Dataset[tuple[Tensor, int]]):
    """Images by (place, seed): one seed transforms an image in one way, whichever process loads it."""

    def __init__(self, images: Images, transform: Callable[[Any], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, int]:
        place, seed = draw
        image = load_image(self.images.paths[place])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), self.images.labels[place]


def load(
    session: Session, images: Images, transform: Callable[[Any], Tensor], draws: Draws
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images and labels, on the device."""
    device = session.machine.device
    loader = DataLoader(
        Drawn(images, transform),
        batch_sampler=draws,
        num_workers=session.options.workers,
        pin_memory=device.type == "cuda",
    )
    for batch, labels in loader:
        yield batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)


# Training -------------------------------------------------------------------------------------------------------------


@dataclass
class Training:
    """What is trained, how, on what, and for how long.

    Attributes:
        model: the network, on its device.
        loss: of what the network returns and the labels, of this process's images.
        optimizer: of its parameters.
        schedule: of the learning rate, by step.
        images: to train on.
        transform: from an image to the network's input, with augmentation.
        test_transform: the same without.
        batches: of a step.
        steps: how many there are.
        seed: of everything.
        tested: the part that is tested, if not the whole network.
        step: how many steps were done.
    """

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    optimizer: Optimizer
    schedule: LRScheduler
    images: Images
    transform: Callable[[Any], Tensor]
    test_transform: Callable[[Any], Tensor]
    batches: Batches
    steps: int
    seed: int
    tested: nn.Module | None = None
    step: int = 0

    def draws(self, machine: Machine, first: int, last: int) -> Draws:
        """Yield this process's share of the batches of some steps: neighbours, so that images of a class stay together.

        N-pairs takes a class's first two images, which are then the same ones in the eyes of every process.
        """
        for step in range(first, last):
            draws = [(place, seed_of(self.seed, "image", step, i)) for i, place in enumerate(self.batches(step))]
            share = len(draws) // machine.world
            yield draws[machine.rank * share :][:share]


def shared_loss(loss: BaseMetricLossFunction) -> nn.Module:
    """Return a loss over the batch of all processes, where there are several."""
    return DistributedLossWrapper(loss) if dist.is_initialized() else loss


def shared_miner(miner: BaseMiner) -> nn.Module:
    """Return a miner of the batch of all processes, where there are several."""
    return DistributedMinerWrapper(miner) if dist.is_initialized() else miner


def autocast(session: Session) -> torch.autocast:
    """Return the context of a pass, in the precision that was asked for."""
    return torch.autocast(session.machine.device.type, torch.bfloat16, enabled=session.options.precision == "bf16")


def steps(session: Session, training: Training, last: int) -> Iterator[int]:
    """Train up to a step; yield the number of steps done after each."""
    machine, model, first = session.machine, training.model, training.step
    if machine.world > 1:
        model = DistributedDataParallel(model, [machine.device] if machine.device.type == "cuda" else None)
    model.train()
    draws = training.draws(machine, first, last)
    for step, (images, labels) in enumerate(load(session, training.images, training.transform, draws), first):
        seed_everything(training.seed, "step", step, machine.rank)
        with autocast(session):
            outputs = model(images)
        loss = training.loss(outputs, labels)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        training.schedule.step()
        training.step = step + 1
        yield training.step


class Checkpoint:
    """All that a run needs to go on, in a file that is written whole or not at all.

    A run is one training, or several one after the other, its stages.
    """

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.path = session.folder / f"{name.replace(',', '').replace(' ', '_')}.pt"
        self.state: dict[str, Any] = {}
        if self.path.exists():
            self.state = torch.load(self.path, map_location="cpu", weights_only=True)
            check_same(self.path, self.state["settings"], session.settings)
        agree(session.machine, (self.state.get("stage"), self.state.get("step")), self.path)

    def restore(self, **parts: Any) -> None:
        """Give parts of the run, a model or generations, the state that was saved, if one was."""
        for name in parts if self.state else ():
            parts[name].load_state_dict(self.state[name])

    def resume(self, training: Training, stage: int = 0) -> None:
        """Go on within a stage where it was saved, if it was."""
        if self.state and self.state["stage"] == stage:
            self.restore(optimizer=training.optimizer, schedule=training.schedule)
            training.step = self.state["step"]

    def save(self, training: Training, stage: int, **parts: Any) -> None:
        """Write the state after a step; of several processes one does."""
        if not self.session.is_first:
            return
        parts |= {"model": training.model, "optimizer": training.optimizer, "schedule": training.schedule}
        state = {name: part.state_dict() for name, part in parts.items()}
        buffer = io.BytesIO()
        torch.save({**state, "settings": self.session.settings, "stage": stage, "step": training.step}, buffer)
        replace_file(self.path, buffer.getbuffer())


def train(
    session: Session,
    training: Training,
    checkpoint: Checkpoint,
    title: str,
    *,
    stage: int = 0,
    until: int | None = None,
    **parts: Any,
) -> None:
    """Train to the end, or up to a step, and save now and then; with the training, further ``parts`` of the run."""
    last = training.steps if until is None else until
    if training.step > last:
        raise ValueError(f"{checkpoint.path} is past step {last:,} already, at {training.step:,}; pass another --out")
    hidden = None if session.is_first else True  # None: shown on a terminal
    with tqdm(desc=title, total=training.steps, initial=training.step, unit="step", disable=hidden) as bar:
        for step in steps(session, training, last):
            bar.update()
            if step == last and session.machine.world > 1:  # the first process's statistics are those that are saved
                for buffer in training.model.buffers():
                    dist.broadcast(buffer, 0)
            if step == last or step % session.options.checkpoint_every == 0:
                checkpoint.save(training, stage, **parts)


# What it will cost ----------------------------------------------------------------------------------------------------


def check_images(session: Session) -> None:
    """Say what the data set has, and decode every image; stop if some are broken."""
    data = session.data
    session.say(f"{data.name}: {data.counts}" + (", as published" if data.is_published else ""))
    if not session.is_first:
        return

    def fault(images: Images, place: int) -> str | None:
        try:
            load_image(images.paths[place], small=True)
        except ValueError as error:
            return str(error)
        return None

    every = [(images, place) for images in (data.train, data.test) for place in range(len(images))]
    with ThreadPoolExecutor(max(1, session.options.workers)) as pool:
        found = pool.map(lambda one: fault(*one), every)
        faults = list(filter(None, tqdm(found, "images", len(every), disable=None)))
    if faults:
        listed = "\n".join(faults[:10])
        raise SystemExit(
            f"{len(faults):,} of {len(every):,} images are broken{', such as' * (len(faults) > 10)}\n{listed}"
        )
    session.say("every image can be read")


def dry_run(session: Session, training: Training, total: int, test: Callable[[Images], Any], tests: int) -> None:
    """Check the images, train ten steps, and say what memory and time all will take.

    Args:
        session: of the script.
        training: one that is typical.
        total: the steps of all runs that are not done.
        test: tests the network on some images.
        tests: how many tests all runs that are not done take.
    """
    check_images(session)
    marks = [time.perf_counter()]
    for _ in steps(session, training, min(DRY_STEPS, training.steps)):
        synchronize(session.machine)
        marks.append(time.perf_counter())
    taken = np.diff(marks)
    a_step = float(taken[min(WARM_UP, len(taken) - 1) :].mean())
    images, some = session.data.test, 4 * session.options.batch_size
    begin = time.perf_counter()
    test(images.where(place < some for place in range(len(images))))
    a_test = (time.perf_counter() - begin) * max(1, len(images) / some)
    session.say(f"memory: {memory(session.machine)}")
    session.say(f"a step: {a_step:.3g} s; a pass over the test images: {span(a_test)}")
    session.say(f"what is not done yet, {total:,} steps and {tests:,} tests: {span(total * a_step + tests * a_test)}")


def synchronize(machine: Machine) -> None:
    """Wait for the device."""
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)


def memory(machine: Machine) -> str:
    """Return the most memory that was in use so far, in words."""
    if machine.device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(machine.device) / 2**30:.2f} GiB of a GPU"
    try:
        import resource
    except ImportError:  # not on Windows
        return "not known on this system"
    unit = 1 if sys.platform == "darwin" else 2**10
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{used / 2**30:.2f} GiB a process, and those that load images"


def span(seconds: float) -> str:
    """Return a time in words."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
