"""What a search step spends outside its sub-networks: the input pipeline, and sampling, gates and bookkeeping.

Claims (S0, 8 cells, 16 channels, batch 64, K=7): drawing a step's two batches (crop, flip, normalise, cutout, 32x32)
takes at most 3% of the step; sampling, gates and bookkeeping take at most 3%. Bookkeeping is everything that is neither
forward or backward pass of a sub-network nor the update of an optimizer; the step's parts are told apart by timing
their calls.

    python bench/pipeline.py                   about three minutes on one core
    python bench/pipeline.py --quick
"""

import contextlib
import sys
import time

import torch
import torch.nn.functional as F
from common import CLOCK, arguments, report, row, seconds, supernet

import rome
import train


class Parts:
    """Time by part of a step; a call inside another one counts for the outer one."""

    def __init__(self, clock: str):
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.times, self.inside = {}, False

    def timed(self, name: str, function):
        def call(*args, **keywords):
            if self.inside:
                return function(*args, **keywords)
            self.inside, start = True, self.now()
            try:
                return function(*args, **keywords)
            finally:
                self.inside = False
                self.times[name] = self.times.get(name, 0.0) + self.now() - start

        return call

    @contextlib.contextmanager
    def watching(self, net: rome.Supernet, optimizer, role: str):
        """The parts of one step of the Architect. The last backward pass of an architecture step is the gates' own."""
        saved = F.cross_entropy, torch.Tensor.backward, torch.autograd.backward
        F.cross_entropy = self.timed("sub-networks", saved[0])
        torch.Tensor.backward = self.timed("sub-networks", saved[1])
        torch.autograd.backward = self.timed("gates" if role == "architecture" else "sub-networks", saved[2])
        net.stem, net.from_stem = self.timed("sub-networks", net.stem), self.timed("sub-networks", net.from_stem)
        net.sample_many = self.timed("sampling", net.sample_many)
        optimizer.step = self.timed("optimizer", optimizer.step)
        try:
            yield
        finally:
            F.cross_entropy, torch.Tensor.backward, torch.autograd.backward = saved
            for owner, name in ((net, "stem"), (net, "from_stem"), (net, "sample_many"), (optimizer, "step")):
                delattr(owner, name)


def streams(size: int, cutout: int) -> list:
    """The two endless streams of a search on 32x32 images, as train.py makes them."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (5000, 32, 32, 3), dtype=torch.uint8, generator=generator)
    images = train.Images(pixels, torch.randint(10, (5000,), generator=generator), [], [str(i) for i in range(10)])
    config = dict(seed=0, batch_size=size, image_size=32, stem="small", cutout=cutout, workers=0)
    half = torch.arange(5000).split(2500)
    statistics = train.STATISTICS["cifar10"]
    made = []
    for role, index in zip(("architecture", "weights"), half, strict=True):
        made.append(train.Stream(images, index, config, role, torch.device("cpu"), statistics, augment=True))
    return made


def main() -> int:
    options = arguments(
        __doc__,
        rounds=dict(type=int, default=5, help="steps that are measured (5)"),
        batch=dict(type=int, default=64, help="batch (64)"),
        clock=CLOCK,
    )
    quick, clock = options.quick, options.clock
    rounds, size, samples = (3, 8, 2) if quick else (options.rounds, options.batch, 7)
    net = supernet(quick=quick)
    place = [0]
    architect = rome.Architect(net, samples, generator=lambda role, k: train.keyed(0, "sample", role, *place, 0, k))
    optimizers = dict(
        architecture=torch.optim.Adam(net.architecture_parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3),
        weights=torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4),
    )
    shares = {name: [] for name in ("input", "input, no cutout", "architecture", "weights", "both")}
    milliseconds = {name: [] for name in ("sampling", "gates", "optimizer", "rest", "input", "step")}
    count = 2 * rounds + 2
    with_cutout, without = (zip(*(s.epoch(0, 0, count) for s in streams(size, c)), strict=True) for c in (16, 0))
    for number in range(-1, rounds):
        place[0] = number
        read = seconds(lambda: next(with_cutout), clock)
        read_plain = seconds(lambda: next(without), clock)
        (x_s, y_s), (x_t, y_t) = next(without)
        outside, whole, parts = {}, {}, Parts(clock)
        for role, x, y in (("architecture", x_s, y_s), ("weights", x_t, y_t)):
            step = architect.architecture_step if role == "architecture" else architect.weight_step
            before = sum(parts.times.get(part, 0.0) for part in ("sub-networks", "optimizer"))
            with parts.watching(net, optimizers[role], role):
                whole[role] = seconds(lambda s=step, x=x, y=y, o=optimizers[role]: s(x, y, 1.0, o), clock)
            outside[role] = whole[role] - sum(parts.times[part] for part in ("sub-networks", "optimizer")) + before
        if number < 0:
            continue
        total = sum(whole.values())
        shares["input"].append(100 * read / total)
        shares["input, no cutout"].append(100 * read_plain / total)
        for role in whole:
            shares[role].append(100 * outside[role] / whole[role])
        shares["both"].append(100 * sum(outside.values()) / total)
        for name in ("sampling", "gates", "optimizer"):
            milliseconds[name].append(1e3 * parts.times[name])
        milliseconds["rest"].append(1e3 * (sum(outside.values()) - parts.times["sampling"] - parts.times["gates"]))
        milliseconds["input"].append(1e3 * read)
        milliseconds["step"].append(1e3 * total)
    rows = [
        row("input pipeline, two batches with cutout, of a step", shares["input"], "%", 3.0),
        row("input pipeline, two batches without cutout, of a step", shares["input, no cutout"], "%", 3.0),
        row("sampling, gates, bookkeeping, of a step of both", shares["both"], "%", 3.0),
        row("sampling, gates, bookkeeping, of an architecture step", shares["architecture"], "%", 3.0),
        row("sampling, gates, bookkeeping, of a weight step", shares["weights"], "%", 3.0),
    ]
    rows += [row(f"time of {name}", values, "ms") for name, values in milliseconds.items()]
    return report("pipeline", options, rows, batch=size, samples=samples, rounds=rounds, clock=clock)


if __name__ == "__main__":
    sys.exit(main())
